"""Delta-Patching: a base network, tasks it never saw, and what each method of teaching them costs the base."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from recombine import models as zoo
from recombine.core.settings import to_dict
from recombine.core.types import Row
from recombine.engine.engine import Engine
from recombine.models.serialization import tensor_bytes
from recombine.patch import routing
from recombine.patch.checks import structure_problems as check
from recombine.patch.dense.training import train_dense
from recombine.patch.domain.zero_shot import adapt_zero_shot
from recombine.patch.end_to_end.training import train_end_to_end
from recombine.patch.evaluation import accuracy, base_accuracy, evaluate_base, held_out, held_out_each
from recombine.patch.paint.interpolation import backbone, load_backbone, with_backbone
from recombine.patch.paint.training import AlphaSearch, Tuned, finetune
from recombine.patch.patched import TaskNetwork
from recombine.patch.rows import TaskResult, body_parameters, cell, joined, joint_row, row
from recombine.patch.serialization import save
from recombine.patch.settings import DENSE, END_TO_END, UNTRAINED, Paint, PatchSettings, as_list
from recombine.patch.skip_weights import record_skip_weights, save_skip_weights
from recombine.patch.tasks import Task, label_offsets, open_base, open_source, open_tasks
from recombine.patch.training import PatchBuilder, Trainer, train_patch
from recombine.run.config import build
from recombine.run.run import Run

if TYPE_CHECKING:
    from omegaconf import DictConfig

__all__ = ["HEADLINE", "OBJECTIVE", "SETTINGS", "cell", "check", "run"]

HEADLINE = (
    "harmonic_mean",
    "accuracy_patched",
    "miou",
    "pixel_accuracy",
    "map_voc07",
    "map_coco",
    "accuracy_base_before",
    "accuracy_base_after",
    "trainable_parameters",
    "steps",
    "patch_bytes",
)
"""What a person sees of a row first."""

SETTINGS = PatchSettings
"""The class that declares the config."""
OBJECTIVE = "accuracy_val"
"""What a hyper-parameter search maximises: of training images that tasks hold out."""


def run(cfg: DictConfig, run: Run) -> Iterator[Row]:
    """Evaluate the base, teach it the tasks as the protocol says, evaluate base and tasks again."""
    opened: list[Task] = []
    try:
        untrained, dense = cfg.protocol in UNTRAINED, cfg.protocol in DENSE
        node = {**cfg.model, "weights": None} if untrained else cfg.model
        # of the classes of a network without weights nothing is known before its task is
        classes = 1000 if untrained or (dense and cfg.model.weights is None) else None
        model = zoo.build(node, classes=classes, weights_root=cfg.weights_root, seed=cfg.seed)
        tasks = open_tasks(cfg, run, model)
        opened += tasks
        method, trainer = build(cfg.method), Trainer(cfg, Engine(cfg.engine, run))
        if dense:
            yield from train_dense(cfg, trainer, method, tasks)
            return
        if cfg.protocol == "zero_shot":
            opened.append(open_source(cfg, run, model))
            yield from adapt_zero_shot(cfg, trainer, method, model, opened[-1], tasks)
            return
        if cfg.protocol in END_TO_END:
            yield from train_end_to_end(cfg, trainer, method, model, tasks)
            return
        base = open_base(cfg, run, model)
        opened.append(base)
        model.to(run.device).eval().requires_grad_(False)
        if isinstance(method, Paint):
            yield from PAINT_PROTOCOLS[cfg.protocol](cfg, trainer, method, base, tasks)
        else:
            builder = PatchBuilder(method, model, run)
            yield from PATCH_PROTOCOLS[cfg.protocol](cfg, trainer, builder, base, tasks)
    finally:
        for each in opened:
            each.data.close()


# ------------------------------------------------------------------------------------------------- patches


def patch_single(
    cfg: DictConfig, trainer: Trainer, builder: PatchBuilder, base: Task, tasks: list[Task]
) -> Iterator[Row]:
    """Each task alone: one row a task, with the harmonic mean of base and task.

    The patches together are also the result of learning the tasks one after the other, so that row comes for free.
    """
    before = evaluate_base(trainer.engine, base)
    networks: dict[str, TaskNetwork] = {}
    accuracies: dict[str, float] = {}
    for task in tasks:
        networks[task.name] = train_patch(trainer, builder, task.name, [task])
        result = finish_patch(cfg, trainer.engine, networks[task.name], task.name, base, [task])
        accuracies |= result.accuracies
        yield row(cfg, {"task": task.name}, before, result, trainer.cost(task.name))
    if len(tasks) > 1:
        together = TaskResult(result.base, accuracies)
        yield all_patches_row(cfg, trainer, networks, base, tasks, before, together)


def patch_joint(
    cfg: DictConfig, trainer: Trainer, builder: PatchBuilder, base: Task, tasks: list[Task]
) -> Iterator[Row]:
    """All tasks at once: one patch, one classifier over the union of labels."""
    before = evaluate_base(trainer.engine, base)
    network = train_patch(trainer, builder, "joint", tasks)
    result = finish_patch(cfg, trainer.engine, network, "joint", base, tasks)
    yield joint_row(cfg, tasks, before, result, trainer.cost("joint"))


def patch_sequential(
    cfg: DictConfig, trainer: Trainer, builder: PatchBuilder, base: Task, tasks: list[Task]
) -> Iterator[Row]:
    """A patch for each task, one after the other; the final network is told the task of each image."""
    before = evaluate_base(trainer.engine, base)
    networks = {task.name: train_patch(trainer, builder, task.name, [task]) for task in tasks}
    together = TaskResult(before, {})
    for task in tasks:
        result = finish_patch(cfg, trainer.engine, networks[task.name], task.name, base, [task])
        together.base = result.base
        together.accuracies |= result.accuracies
        together.series |= {f"{task.name}_{key}": values for key, values in result.series.items()}
    yield all_patches_row(cfg, trainer, networks, base, tasks, before, together)


def finish_patch(
    cfg: DictConfig, engine: Engine, network: TaskNetwork, name: str, base: Task, tasks: Sequence[Task]
) -> TaskResult:
    """Accuracies of base (without the patch) and tasks, the patch's file and plots, counts and mean weights."""
    result = TaskResult(base_accuracy(engine, base, base.model), {})
    result.counts["trainable_parameters"] = float(network.patch.parameters_without_head())
    with record_skip_weights(network) as weights:
        for task, offset in zip(tasks, label_offsets(tasks), strict=True):
            result.accuracies[task.name] = accuracy(engine, network, task, offset=offset)
    result.counts |= held_out(engine, network, tasks)
    result.series.update(save_skip_weights(engine.run, network, name, weights))
    if engine.run.main:
        info = card_info(cfg, network, base, tasks, result)
        path = save(network, engine.run.dir / "patches" / f"{name}.safetensors", name=name, **info)
        engine.run.note_file(path)
        result.counts["patch_bytes"] = float(tensor_bytes(path))
    return result


