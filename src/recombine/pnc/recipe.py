"""Partial network cloning: what a source knows of some classes, copied into a target that stays as it was."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from recombine.core.errors import ConfigError
from recombine.core.settings import to_dict
from recombine.core.types import Row
from recombine.models import Model
from recombine.models.freeze import digest
from recombine.pnc.baselines import consolidate, ensemble, finetune, train_from_scratch
from recombine.pnc.calibration import calibrate
from recombine.pnc.clone.file import file_size, pack_clone, to_reference, write_clones
from recombine.pnc.clone.network import ClonedNetwork
from recombine.pnc.clone.part import Clone
from recombine.pnc.cloning import build_candidates, learn_clone, localize
from recombine.pnc.data import CloneData, open_clone_data
from recombine.pnc.evaluation import evaluate_alone, evaluate_joint, evaluate_module, suffix
from recombine.pnc.evaluator import CloneEvaluator
from recombine.pnc.method_settings import (
    CloningSettings,
    DirectEnsembleSettings,
    EwcSettings,
    FineTuningSettings,
    FromFileSettings,
    FromScratchSettings,
    PncMethodSettings,
)
from recombine.pnc.networks import build_source_networks, build_target
from recombine.pnc.plots import save_search_plot
from recombine.pnc.settings import PncSettings
from recombine.pnc.sources import list_sources
from recombine.pnc.trainer import CloneTrainer
from recombine.run.run import Run

if TYPE_CHECKING:
    from omegaconf import DictConfig

__all__ = ["OBJECTIVE", "SETTINGS", "cell", "files", "run"]

SETTINGS = PncSettings
"""The class that declares the config."""
OBJECTIVE = "accuracy_average"
"""What a hyper-parameter search maximises."""
BASELINES: dict[type[PncMethodSettings], Callable] = {
    DirectEnsembleSettings: ensemble,
    FineTuningSettings: finetune,
    EwcSettings: consolidate,
    FromScratchSettings: train_from_scratch,
}
"""What trains the network of each method that is no clone."""
COMPARED: tuple[str, ...] = (
    "mask",
    "mask_kind",
    "scope",
    "surrogate",
    "use_complement",
    "keep_ratio",
    "bn_recalibrate",
    "adapter",
)
COMPARED += ("align", "joint", "last_stage")
"""Settings of a clone that tables compare; none in the cells of methods without such a setting."""


def cell(cfg: DictConfig) -> dict[str, Any]:
    """The keys of the row, known before anything is built."""
    config = to_dict(cfg)
    try:
        sources = list_sources(config)
    except ConfigError:  # a refused config has a cell too
        sources = []
    method, use_target_data = config["method"], config["use_target_data"]
    positions = method.get("positions", "none") or "all"
    search = method.get("search") or {"mode": "none", "metric": "none"}
    suitable_head = "rows" if use_target_data else "concat"
    names = {
        "target": config["target"]["name"],
        "source": " + ".join(source.name for source in sources),
        "sources": len(sources),
        "dataset": config["dataset"]["name"],
        "clone": " + ".join(" ".join(map(str, source.clone)) for source in sources),
        "classes": sum(len({*source.clone}) for source in sources),
        "method": method["name"],
        "fraction": config["dataset"]["fraction"],
        "use_target_data": "none" if method.get("last_stage") == "localize" else use_target_data,
        **{key: method.get(key, "none") for key in COMPARED},
        "head": method["head"] or suitable_head if "head" in method else "none",
        "positions": positions if isinstance(positions, str) else " ".join(map(str, positions)),
        "search": " ".join(dict.fromkeys((search["mode"], search["metric"]))),
    }
    return names | ({"calibrate_epochs": config["calibrate_epochs"]} if len(sources) > 1 else {})


def files(cfg: DictConfig) -> list[Path]:
    """The clone files that are evaluated: with other ones the same command is not done yet."""
    return [Path(name) for name in cfg.method.get("files", ())]


def run(cfg: DictConfig, run: Run) -> Iterator[Row]:
    """Add the classes by cloning, or by what it is compared with, and evaluate old and new classes together."""
    settings = PncSettings.of({key: value for key, value in to_dict(cfg).items() if key != "hydra"})
    method = settings.read_method()
    with ExitStack() as stack:
        pairs = open_clone_data(settings, run, stack)
        target = build_target(settings, run, pairs[0].target)
        sources = build_source_networks(settings, run, pairs) if method.needs_sources else []
        trainer, evaluator = (
            CloneTrainer.from_settings(settings, run),
            CloneEvaluator.from_settings(settings, run, target),
        )
        alone = evaluate_alone(target, sources, pairs, evaluator, main=run.main)
        if isinstance(method, CloningSettings) and method.last_stage == "localize":
            for position, metrics in evaluate_modules(target, sources[0], pairs[0], method, trainer, evaluator):
                metrics["accuracy_source"] = alone["accuracy_source"]
                yield Row({**cell(cfg), "position": position}, metrics)
        elif isinstance(method, CloningSettings):
            clones, metrics, series = learn_clones(target, sources, pairs, method, trainer, evaluator)
            cloned = join_clones(target, clones, pairs, trainer, settings.calibrate_epochs, method.min_steps)
            metrics = alone | metrics | evaluate_joint(cloned, target, pairs, evaluator)
            cloned.restore()
            if run.main:
                metrics |= save_clones(run.dir, target, sources, clones, pairs, settings, metrics)
            yield Row(cell(cfg), metrics, series)
        else:
            net, metrics = add_classes(target, sources, pairs, method, trainer, evaluator)
            yield Row(cell(cfg), alone | metrics | evaluate_joint(net, target, pairs, evaluator))


def add_classes(
    target: Model,
    sources: Sequence[Model],
    pairs: Sequence[CloneData],
    method: PncMethodSettings,
    trainer: CloneTrainer,
    evaluator: CloneEvaluator,
) -> tuple[nn.Module, dict[str, float]]:
    """The network of a method that learns no clone, and metrics of its training."""
    if isinstance(method, FromFileSettings):
        zeros = {"samples_original": 0.0, "samples_cloned": 0.0}
        suffixes = [suffix(pairs, number) for number in range(1, len(pairs) + 1)]
        unused = {f"{key}{end}": value for end in suffixes for key, value in zeros.items()}
        return attach_files(target, sources, pairs, method.files).to(trainer.run.device), unused
    return BASELINES[type(method)](target, sources[0], pairs[0], method, trainer, evaluator)


def attach_files(
    target: Model, sources: Sequence[Model], pairs: Sequence[CloneData], paths: Sequence[str]
) -> ClonedNetwork:
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
    return cloned


def learn_clones(
    target: Model,
    sources: Sequence[Model],
    pairs: Sequence[CloneData],
    method: CloningSettings,
    trainer: CloneTrainer,
    evaluator: CloneEvaluator,
) -> tuple[dict[str, Clone], dict[str, float], dict[str, list]]:
    """A clone of every source by itself, by name, with metrics and series; RuntimeError if a network changed.

    Of several sources, names end in the number of the source.
    """
    clones: dict[str, Clone] = {}
    metrics: dict[str, float] = {}
    series: dict[str, list] = {}
    before = [digest(model) for model in (target, *sources)]
    for number, (source, pair) in enumerate(zip(sources, pairs, strict=True), start=1):
        end, folder = suffix(pairs, number), f"source{number}/" if len(pairs) > 1 else ""
        learned = learn_clone(target, source, pair, method, replace(trainer, folder=folder), evaluator)
        clones[f"clone{end}"] = learned.clone
        metrics |= {f"{key}{end}": value for key, value in learned.metrics.items()}
        series |= {f"{key}{end}": values for key, values in learned.series.items()}
        if trainer.run.main:
            save_search_plot(trainer.run, learned.curve, learned.labels, learned.selected, f"search{end}")
    if [digest(model) for model in (target, *sources)] != before:
        raise RuntimeError("cloning changed a network it must not change")
    return clones, metrics, series


def join_clones(
    target: Model,
    clones: Mapping[str, Clone],
    pairs: Sequence[CloneData],
    trainer: CloneTrainer,
    calibrate_epochs: float,
    min_steps: int,
) -> ClonedNetwork:
    """The target with all clones; those of several sources are calibrated."""
    cloned = ClonedNetwork(target, pairs[0].target.class_names)
    for name, clone in clones.items():
        cloned.attach(clone, name)
    if len(clones) > 1 and calibrate_epochs:
        calibrate(cloned, target, pairs, trainer, calibrate_epochs, min_steps)
    return cloned


def save_clones(
    folder: Path,
    target: Model,
    sources: Sequence[Model],
    clones: Mapping[str, Clone],
    pairs: Sequence[CloneData],
    settings: PncSettings,
    metrics: dict[str, float],
) -> dict[str, float]:
    """Write all clones into one file of the run's folder; its bytes, and those without the sources' weights."""
    about: dict[str, Any] = {"target_class_names": pairs[0].target.class_names, "dataset": settings.dataset.name}
    about |= {"metrics": metrics, "method": settings.method}
    packed = [
        pack_clone(clone, name=name, target=target, source=source, **about)
        for (name, clone), source in zip(clones.items(), sources, strict=True)
    ]
    path = write_clones(folder / "clone.safetensors", packed)
    references = file_size([to_reference(clone) for clone in packed])
    return {"clone_bytes": float(path.stat().st_size), "reference_bytes": float(references)}


def evaluate_modules(
    target: Model,
    source: Model,
    data: CloneData,
    method: CloningSettings,
    trainer: CloneTrainer,
    evaluator: CloneEvaluator,
) -> Iterator[tuple[int, dict[str, float]]]:
    """Every position and the metrics of its module: how local it is, and how well it keeps what is cloned."""
    net = build_candidates(target, source, data, method, trainer.seed)
    localize(net, data, method, evaluator.neighbourhood, trainer)
    for k, branch in enumerate(net.branches):
        parameters = Clone(branch, data.class_names).count_parameters()["module_parameters"]
        metrics = evaluate_module(net, k, data, evaluator) | {"module_parameters": parameters}
        yield branch.position.number, metrics
