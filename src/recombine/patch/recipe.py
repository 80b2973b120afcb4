"""Delta-patching: a base network, tasks it never saw, and what each way of teaching them costs the base."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from recombine import data as datasets
from recombine import models as zoo
from recombine.core.errors import ConfigError
from recombine.core.types import Row
from recombine.engine.metrics import Accuracy
from recombine.models import Model
from recombine.models.model import find_head
from recombine.models.registry import training_hint
from recombine.patch import file, methods, routing, tasks
from recombine.patch import run_plots as pictures
from recombine.patch.metrics import harmonic_mean, mean, pooled
from recombine.patch.paint import Paint, backbone
from recombine.patch.patched import Patched
from recombine.patch.settings import PatchSettings
from recombine.patch.tasks import Task
from recombine.patch.workbench import Workbench
from recombine.run.config import DictConfig, plain
from recombine.run.console import show
from recombine.run.run import Run

__all__ = ["OBJECTIVE", "cell", "check", "run"]

OBJECTIVE = "harmonic_mean"
"""What a hyper-parameter search maximises."""


@dataclass
class TaskResult:
    """What learning some tasks came to: accuracies in percent, counts for the row, curves for its plots."""

    after: float
    """Of the base."""
    accuracies: dict[str, float]
    """By task."""
    facts: dict[str, float] = field(default_factory=dict)
    series: dict[str, list] = field(default_factory=dict)


SETTINGS = PatchSettings
"""The class that declares the config."""


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
        problems = problems + [text + hint for text in base]
    if cfg.protocol not in PROTOCOLS:
        problems.append(f"protocol={cfg.protocol}: one of {', '.join(PROTOCOLS)} is needed")
    if scratch and "paint" in str(cfg.method.get("_target_")):
        problems.append("protocol=scratch has no base to mix with; method=fc (the plain network) or method=delta")
    if cfg.protocol == "joint" and len(tasks.listed(plain(cfg)["tasks"])) < 2:
        problems.append("protocol=joint needs at least two tasks, such as 'tasks=[mnist,usps]'")
    problems += methods.problems(cfg.method)
    ways = tasks.listed(plain(cfg)["routing"])
    wrong = [name for name in ways if name not in routing.WAYS]
    return problems + [f"routing={name}: a list of {', '.join(routing.WAYS)} is needed" for name in wrong]


def cell(cfg: DictConfig) -> dict[str, Any]:
    """The names of what is measured, known before anything is built."""
    return {
        "model": cfg.model.name,
        "dataset": cfg.dataset.name,
        **methods.row_names(cfg.method),
        "protocol": cfg.protocol,
    }


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
            accuracy = {task.name: bench.accuracy(bench.carrying(model, state), task)}
            learnt = TaskResult(
                after, accuracy, {"trainable_parameters": body_parameters(bench.base), "alpha": alpha}, series
            )
        else:
            patches[task.name] = bench.learn_patch(task.name, [task])
            learnt = finish_patch(bench, patches[task.name], task.name, [task])
        accuracies |= learnt.accuracies
        yield row(bench, {"task": task.name}, before, learnt)
    if len(patches) > 1:
        yield system_row(bench, patches, before, TaskResult(learnt.after, accuracies))


def joint(bench: Workbench) -> Iterator[Row]:
    """All tasks at once: one classifier over the union of labels, top-1 on the concatenated test sets."""
    before = bench.measured_base()
    if isinstance(bench.method, Paint):
        model: nn.Module = bench.learn_all("joint", bench.tasks)
        offsets = tasks.label_offsets(bench.tasks)
        tuned = [(task, model, offset) for task, offset in zip(bench.tasks, offsets, strict=True)]
        start = backbone(bench.base.net, bench.base.classes)
        state, alpha, series = bench.mix(start, model, tuned, "joint", joint=True)
        after = bench.base_accuracy(bench.with_backbone(state))
        bench.carrying(model, state)
        accuracies = {task.name: bench.accuracy(model, task, offset=offset) for task, _, offset in tuned}
        learnt = TaskResult(
            after, accuracies, {"trainable_parameters": body_parameters(bench.base), "alpha": alpha}, series
        )
    else:
        learnt = finish_patch(bench, bench.learn_patch("joint", bench.tasks), "joint", bench.tasks)
    sizes = [len(task.data.indices("test")) for task in bench.tasks]
    together = pooled(list(learnt.accuracies.values()), sizes)
    yield row(bench, {"tasks": names(bench)}, before, learnt, [together])


def sequential(bench: Workbench) -> Iterator[Row]:
    """One task after the other; the final system is told the task of each image (mean over base and tasks)."""
    before = bench.measured_base()
    if not isinstance(bench.method, Paint):
        patches = {task.name: bench.learn_patch(task.name, [task]) for task in bench.tasks}
        done = {task.name: finish_patch(bench, patches[task.name], task.name, [task]) for task in bench.tasks}
        accuracies = {name: one.accuracies[name] for name, one in done.items()}
        curves = {f"{name}_{key}": values for name, one in done.items() for key, values in one.series.items()}
        after = next(reversed(done.values())).after
        yield system_row(bench, patches, before, TaskResult(after, accuracies, {}, curves))
        return
    state, tuned, series = backbone(bench.base.net, bench.base.classes), [], {}
    for task in bench.tasks:
        model = bench.learn_all(task.name, [task], state)
        tuned.append((task, model, 0))
        state, alpha, curve = bench.mix(state, model, tuned, task.name)
        series |= {f"{task.name}_{key}": values for key, values in curve.items()} | {f"{task.name}_chosen": [alpha]}
    after = bench.base_accuracy(bench.with_backbone(state))
    accuracies = {task.name: bench.accuracy(bench.carrying(model, state), task) for task, model, _ in tuned}
    learnt = TaskResult(after, accuracies, {"trainable_parameters": body_parameters(bench.base)}, series)
    yield row(bench, {"tasks": names(bench)}, before, learnt)


def system_row(bench: Workbench, patches: dict[str, Patched], before: float, learnt: TaskResult) -> Row:
    """The row of a base with several patches, each asked by its task's id; and found without it, if asked for."""
    learnt.facts["trainable_parameters"] = total(patches)
    if ways := tasks.listed(plain(bench.cfg)["routing"]):
        learnt.facts.update(routing.measure(bench, patches, ways))
    return row(bench, {"tasks": names(bench), "protocol": "sequential"}, before, learnt)


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
        top = Accuracy((1, 5) if task.classes > 5 else (1,))
        metrics = bench.engine.evaluator(task.all_of("test"), {"accuracy": top})(patched)
        accuracies = {f"accuracy_{task.name}": metrics["accuracy"], "accuracy_patched": metrics["accuracy"]}
        more = {"top5": metrics["top5"]} if "top5" in metrics else {}
        counts = {"trainable_parameters": body_parameters(model) + patched.patch.parameters_without_head()}
        seconds = {"fit_seconds": bench.fit_seconds(task.name)}
        yield Row({**cell(bench.cfg), "dataset": task.name, "task": task.name}, accuracies | more | counts | seconds)


