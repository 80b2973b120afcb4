"""Delta-patching: a base network, tasks it never saw, and what each way of teaching them costs the base."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from torch import nn

from src import data as datasets
from src import models as zoo
from src.core.config import DictConfig
from src.core.console import show
from src.core.errors import ConfigError
from src.core.run import Run
from src.core.types import Row
from src.models.model import find_head
from src.models.names import training_hint
from src.patch import file, pictures, routing, tasks
from src.patch.delta import option_problems
from src.patch.measures import harmonic_mean, mean
from src.patch.paint import Paint, backbone
from src.patch.patched import Patched
from src.patch.tasks import Task
from src.patch.workbench import Workbench

__all__ = ["OBJECTIVE", "cell", "check", "run"]

OBJECTIVE = "harmonic_mean"
"""What a hyper-parameter search maximises."""


def check(cfg: DictConfig) -> list[str]:
    """Problems of base, tasks, method and protocol, without loading any."""
    scratch = cfg.protocol == "scratch"
    problems = tasks.problems(cfg)
    if scratch:
        problems += zoo.check(untrained(cfg), weights_root=cfg.weights_root)
    else:
        classes = cfg.dataset.get("classes")
        base = zoo.check(cfg.model, weights_root=cfg.weights_root, classes=classes, frozen=True)
        hint = training_hint(str(cfg.model.name), cfg.weights_root)
        problems = datasets.check(cfg) + problems + [text + hint for text in base]
    if cfg.protocol not in PROTOCOLS:
        problems.append(f"protocol={cfg.protocol}: one of {', '.join(PROTOCOLS)} is needed")
    if scratch and "paint" in str(cfg.method.get("_target_")):
        problems.append("protocol=scratch has no base to mix with; method=fc (the plain network) or method=delta")
    if cfg.protocol == "joint" and len(cfg.tasks or []) < 2:
        problems.append("protocol=joint needs at least two tasks, such as 'tasks=[mnist,usps]'")
    if str(cfg.method.get("_target_")).endswith(".Delta"):
        problems += option_problems(**{key: value for key, value in cfg.method.items() if key[0] != "_"})
    problems += [
        f"routing={name}: a list of {', '.join(routing.WAYS)} is needed"
        for name in cfg.routing
        if name not in routing.WAYS
    ]
    return problems


def cell(cfg: DictConfig) -> dict[str, Any]:
    """The names of what is measured, known before anything is built."""
    return {"model": cfg.model.name, "dataset": cfg.dataset.name, **method_names(cfg.method), "protocol": cfg.protocol}


def method_names(node: DictConfig) -> dict[str, str]:
    """How rows call a method: its family, and what tells it from its kin."""
    target = str(node.get("_target_", "")).rpartition(".")[2]
    if target == "Delta":
        weights, norm = node.get("weights", "delta"), node.get("norm", "last_post_act")
        variant = weights if weights == "delta" else f"{node.get('skips', 'all')}_{weights}"
        variant += "" if norm == "last_post_act" else "_no_bn" if norm == "none" else f"_{norm}"
        modules = node.get("modules", "all") if node.get("budget") is None else f"within {node.budget}"
        return {"method": "delta" if variant == "delta" else f"delta_{variant}", "modules": str(modules)}
    if target == "Paint":
        fixed = node.get("select") == "fixed"
        name = ("finetune" if node.get("alpha") == 1 else f"paint_{node.get('alpha')}") if fixed else "paint"
        recalibrated = "_recalibrated" if node.get("statistics") == "recalibrated" else ""
        return {"method": name + recalibrated, "modules": "none"}
    names = {"HeadOnly": "fc", "ResidualAdapters": f"{node.get('position')}_adapter"}
    names["NormAdaptation"] = f"bn_{node.get('mode')}"
    return {"method": names.get(target, target), "modules": "none"}


def run(cfg: DictConfig, run: Run) -> Iterator[Row]:
    """Measure the base, teach it the tasks as the protocol says, measure base and tasks again."""
    base_data = None
    opened: list[Task] = []
    try:
        scratch = cfg.protocol == "scratch"
        classes = 1000 if scratch else None  # what a network without weights has before its task is known
        node = untrained(cfg) if scratch else cfg.model
        model = zoo.build(node, classes=classes, weights_root=cfg.weights_root, seed=cfg.seed)
        opened = tasks.open_tasks(cfg, run, model)
        if scratch:
            if run.main:
                show(zoo.describe([model]))
            bench = Workbench(cfg, run, model, opened[0].data, opened)
        else:
            base_data = datasets.open_data_for(cfg, run)
            if base_data.classes != model.classes:
                raise ConfigError(
                    f"base {model.name} has {model.classes} classes and dataset {base_data.name} {base_data.classes}; "
                    f"choose the data it was trained on, or a label map (dataset.label_map)"
                )
            bench = Workbench(cfg, run, model, base_data, opened)
        yield from PROTOCOLS[cfg.protocol](bench)
    finally:
        for data in [base_data, *(task.data for task in opened)]:
            if data is not None:
                data.close()


def single(bench: Workbench) -> Iterator[Row]:
    """Each task alone: one row a task, HM of base and task (section 5.3).

    What is learnt by patches is also the result of learning the tasks one after the other, so that row comes for free.
    """
    before = bench.measured_base()
    patches: dict[str, Patched] = {}
    accuracies: dict[str, float] = {}
    for task in bench.tasks:
        if isinstance(bench.method, Paint):
            model = bench.learn_all(task.name, [task])
            start = backbone(bench.base.net, bench.base.classes)
            state, alpha, series = bench.mix(start, model, [(task, model, 0)], task.name)
            after, series = bench.base_accuracy(bench.with_backbone(state)), {**series, "chosen": [alpha]}
            facts = {"trainable_parameters": parameters(bench.base) - head_parameters(bench), "alpha": alpha}
            bench.carrying(model, state)
        else:
            model = patches[task.name] = bench.learn_patch(task.name, [task])
            after, facts, series = finish_patch(bench, model, task.name, [task])
        accuracy = accuracies[task.name] = bench.accuracy(model, task)
        yield row(bench, {"task": task.name}, before, after, {task.name: accuracy}, [after, accuracy], facts, series)
    if len(patches) > 1:
        yield system_row(bench, patches, before, after, accuracies, {"trainable_parameters": total(patches)}, {})


def joint(bench: Workbench) -> Iterator[Row]:
    """All tasks at once: one classifier over the union of labels, top-1 on the concatenated test sets."""
    before = bench.measured_base()
    offsets = [sum(task.classes for task in bench.tasks[:k]) for k in range(len(bench.tasks))]
    if isinstance(bench.method, Paint):
        model: nn.Module = bench.learn_all("joint", bench.tasks)
        learnt = [(task, model, offset) for task, offset in zip(bench.tasks, offsets, strict=True)]
        start = backbone(bench.base.net, bench.base.classes)
        state, alpha, series = bench.mix(start, model, learnt, "joint")
        after, facts = bench.base_accuracy(bench.with_backbone(state)), {"alpha": alpha}
        facts["trainable_parameters"] = parameters(bench.base) - head_parameters(bench)
        bench.carrying(model, state)
    else:
        model = bench.learn_patch("joint", bench.tasks)
        after, facts, series = finish_patch(bench, model, "joint", bench.tasks)
    pairs = zip(bench.tasks, offsets, strict=True)
    accuracies = {task.name: bench.accuracy(model, task, offset=offset) for task, offset in pairs}
    sizes = [len(task.data.indices("test")) for task in bench.tasks]
    together = sum(n * a for n, a in zip(sizes, accuracies.values(), strict=True)) / sum(sizes)
    yield row(bench, {"tasks": names(bench)}, before, after, accuracies, [after, together], facts, series)


def sequential(bench: Workbench) -> Iterator[Row]:
    """One task after the other; the final system is told the task of each image (mean over base and tasks)."""
    before = bench.measured_base()
    series: dict[str, list] = {}
    if isinstance(bench.method, Paint):
        state, learnt = backbone(bench.base.net, bench.base.classes), []
        for task in bench.tasks:
            model = bench.learn_all(task.name, [task], state)
            learnt.append((task, model, 0))
            state, alpha, curve = bench.mix(state, model, learnt, task.name)
            series |= {f"{task.name}_{key}": values for key, values in curve.items()} | {f"{task.name}_chosen": [alpha]}
        after = bench.base_accuracy(bench.with_backbone(state))
        accuracies = {task.name: bench.accuracy(bench.carrying(model, state), task) for task, model, _ in learnt}
        facts = {"trainable_parameters": parameters(bench.base) - head_parameters(bench)}
    else:
        patches = {task.name: bench.learn_patch(task.name, [task]) for task in bench.tasks}
        for task in bench.tasks:
            after, _, more = finish_patch(bench, patches[task.name], task.name, [task])
            series |= {f"{task.name}_{key}": values for key, values in more.items()}
        accuracies = {task.name: bench.accuracy(patches[task.name], task) for task in bench.tasks}
        facts = {"trainable_parameters": total(patches)}
        yield system_row(bench, patches, before, after, accuracies, facts, series)
        return
    everything = [after, *accuracies.values()]
    yield row(bench, {"tasks": names(bench)}, before, after, accuracies, everything, facts, series)


def system_row(
    bench: Workbench,
    patches: dict[str, Patched],
    before: float,
    after: float,
    accuracies: dict[str, float],
    facts: dict[str, float],
    series: dict[str, list],
) -> Row:
    """The row of a base with several patches, each asked by its task's id; and found without it, if asked for."""
    if bench.cfg.routing:
        facts |= routing.measure(bench, patches, bench.cfg.routing)
    cell_ = {"tasks": names(bench), "protocol": "sequential"}
    return row(bench, cell_, before, after, accuracies, [after, *accuracies.values()], facts, series)


