"""Cross two trained networks: match and join them, train the stitches, search for offspring, test what was found."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from torch import Tensor, nn

from recombine import data as datasets
from recombine import models as zoo
from recombine.core.distributed import barrier
from recombine.core.errors import ConfigError
from recombine.core.files import write_atomically
from recombine.core.settings import to_dict
from recombine.core.types import Loader, Row
from recombine.engine.pictures import save_predictions
from recombine.models import Model
from recombine.report.plots import save_plots
from recombine.run.console import show
from recombine.run.run import Run
from recombine.stitch import offspring
from recombine.stitch.all_parents import AllParents
from recombine.stitch.comparison import REFERENCES, Columns, MeasuredNetworks, compare_to_references, score_of
from recombine.stitch.evaluator import OffspringEvaluator
from recombine.stitch.images import ImageSplits, check_classes, check_labels, first_images, open_images
from recombine.stitch.loading import load_parent, load_parents, parent_nodes
from recombine.stitch.measuring import evaluate_networks, hybrid_metrics
from recombine.stitch.plots import PLOTS
from recombine.stitch.retraining import Branches, RetrainedOffspring, retrain
from recombine.stitch.run_search import search
from recombine.stitch.search.space import references
from recombine.stitch.settings import MatchingSettings, StitchSettings
from recombine.stitch.stitches import join, train_stitches
from recombine.stitch.supernetwork import Supernetwork
from recombine.stitch.training import relative_errors

if TYPE_CHECKING:
    from omegaconf import DictConfig

__all__ = ["HEADLINE", "OBJECTIVE", "SETTINGS", "cell", "run"]

HEADLINE = (
    "search_hypervolume",
    "test_hypervolume",
    "search_dominate_both_parents",
    "test_dominate_both_parents",
    "offspring",
    *("chosen_accuracy", "test_accuracy_a", "test_accuracy_b", "test_accuracy_ensemble"),
    *("chosen_miou", "test_miou_a", "test_miou_b", "test_miou_ensemble"),
    "chosen_cost",
    *("chosen_gain_over_best_parent", "chosen_gain_over_all_together"),
    "hybrid_accuracy",
    "hybrid_accuracy_worst",
    "stitch_error",
)
"""What a person sees of a row first."""

SETTINGS = StitchSettings
"""The class that declares the config."""
OBJECTIVE = "search_hypervolume"
"""What a hyper-parameter search maximises; never a metric of the test images."""


def cell(cfg: DictConfig, cross: int = -1) -> dict[str, Any]:
    """The cell of the row of a cross (of several the last one), known before anything is built."""
    names = [node if isinstance(node, str) else str(getattr(node, "name", node)) for node in parent_nodes(cfg)]
    second = len(names) - 1 if cross < 0 else cross
    return {
        "a": "+".join(names[:second]),
        "b": names[second],
        "dataset": datasets.label_for(cfg),
        "search": cfg.search.name,
        "method": cfg.method.name,
        "performance": cfg.performance,
        "population": cfg.search.get("population", "none"),
        "budget": cfg.budget,
        "max_matches": "all" if cfg.matching.max_matches is None else cfg.matching.max_matches,
        "granularity": cfg.matching.granularity,
        "bn_images": cfg.bn_images,
        "ensemble": cfg.ensemble,
    }


def run(cfg: DictConfig, run: Run) -> Iterator[Row]:
    """Cross the parents: one row, of more than two a row for each cross of the best offspring with the next parent."""
    parents = load_parents(cfg, run)
    images = open_images(cfg, replace(run, seed=cfg.stitch_seed))
    try:
        check_classes(parents, images)
        if run.main:
            show(zoo.describe(parents))
        evaluation = (parents[0], cfg.eval_batch_size, cfg.engine.max_eval_batches)
        loaders = {"search": images.search_loader(*evaluation), "test": images.test_loader(*evaluation)}
        together, last, a = AllParents(loaders, cfg.engine.eval_precision), len(parents) - 1, parents[0]
        for number, b in enumerate(parents[1:], 1):
            here = run if last == 1 else open_cross(run, number, last, (a, b))
            row, front, references = cross(cfg, here, (a, b), images, loaders)
            if last > 1:
                together.add((a, b), references)
            beyond = together.compare(front) if number > 1 else {}
            row = replace(row, cell=cell(cfg, number), metrics=row.metrics | beyond)
            if run.main:
                save_plots(PLOTS, [row], here)
            yield row
            if number < last:
                a = next_parent(cfg, here, front.columns)
    finally:
        images.close()


def cross(
    cfg: DictConfig, run: Run, parents: tuple[Model, Model], images: ImageSplits, loaders: Mapping[str, Loader]
) -> tuple[Row, MeasuredNetworks, MeasuredNetworks]:
    """One supernetwork and one search in it: its row, its front, and both parents with their ensemble."""
    stitch_run = replace(run, seed=cfg.stitch_seed)  # searches with different seeds share one supernetwork
    train = images.training_loader(parents[0], cfg.batch_size)
    calibration = first_images(train, cfg.bn_images)
    net, metrics = make_supernetwork(cfg, stitch_run, parents, images, train)
    series = stitch_errors(net, loaders["search"], cfg.engine.eval_precision)
    genotypes, monitor = search(cfg, run, net, make_evaluator(cfg, run, net, loaders["search"], calibration))
    front = evaluate_networks(net, genotypes, loaders, cfg, calibration)
    reference = evaluate_networks(net, references(len(net.genotype)), loaders, cfg)
    compared, gains = compare_to_references(front, reference)
    metrics |= monitor.totals() | compared | reference_metrics(reference.columns)
    metrics |= hybrid_metrics(net, loaders["test"], cfg, calibration) if is_sweep(cfg) else {}
    series |= gains | monitor.curve | (monitor.single_stitches() if is_sweep(cfg) else {})
    saved = offspring_first(front.columns)[: cfg.num_saved]
    retrained = retrain(net, genotypes[saved], images, loaders, cfg, stitch_run, calibration)
    chosen = {key: [values[k] for k in saved] for key, values in front.columns.items()}
    metrics |= retraining_gains(chosen, retrained)
    if net.task.pixels and saved:
        best = build_offspring(net, genotypes[saved[0]], retrained[0], calibration)
        save_predictions(best, loaders["test"], images.data.class_names, run)
    if run.main:
        files = save_offspring(net, genotypes[saved], chosen, retrained, run.dir, calibration, images.data.card())
        note_front(run, front.columns, files)
    series |= add_prefix("front", front.columns) | add_prefix("reference", reference.columns)
    series |= {"saved": saved} | retrained_scores(retrained, f"test_{net.task.score}")
    metrics["stitch_error"] = float(np.median(series["stitch_errors"]))
    return Row(cell(cfg), metrics, series), front, reference


def open_cross(run: Run, number: int, last: int, parents: tuple[Model, Model]) -> Run:
    """The run of one cross among several, in a folder of its own."""
    stage = f"cross{number}"
    here = replace(run, dir=run.dir / stage, tracker=run.tracker.within(stage))
    here.dir.mkdir(parents=True, exist_ok=True)
    if run.main:
        print(f"cross {number} of {last}: {parents[0].name} and {parents[1].name}", flush=True)
    return here


def next_parent(cfg: DictConfig, run: Run, front: Columns) -> Model:
    """The best network of a front by the search images, offspring first, from its file."""
    barrier()  # the first process has written it
    if run.main and not any(front["on"]):
        print("no offspring is on the front; the best of both parents and their ensemble goes on", flush=True)
    return load_parent(str(offspring_file(run.dir, 0)), cfg, run)


def make_supernetwork(
    cfg: DictConfig, run: Run, parents: tuple[Model, Model], images: ImageSplits, train: Loader
) -> tuple[Supernetwork, dict[str, float]]:
    """The parents joined by trained stitches, and metrics of both."""
    matching = MatchingSettings.of(to_dict(cfg.matching), "matching")
    net, metrics = join(parents, matching, run, channels_last=cfg.engine.channels_last, ensemble=cfg.ensemble)
    check_labels(net, images)
    sweep = 3 + 2 * len(net.stitches)
    if is_sweep(cfg) and cfg.budget < sweep:
        told = f"budget={cfg.budget}: with {len(net.pairs)} pairs, search=single_stitch_sweep measures {sweep} networks"
        raise ConfigError(f"{told}; set budget={sweep}")
    return net, metrics | train_stitches(net, train, cfg, run)


def build_offspring(
    net: Supernetwork, genotype: np.ndarray, retrained: RetrainedOffspring | None, calibration: Sequence[Tensor]
) -> nn.Module:
    """A network of the front by itself, as it was trained further where it was."""
    if retrained is not None:
        return Branches(retrained.model, net.ensemble)
    return offspring.export(net, genotype, calibration=calibration)


def note_front(run: Run, front: Columns, files: Iterable[Path]) -> None:
    """Leave the front as a table, and note the files of its networks."""
    table = pd.DataFrame(front).to_csv(index_label="network", float_format="%.6g")
    write_atomically(run.dir / "front.csv", table)
    for file in files:
        run.note_file(file)


def offspring_first(front: Columns) -> list[int]:
    """Positions of the networks of a front: offspring, then the parents that are on it too, each the best first."""
    return sorted(range(len(front["on"])), key=lambda k: not front["on"][k])


def make_evaluator(
    cfg: DictConfig, run: Run, net: Supernetwork, loader: Loader, calibration: Sequence[Tensor]
) -> OffspringEvaluator:
    """Evaluates offspring on the images of the search; its memo is a file in the run's folder."""
    return OffspringEvaluator(
        net,
        loader,
        run,
        precision=cfg.engine.eval_precision,
        performance=cfg.performance,
        eval_batch_networks=cfg.eval_batch_networks,
        file=run.dir / "evaluations.jsonl",
        calibration=calibration,
        racing_alpha=0 if is_sweep(cfg) else cfg.racing_alpha,
        max_cost=cfg.max_cost,
        max_parameters=cfg.max_parameters,
    )


