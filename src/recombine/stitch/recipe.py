"""Cross two trained networks: match and join them, train the stitches, search for offspring, test what was found."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from recombine import data as datasets
from recombine import models as zoo
from recombine.core.files import write_atomically
from recombine.core.settings import to_dict
from recombine.core.types import Loader, Row
from recombine.report.plots import save_plots
from recombine.run.console import show
from recombine.run.run import Run
from recombine.stitch import offspring
from recombine.stitch.evaluator import OffspringEvaluator, predict_networks
from recombine.stitch.images import check_classes, open_images
from recombine.stitch.metrics import compare_to_references, network_metrics
from recombine.stitch.parents import load_parents
from recombine.stitch.plots import PLOTS
from recombine.stitch.retraining import RetrainedOffspring, retrain
from recombine.stitch.run_search import search
from recombine.stitch.search.sweep import references
from recombine.stitch.settings import MatchingSettings, StitchSettings
from recombine.stitch.stitches import join, train_stitches
from recombine.stitch.supernetwork import Supernetwork
from recombine.stitch.training import relative_errors

if TYPE_CHECKING:
    from omegaconf import DictConfig

__all__ = ["OBJECTIVE", "SETTINGS", "cell", "run"]

log = logging.getLogger(__name__)
SETTINGS = StitchSettings
"""The class that declares the config."""
OBJECTIVE = "search_hypervolume"
"""What a hyper-parameter search maximises; never a metric of the test images."""

Columns = dict[str, list]
"""A table of networks by column."""


def cell(cfg: DictConfig) -> dict[str, Any]:
    """The cell of the row, known before anything is built."""
    return {
        "a": cfg.a.name,
        "b": cfg.b.name,
        "dataset": datasets.label_for(cfg),
        "search": cfg.search.name,
        "method": cfg.method.name,
        "performance": cfg.performance,
        "population": cfg.search.get("population", "none"),
        "budget": cfg.budget,
        "max_matches": "all" if cfg.matching.max_matches is None else cfg.matching.max_matches,
    }


def run(cfg: DictConfig, run: Run) -> Iterator[Row]:
    """One supernetwork, one search in it, one row."""
    stitch_run = replace(run, seed=cfg.stitch_seed)  # searches with different seeds share one supernetwork
    a, b = load_parents(cfg, run)
    images = open_images(cfg, stitch_run)
    try:
        check_classes((a, b), images)
        if run.main:
            show(zoo.describe((a, b)))
        evaluation = (a, cfg.eval_batch_size, cfg.engine.max_eval_batches)
        loaders = {"search": images.search_loader(*evaluation), "test": images.test_loader(*evaluation)}
        matching = MatchingSettings.of(to_dict(cfg.matching), "matching")
        net, metrics = join((a, b), matching, stitch_run, channels_last=cfg.engine.channels_last)
        metrics |= train_stitches(net, images.training_loader(a, cfg.batch_size), cfg, stitch_run)
        series = stitch_errors(net, loaders["search"], cfg.engine.precision)
        genotypes, monitor = search(cfg, run, net, make_evaluator(cfg, run, net, loaders["search"]))
        front = evaluate_networks(net, genotypes, loaders, cfg)
        parents = evaluate_networks(net, references(len(net.genotype)), loaders, cfg)
        metrics |= monitor.totals() | compare_to_references(front, parents) | reference_metrics(parents)
        series |= monitor.single_stitches()
        retrained = retrain(net, genotypes[: cfg.num_saved], images, loaders, cfg, stitch_run)
        metrics |= retraining_gains(front, retrained)
        if run.main:
            table = pd.DataFrame(front).to_csv(index_label="network", float_format="%.6g")
            write_atomically(run.dir / "front.csv", table)
            folder, details = run.dir / "offspring", images.data.card()
            run.stats["files"] = save_offspring(net, genotypes, front, retrained, folder, details)
    finally:
        images.close()
    series |= monitor.curve | add_prefix("front", front) | add_prefix("reference", parents)
    series |= {"retrained_test_accuracy": [one and one.metrics["test_accuracy"] for one in retrained]}
    metrics["stitch_error"] = float(np.median(series["stitch_errors"]))
    row = Row(cell(cfg), metrics, series)
    if run.main:
        save_plots(PLOTS, [row], run)
    yield row


def make_evaluator(cfg: DictConfig, run: Run, net: Supernetwork, loader: Loader) -> OffspringEvaluator:
    """Evaluates offspring on the images of the search; its memo is a file in the run's folder."""
    return OffspringEvaluator(
        net,
        loader,
        run,
        precision=cfg.engine.precision,
        performance=cfg.performance,
        eval_batch_networks=cfg.eval_batch_networks,
        file=run.dir / "evaluations.jsonl",
    )