def total(patches: dict[str, Patched]) -> float:
    """Trainable parameters of all patches together, their classifiers left out."""
    return float(sum(patched.patch.parameters_without_head() for patched in patches.values()))


def scratch(bench: Workbench) -> Iterator[Row]:
    """No base (section 7.4): network and patch are drawn at random and trained together."""
    for task in bench.tasks:
        model = zoo.build(untrained(bench.cfg), classes=task.classes, seed=bench.run.seed)
        model = model.to(bench.run.device).requires_grad_(True)
        patched = bench.patch(task.name, task.classes, frozen=False, model=model)
        bench.fit(task.name, patched, bench.train_loader([task]))
        metrics = bench.engine.evaluator(task.all_of("test"), {"accuracy": routing.top(task.classes)})(patched)
        accuracies = {f"accuracy_{task.name}": metrics["top1"], "accuracy_patched": metrics["top1"]}
        more = {"top5": metrics["top5"]} if "top5" in metrics else {}
        counts = {"trainable_parameters": patched.patch.parameters_without_head()}
        seconds = {"fit_seconds": bench.seconds}
        yield Row({**cell(bench.cfg), "dataset": task.name, "task": task.name}, accuracies | more | counts | seconds)


def untrained(cfg: DictConfig) -> dict[str, Any]:
    """The model node with random weights."""
    return {**cfg.model, "weights": None}