def stitch_errors(net: Supernetwork, loader: Loader, precision: str) -> Columns:
    """Each stitch's squared error relative to the variance of its target, on the images of the search."""
    errors = relative_errors(net, loader, precision)
    names = [f"{pair.a.name} | {pair.b.name}" for pair in net.pairs]
    return {"pair_nodes": names, "stitch_errors": [round(error, 6) for error in errors.tolist()]}


def is_sweep(cfg: DictConfig) -> bool:
    """Whether all single stitches are measured, not searched: on all images."""
    return cfg.search._target_.endswith(".SingleStitchSweep")


def reference_metrics(parents: Columns) -> dict[str, float]:
    """Score and cost of both parents and their ensemble."""
    return {
        f"{key}_{name}": float(parents[key][k])
        for key in (f"search_{score_of(parents)}", f"test_{score_of(parents)}", "test_ece", "cost")
        for k, name in enumerate(REFERENCES)
    }


def add_prefix(prefix: str, columns: Columns) -> Columns:
    """The columns under prefixed names."""
    return {f"{prefix}_{key}": values for key, values in columns.items()}


def retraining_gains(front: Columns, retrained: Sequence[RetrainedOffspring | None]) -> dict[str, float]:
    """Changes by training with labels, mean over the offspring that were trained."""
    pairs = [(k, one.metrics) for k, one in enumerate(retrained) if one is not None]
    return {
        f"retrained_{key}_gain": float(np.mean([metrics[key] - front[key][k] for k, metrics in pairs]))
        for key in (f"search_{score_of(front)}", f"test_{score_of(front)}", "test_loss")
        if pairs
    }