def card_info(
    cfg: DictConfig, network: TaskNetwork, base: Task, tasks: Sequence[Task], result: TaskResult
) -> dict[str, Any]:
    """What the card of a patch says beside how it is built: its data, its accuracies, how it was trained."""
    settings = to_dict(cfg)
    return {
        "class_names": [str(label) for task in tasks for label in task.data.class_names],
        "tasks": [task.name for task in tasks],
        "datasets": [task.data.settings.source or task.data.name for task in tasks],
        "training_images": [len(task.data.indices("train")) for task in tasks],
        "blocks": getattr(network.patch, "block_names", []),
        "base_dataset": base.name,
        "size": base.model.size,
        "description": base.model.description(),
        "metrics": {"accuracy_base": result.base} | {f"accuracy_{k}": v for k, v in result.accuracies.items()},
        "training": {key: settings[key] for key in ("optimizer", "schedule", "batch_size", "task", "seed")}
        | {"epochs": settings["engine"]["epochs"]},
    }


def all_patches_row(
    cfg: DictConfig,
    trainer: Trainer,
    networks: dict[str, TaskNetwork],
    base: Task,
    tasks: Sequence[Task],
    before: float,
    result: TaskResult,
) -> Row:
    """The row of a base with several patches, told the task of each image; and without it, if `routing` says so."""
    parameters = sum(network.patch.parameters_without_head() for network in networks.values())
    result.counts["trainable_parameters"] = float(parameters)
    if routings := as_list(to_dict(cfg)["routing"]):
        result.counts |= routing.evaluate(trainer.engine.cfg.eval_precision, base, tasks, networks, routings)
    names = {"tasks": joined(tasks), "protocol": "sequential"}
    result.counts |= held_out_each(trainer.engine, networks, tasks)
    return row(cfg, names, before, result, trainer.cost())