PROTOCOLS = {"single": single, "joint": joint, "sequential": sequential, "scratch": scratch}


def finish_patch(
    bench: Workbench, patched: Patched, name: str, learnt: Sequence[Task]
) -> tuple[float, dict[str, float], dict[str, list]]:
    """Base accuracy with the patch taken off, the patch's file and pictures, its counts and mean weights."""
    after = bench.base_accuracy(bench.base)
    facts = {"trainable_parameters": float(patched.patch.parameters_without_head())}
    run = bench.run
    if run.main:
        class_names = [str(label) for task in learnt for label in task.data.class_names]
        path = file.save(
            patched,
            run.dir / "patches" / f"{name}.safetensors",
            name=name,
            class_names=class_names,
            tasks=[task.name for task in learnt],
            size=bench.base.size,
            description=bench.base.description(),
        )
        facts["patch_bytes"] = float(path.stat().st_size)
    return after, facts, pictures.skip_weights(bench, patched, name, learnt)


def row(
    bench: Workbench,
    names_: dict[str, str],
    before: float,
    after: float,
    accuracies: dict[str, float],
    summed: list[float],
    facts: dict[str, float],
    series: dict[str, list],
) -> Row:
    """A row of one of the patching protocols; `summed` are the accuracies whose means are taken."""
    metrics = {"accuracy_base_before": before, "accuracy_base_after": after}
    metrics |= {f"accuracy_{name}": value for name, value in accuracies.items()}
    metrics |= {"accuracy_patched": mean(summed[1:])}
    metrics |= {"harmonic_mean": harmonic_mean(summed), "mean": mean(summed), **facts, "fit_seconds": bench.seconds}
    return Row({**cell(bench.cfg), **names_}, metrics, series)


def names(bench: Workbench) -> str:
    """The tasks of a row that has several."""
    return "-".join(task.name for task in bench.tasks)


def parameters(model: nn.Module) -> float:
    """All of a network's."""
    return float(sum(value.numel() for value in model.parameters()))


def head_parameters(bench: Workbench) -> float:
    """Of the base's classifier."""
    return parameters(bench.base.net.get_submodule(find_head(bench.base.net, bench.base.classes)))