def retrained_scores(retrained: Sequence[RetrainedOffspring | None], key: str) -> dict[str, list[float | None]]:
    """The metric `key` of each saved offspring after it was trained with labels; None of one that was not."""
    return {f"retrained_{key}": [one and one.metrics[key] for one in retrained]}


def offspring_file(folder: Path, k: int) -> Path:
    """Where the k-th saved network of a cross lies."""
    return folder / "offspring" / f"{k}.safetensors"


def save_offspring(
    net: Supernetwork,
    genotypes: np.ndarray,
    columns: Columns,
    retrained: Sequence[RetrainedOffspring | None],
    folder: Path,
    calibration: Sequence[Tensor],
    details: Mapping[str, Any],
) -> list[Path]:
    """Write offspring to files in `folder`/offspring, with metrics and `details` on their cards; returns the paths."""
    files = []
    for k, (genotype, one) in enumerate(zip(genotypes, retrained, strict=True)):
        metrics = one.metrics if one else {key: values[k] for key, values in columns.items()}
        name = f"{net.name}-{k}".replace(" ", "")
        path = offspring_file(folder, k)
        model = one.model if one else offspring.export(net, genotype, calibration=calibration)
        offspring.save(net, genotype, path, name=name, trained=model, **details, metrics=metrics)
        files.append(path)
    return files