# --------------------------------------------------------------------------------------------------- PAINT


def paint_single(cfg: DictConfig, trainer: Trainer, method: Paint, base: Task, tasks: list[Task]) -> Iterator[Row]:
    """Each task alone: one row a task, with the harmonic mean of base and task."""
    engine, search = trainer.engine, AlphaSearch(method, trainer, base)
    before = evaluate_base(engine, base)
    for task in tasks:
        tuned = Tuned(task, finetune(trainer, base.model, task.name, [task]))
        state, alpha, series = search.choose(task.name, backbone(base.model), [tuned])
        after = base_accuracy(engine, base, with_backbone(base.model, state))
        accuracies = {task.name: accuracy(engine, load_backbone(tuned.model, state), task)}
        counts = {"trainable_parameters": body_parameters(base.model), "alpha": alpha}
        counts |= held_out(engine, tuned.model, [task])
        result = TaskResult(after, accuracies, counts, {**series, "chosen": [alpha]})
        yield row(cfg, {"task": task.name}, before, result, trainer.cost(task.name))


def paint_joint(cfg: DictConfig, trainer: Trainer, method: Paint, base: Task, tasks: list[Task]) -> Iterator[Row]:
    """All tasks at once: one fine-tuned network, one classifier over the union of labels."""
    engine, search = trainer.engine, AlphaSearch(method, trainer, base)
    before = evaluate_base(engine, base)
    model = finetune(trainer, base.model, "joint", tasks)
    tuned = [Tuned(task, model, offset) for task, offset in zip(tasks, label_offsets(tasks), strict=True)]
    state, alpha, series = search.choose("joint", backbone(base.model), tuned, joint=True)
    after = base_accuracy(engine, base, with_backbone(base.model, state))
    load_backbone(model, state)
    accuracies = {task.name: accuracy(engine, model, task, offset=offset) for task, _, offset in tuned}
    counts = {"trainable_parameters": body_parameters(base.model), "alpha": alpha} | held_out(engine, model, tasks)
    yield joint_row(cfg, tasks, before, TaskResult(after, accuracies, counts, series), trainer.cost("joint"))


def paint_sequential(cfg: DictConfig, trainer: Trainer, method: Paint, base: Task, tasks: list[Task]) -> Iterator[Row]:
    """One task after the other, each from the backbone that the last one left."""
    engine, search = trainer.engine, AlphaSearch(method, trainer, base)
    before = evaluate_base(engine, base)
    state, tuned = backbone(base.model), []
    all_series: dict[str, list] = {}
    for task in tasks:
        tuned.append(Tuned(task, finetune(trainer, base.model, task.name, [task], state)))
        state, alpha, series = search.choose(task.name, state, tuned)
        all_series |= {f"{task.name}_{key}": values for key, values in series.items()}
        all_series[f"{task.name}_chosen"] = [alpha]
    after = base_accuracy(engine, base, with_backbone(base.model, state))
    accuracies = {task.name: accuracy(engine, load_backbone(model, state), task) for task, model, _ in tuned}
    counts = {"trainable_parameters": body_parameters(base.model)}
    counts |= held_out_each(engine, {task.name: model for task, model, _ in tuned}, tasks)
    result = TaskResult(after, accuracies, counts, all_series)
    yield row(cfg, {"tasks": joined(tasks)}, before, result, trainer.cost())


PATCH_PROTOCOLS = {"single": patch_single, "joint": patch_joint, "sequential": patch_sequential}
PAINT_PROTOCOLS = {"single": paint_single, "joint": paint_joint, "sequential": paint_sequential}