def stitch_errors(net: Supernetwork, loader: Loader, precision: str) -> Columns:
    """Each stitch's squared error relative to the variance of its target, on the images of the search."""
    errors = relative_errors(net, loader, precision)
    names = [f"{pair.a.name} | {pair.b.name}" for pair in net.pairs]
    return {"pair_nodes": names, "stitch_errors": [round(error, 6) for error in errors.tolist()]}


def evaluate_networks(
    net: Supernetwork, genotypes: np.ndarray, loaders: Mapping[str, Loader], cfg: DictConfig
) -> Columns:
    """A table of networks: genes, cost, accuracy and calibration on both sets of images."""
    options = {"precision": cfg.engine.precision, "eval_batch_networks": cfg.eval_batch_networks}
    search, test = (predict_networks(net, genotypes, loaders[purpose], **options) for purpose in ("search", "test"))
    rows = []
    for genotype, on_search, on_test in zip(genotypes, search, test, strict=True):
        phenotype = net.phenotype(genotype)
        genes = {"on": np.flatnonzero(phenotype[:-1]).tolist(), "output": int(phenotype[-1])}
        rows.append(genes | {"cost": net.cost(genotype)} | network_metrics(on_search, on_test))
    return {key: [row[key] for row in rows] for key in rows[0]}


def reference_metrics(parents: Columns) -> dict[str, float]:
    """Accuracy and cost of both parents and their ensemble."""
    return {
        f"{key}_{name}": float(parents[key][k])
        for key in ("search_accuracy", "test_accuracy", "test_ece", "cost")
        for k, name in enumerate(("a", "b", "ensemble"))
    }


def add_prefix(prefix: str, columns: Columns) -> Columns:
    """The columns under prefixed names."""
    return {f"{prefix}_{key}": values for key, values in columns.items()}


def retraining_gains(front: Columns, retrained: Sequence[RetrainedOffspring | None]) -> dict[str, float]:
    """Changes by training with labels, mean over the offspring that were trained."""
    pairs = [(k, one.metrics) for k, one in enumerate(retrained) if one is not None]
    return {
        f"retrained_{key}_gain": float(np.mean([metrics[key] - front[key][k] for k, metrics in pairs]))
        for key in ("search_accuracy", "test_accuracy", "test_loss")
        if pairs
    }


def save_offspring(
    net: Supernetwork,
    genotypes: np.ndarray,
    front: Columns,
    retrained: Sequence[RetrainedOffspring | None],
    folder: Path,
    details: Mapping[str, Any],
) -> list[str]:
    """Write the most accurate offspring to files, with `details` on their cards; returns the paths."""
    files = []
    for k, (genotype, one) in enumerate(zip(genotypes, retrained, strict=False)):
        metrics = one.metrics if one else {key: values[k] for key, values in front.items()}
        name = f"{net.name}-{k}".replace(" ", "")
        path = folder / f"{k}.safetensors"
        offspring.save(net, genotype, path, name=name, trained=one and one.model, **details, metrics=metrics)
        files.append(str(path))
    log.info("Offspring are in %s", folder)
    return files