def untrained(cfg: DictConfig) -> dict[str, Any]:
    """The model node with random weights."""
    return {**cfg.model, "weights": None}


PROTOCOLS = {"single": single, "joint": joint, "sequential": sequential, "scratch": scratch}


def finish_patch(bench: Workbench, patched: Patched, name: str, tasks_: Sequence[Task]) -> TaskResult:
    """Accuracies of base (the patch taken off) and tasks, the patch's file and pictures, counts and mean weights."""
    learnt = TaskResult(bench.base_accuracy(bench.base), {})
    learnt.facts["trainable_parameters"] = float(patched.patch.parameters_without_head())
    with pictures.recording(patched) as weights:
        for task, offset in zip(tasks_, tasks.label_offsets(tasks_), strict=True):
            learnt.accuracies[task.name] = bench.accuracy(patched, task, offset=offset)
    learnt.series.update(pictures.skip_weights(bench.run, patched, name, weights))
    if bench.run.main:
        facts = patch_facts(bench, patched, tasks_, learnt)
        path = file.save(patched, bench.run.dir / "patches" / f"{name}.safetensors", name=name, **facts)
        learnt.facts["patch_bytes"] = float(path.stat().st_size)
    return learnt


def patch_facts(bench: Workbench, patched: Patched, tasks_: Sequence[Task], learnt: TaskResult) -> dict[str, Any]:
    """What the card of a patch says beside how it is built: its data, what it measures, how it was trained."""
    settings = plain(bench.cfg)
    return {
        "class_names": [str(label) for task in tasks_ for label in task.data.class_names],
        "tasks": [task.name for task in tasks_],
        "datasets": [task.data.settings.source or task.data.name for task in tasks_],
        "training_images": [len(task.data.indices("train")) for task in tasks_],
        "blocks": getattr(patched.patch, "block_names", []),
        "base_dataset": bench.base_task.name,
        "size": bench.base.size,
        "description": bench.base.description(),
        "metrics": {"accuracy_base": learnt.after} | {f"accuracy_{k}": v for k, v in learnt.accuracies.items()},
        "training": {key: settings[key] for key in ("optimizer", "schedule", "batch_size", "task", "seed")}
        | {"epochs": settings["engine"]["epochs"]},
    }


def row(
    bench: Workbench, names_: dict[str, str], before: float, learnt: TaskResult, tasks_: Sequence[float] = ()
) -> Row:
    """A row of one of the patching protocols; means are over the base and `tasks_`, by default each task's accuracy."""
    tasks_ = list(tasks_ or learnt.accuracies.values())
    metrics = {"accuracy_base_before": before, "accuracy_base_after": learnt.after}
    metrics |= {f"accuracy_{name}": value for name, value in learnt.accuracies.items()}
    metrics |= {"accuracy_patched": mean(tasks_), "mean": mean([learnt.after, *tasks_])}
    metrics |= {"harmonic_mean": harmonic_mean([learnt.after, *tasks_]), **learnt.facts}
    metrics["fit_seconds"] = bench.fit_seconds(names_.get("task"))
    return Row({**cell(bench.cfg), **names_}, metrics, learnt.series)


def names(bench: Workbench) -> str:
    """The tasks of a row that has several."""
    return "-".join(task.name for task in bench.tasks)


def body_parameters(model: Model) -> float:
    """All parameters of a network but its classifier's."""
    head = model.net.get_submodule(find_head(model.net, model.classes))
    return float(sum(p.numel() for p in model.net.parameters()) - sum(p.numel() for p in head.parameters()))
