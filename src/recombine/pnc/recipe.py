"""Partial network cloning: what a source knows of some classes, copied into a target that stays as it was."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recombine import data as datasets
from recombine.core.errors import ConfigError
from recombine.core.settings import to_dict
from recombine.core.types import Row
from recombine.models import Model, weight_files
from recombine.models.freeze import digest
from recombine.models.serialization import tensor_bytes
from recombine.pnc.baseline_settings import (
    DirectEnsembleSettings,
    EwcSettings,
    FineTuningSettings,
    FromScratchSettings,
)
from recombine.pnc.baselines import consolidate, ensemble, finetune, train_from_scratch
from recombine.pnc.calibration import calibrate
from recombine.pnc.clone.cloned_network import ClonedNetwork
from recombine.pnc.clone.part import Clone
from recombine.pnc.clone.serialization import pack_clone, to_reference, write_clones
from recombine.pnc.clone_task import CloneTask
from recombine.pnc.cloning import Cloning, learn_clone
from recombine.pnc.data import CloneData, open_clone_data
from recombine.pnc.evaluation import evaluate_alone, evaluate_joint, evaluate_kept, evaluate_module, suffix
from recombine.pnc.evaluator import CloneEvaluator
from recombine.pnc.method_settings import (
    COMPARED,
    CloningSettings,
    ComposeSettings,
    FromFileSettings,
    PncMethodSettings,
)
from recombine.pnc.networks import build_frozen, build_source_networks, build_target
from recombine.pnc.plots import save_search_plot
from recombine.pnc.settings import PncSettings
from recombine.pnc.sources import list_sources
from recombine.pnc.trainer import CloneTrainer
from recombine.pnc.zoo import compose
from recombine.run.run import Run

if TYPE_CHECKING:
    from omegaconf import DictConfig

__all__ = ["HEADLINE", "OBJECTIVE", "SETTINGS", "cell", "files", "run"]

HEADLINE = (
    "accuracy_average",
    "gain_over_probe",
    "accuracy_original",
    "accuracy_cloned",
    "accuracy_target",
    "accuracy_source_cloned",
    "module_balanced",
    "position",
    "kept_filters",
    "added_parameters",
    "clone_bytes",
)
"""What a person sees of a row first."""

SETTINGS = PncSettings
"""The class that declares the config."""
OBJECTIVE = "select_average"
"""What a hyper-parameter search maximises: measured on images kept for selection, not on test images."""

BASELINES: dict[type[PncMethodSettings], Callable] = {
    DirectEnsembleSettings: ensemble,
    FineTuningSettings: finetune,
    EwcSettings: consolidate,
    FromScratchSettings: train_from_scratch,
}
"""What trains the network of each method that is no clone."""


def cell(cfg: DictConfig) -> dict[str, Any]:
    """The keys of the row, known before anything is built."""
    config = to_dict(cfg)
    try:
        sources = list_sources(config)
    except ConfigError:  # a refused config has a cell too
        sources = []
    method, use_target_data = config["method"], config["use_target_data"]
    positions = method.get("positions", "none") or "all"
    suitable_head = "rows" if use_target_data else "concat"
    names = {
        "target": config["target"]["name"],
        "source": " + ".join(source.name for source in sources),
        "sources": len(sources),
        "dataset": datasets.label_for(cfg),
        "clone": " + ".join(" ".join(map(str, source.clone)) for source in sources),
        "classes": sum(len({*source.clone}) for source in sources),
        "method": method["name"],
        "fraction": config["dataset"]["fraction"],
        "use_target_data": "none" if method.get("last_stage") == "localize" else use_target_data,
        **{key: method.get(key, "none") for key in COMPARED},
        "head": method["head"] or suitable_head if "head" in method else "none",
        "segment": config["lime"]["segment"],
        "positions": positions if isinstance(positions, str) else " ".join(map(str, positions)),
        "search": method["search"]["metric"] if "search" in method else "none",
    }
    names |= {"calibrate_epochs": config["calibrate_epochs"]} if len(sources) > 1 else {}
    return names | ({"networks": " ".join(method["networks"] or ["all"])} if "networks" in method else {})


def files(cfg: DictConfig) -> list[Path]:
    """The clone files that are evaluated: with other ones the same command is not done yet."""
    return [Path(name) for name in cfg.method.get("files", ())]


def run(cfg: DictConfig, run: Run) -> Iterator[Row]:
    """Add the classes by cloning, or by what it is compared with, and evaluate old and new classes together."""
    settings = PncSettings.of({key: value for key, value in to_dict(cfg).items() if key != "hydra"})
    method = settings.read_method()
    with ExitStack() as stack:
        pairs = open_clone_data(settings, run, stack)
        key = cell(cfg) | describe_classes(pairs)
        target = build_target(settings, run, pairs[0].target)
        sources = build_source_networks(settings, method, run, pairs, target) if method.needs_sources else []
        evaluator = CloneEvaluator.from_settings(settings, run, target)
        folders = [f"source{number}/" if len(pairs) > 1 else "" for number in range(1, len(pairs) + 1)]
        tasks = [
            CloneTask(target, source, pair, CloneTrainer.from_settings(settings, run, folder), evaluator)
            for source, pair, folder in zip(sources, pairs, folders, strict=False)
        ]
        alone = evaluate_alone(target, sources, pairs, evaluator, main=run.main)
        if isinstance(method, CloningSettings) and method.last_stage == "localize":
            for position, metrics in evaluate_modules(tasks[0], method):
                metrics["accuracy_source"] = alone["accuracy_source"]
                yield Row({**key, "position": position}, metrics)
        elif isinstance(method, CloningSettings):
            methods: Sequence[CloningSettings] = [method] * len(tasks)
            offers: dict[str, list] = {}
            if isinstance(method, ComposeSettings):
                tasks, methods, offers = compose_tasks(settings, method, run, target, pairs[0], evaluator)
                key |= describe_sources(tasks)
            metrics, series, clones = clone_classes(tasks, methods, settings.calibrate_epochs)
            metrics, series = alone | metrics, series | offers
            if run.main:
                metrics |= save_clones(run, tasks, clones, settings, metrics)
            yield Row(key, metrics, series)
        else:
            if isinstance(method, FromFileSettings):
                net, metrics = attach_files(target, sources, pairs, method.files)
                net.to(run.device)
            else:
                net, metrics = BASELINES[type(method)](tasks[0], method)
            found, series = evaluate_joint(net, target, pairs, evaluator)
            yield Row(key, alone | metrics | found, series)


def describe_classes(pairs: Sequence[CloneData]) -> dict[str, Any]:
    """What of the cell depends on the data: a class that on_collision=first leaves out is not cloned."""
    return {
        "clone": " + ".join(" ".join(map(str, pair.given)) for pair in pairs),
        "classes": sum(len(pair.outputs) for pair in pairs),
    }


def compose_tasks(
    settings: PncSettings,
    method: ComposeSettings,
    run: Run,
    target: Model,
    data: CloneData,
    evaluator: CloneEvaluator,
) -> tuple[list[CloneTask], list[CloningSettings], dict[str, list]]:
    """The networks of a folder that give the wanted classes, each with its method, and why (`compose`)."""

    def open_task(name: str, part: CloneData) -> CloneTask:
        source = build_frozen(str(weight_files.find(name, Path(method.zoo))), settings.weights_root, run)
        source.name = name  # two files may hold networks of one name
        return CloneTask(target, source, part, CloneTrainer.from_settings(settings, run), evaluator)

    return compose(open_task, data, method)


def describe_sources(tasks: Sequence[CloneTask]) -> dict[str, Any]:
    """What of the cell depends on the networks that were chosen."""
    names = " + ".join(task.source.name for task in tasks)
    return {"source": names, "sources": len(tasks), **describe_classes([task.data for task in tasks])}


def attach_files(
    target: Model, sources: Sequence[Model], pairs: Sequence[CloneData], paths: Sequence[str]
) -> tuple[ClonedNetwork, dict[str, float]]:
    """The target with the clones of files; ConfigError if their classes are not those of the sources, in order."""
    cloned = ClonedNetwork(target, pairs[0].target.class_names)
    for path in paths:
        cloned.attach(path, sources=sources)
    held = [card["class_names"] for card in cloned.list().values()]
    expected = [pair.class_names for pair in pairs]
    if held != expected:
        cloned.restore()
        raise ConfigError(
            f"method.files holds clones of the classes {held} and the config names {expected}: set clone=, and "
            f"dataset@source_data= (or sources=, one entry a clone), to what the files were made with"
        )
    ends = [suffix(pairs, number) for number in range(1, len(pairs) + 1)]
    return cloned, {f"samples_{kind}{end}": 0.0 for end in ends for kind in ("original", "cloned")}


Found = tuple[dict[str, float], dict[str, list], dict[str, Clone]]
"""Metrics and series of a run, and its clones by name."""


def clone_classes(tasks: Sequence[CloneTask], methods: Sequence[CloningSettings], calibrate_epochs: float) -> Found:
    """A clone of every source by its method, all of them together on the test images, and beside them their probes.

    Of several sources, names end in the number of the source. RuntimeError if a network changed.
    """
    target, pairs = tasks[0].target, [task.data for task in tasks]
    networks = (target, *(task.source for task in tasks))
    before = [digest(model) for model in networks]
    ways = enumerate(zip(tasks, methods, strict=True), start=1)
    learned = {suffix(pairs, number): learn_clone(task, method) for number, (task, method) in ways}
    metrics = {f"{key}{end}": value for end, each in learned.items() for key, value in each.metrics.items()}
    series = {f"{key}{end}": values for end, each in learned.items() for key, values in each.series.items()}
    for end, each in learned.items():
        if tasks[0].trainer.run.main:
            save_search_plot(tasks[0].trainer.run, each, f"search{end}")
    clones = {f"clone{end}": each.clone for end, each in learned.items()}
    cloned = join_clones(tasks, clones, methods[0], calibrate_epochs, "calibrate")
    probes = {f"probe{end}": each.probe for end, each in learned.items()}
    probed = join_clones(tasks, probes, methods[0], calibrate_epochs, "calibrate_probe")
    found, hits = evaluate_joint(cloned, target, pairs, tasks[0].evaluator, probe=probed)
    if len(tasks) > 1:
        found[OBJECTIVE] = evaluate_kept(cloned, pairs, tasks[0].evaluator)
    for net in (probed, cloned):
        net.restore()
    if [digest(model) for model in networks] != before:
        raise RuntimeError("cloning changed a network it must not change")
    return metrics | found, series | hits, clones


def join_clones(
    tasks: Sequence[CloneTask], clones: Mapping[str, Clone], method: CloningSettings, epochs: float, name: str
) -> ClonedNetwork:
    """The target with all clones; those of several sources are calibrated for `epochs`."""
    pairs = [task.data for task in tasks]
    cloned = ClonedNetwork(tasks[0].target, pairs[0].target.class_names)
    for each, clone in clones.items():
        cloned.attach(clone, each)
    if len(clones) > 1 and epochs:
        trainer = replace(tasks[0].trainer, folder="")
        calibrate(cloned, tasks[0].target, pairs, trainer, epochs, method.min_steps, name)
    return cloned


def save_clones(
    run: Run,
    tasks: Sequence[CloneTask],
    clones: Mapping[str, Clone],
    settings: PncSettings,
    metrics: dict[str, float],
) -> dict[str, float]:
    """Write all clones into one file of the run's folder; bytes of its tensors, and of those without the sources'."""
    data = tasks[0].data.target
    about: dict[str, Any] = {"target_class_names": data.class_names, "dataset": data.name}
    about |= {"metrics": metrics, "method": settings.method}
    packed = [
        pack_clone(clone, name=name, target=task.target, source=task.source, **about)
        for (name, clone), task in zip(clones.items(), tasks, strict=True)
    ]
    path = write_clones(run.dir / "clone.safetensors", packed)
    run.note_file(path)
    references = sum(value.nbytes for clone in packed for value in to_reference(clone).tensors.values())
    return {"clone_bytes": float(tensor_bytes(path)), "reference_bytes": float(references)}


def evaluate_modules(task: CloneTask, method: CloningSettings) -> Iterator[tuple[int, dict[str, float]]]:
    """Every position and the metrics of its module: how local it is, and how well it keeps what is cloned."""
    cloning = Cloning(task, method)
    cloning.localize()
    for k, branch in enumerate(cloning.net.positions):
        parameters = Clone(branch, task.data.class_names).count_parameters()["module_parameters"]
        yield branch.position.number, evaluate_module(cloning.net, k, task) | {"module_parameters": parameters}
