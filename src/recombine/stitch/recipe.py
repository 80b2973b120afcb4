"""Cross two trained networks: match and join them, train the stitches, search for offspring, test what was found."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from recombine.core.types import Row
from recombine.report.plots import save_plots
from recombine.run.config import build
from recombine.run.run import Run
from recombine.stitch import offspring, stitches
from recombine.stitch.evaluator import Evaluator
from recombine.stitch.metrics import comparison, network_measures
from recombine.stitch.plots import PLOTS
from recombine.stitch.retraining import Retrained, retrained
from recombine.stitch.run_search import search
from recombine.stitch.search.sweep import references
from recombine.stitch.settings import StitchSettings
from recombine.stitch.supernetwork import Supernetwork
from recombine.stitch.training import relative_errors
from recombine.stitch.workbench import Workbench

if TYPE_CHECKING:
    from omegaconf import DictConfig

__all__ = ["OBJECTIVE", "SETTINGS", "cell", "run"]

log = logging.getLogger(__name__)
OBJECTIVE = "search_hypervolume"
"""What a hyper-parameter search maximises; never anything of the test images."""


SETTINGS = StitchSettings
"""The class that declares the config."""


def cell(cfg: DictConfig) -> dict[str, Any]:
    """The names of what is measured, known before anything is built."""
    return {
        "a": cfg.a.name,
        "b": cfg.b.name,
        "dataset": cfg.dataset.name,
        "search": cfg.search.name,
        "method": cfg.method.name,
        "performance": cfg.performance,
        "population": cfg.search.get("population", "none"),
        "budget": cfg.budget,
        "max_matches": "all" if cfg.matching.max_matches is None else cfg.matching.max_matches,
    }


def run(cfg: DictConfig, run: Run) -> Iterator[Row]:
    """One supernetwork, one search in it, one row."""
    bench = Workbench(cfg, run)
    try:
        bench.describe()
        net, facts = stitches.join(bench)
        facts |= stitches.train(bench, net, build(cfg.method))
        series = stitch_errors(bench, net)
        genotypes, watch = search(cfg, run, net, evaluator(bench, net))
        front, three = (measured(bench, net, some) for some in (genotypes, references(len(net.genotype))))
        facts |= watch.totals() | comparison(front, three) | parents(three)
        series |= watch.single_stitches()
        again = retrained(bench, net, genotypes[: cfg.num_saved])
        facts |= retraining_facts(front, again)
        if run.main:
            leave(bench, net, genotypes, front, again)
    finally:
        bench.close()
    series |= watch.curve | prefixed("front", front) | prefixed("reference", three)
    series |= {"retrained_test_accuracy": [one and one.metrics["test_accuracy"] for one in again]}
    facts["stitch_error"] = float(np.median(series["stitch_errors"]))
    row = Row(cell(cfg), facts, series)
    if run.main:
        save_plots(PLOTS, [row], run)
    yield row


def evaluator(bench: Workbench, net: Supernetwork) -> Evaluator:
    """Measures offspring on the images of the search, and remembers them in the run's folder."""
    cfg = bench.cfg
    options = {
        "precision": cfg.engine.precision,
        "performance": cfg.performance,
        "eval_batch_networks": cfg.eval_batch_networks,
    }
    return Evaluator(net, bench.loader("search"), bench.run, **options, file=bench.run.dir / "evaluations.jsonl")


def stitch_errors(bench: Workbench, net: Supernetwork) -> dict[str, list]:
    """Each stitch's squared error relative to the variance of what it repeats, on the images of the search."""
    errors = relative_errors(net, bench.loader("search"), bench.cfg.engine.precision)
    names = [f"{pair.a.name} | {pair.b.name}" for pair in net.pairs]
    return {"pair_nodes": names, "stitch_errors": [round(error, 6) for error in errors.tolist()]}


def measured(bench: Workbench, net: Supernetwork, genotypes: np.ndarray) -> dict[str, list]:
    """Columns of what is known of some networks: genes, cost, accuracy and calibration on both sets of images."""
    said = zip(*(bench.said(net, genotypes, purpose) for purpose in ("search", "test")), strict=True)
    lines = []
    for genotype, (search_said, test_said) in zip(genotypes, said, strict=True):
        phenotype = net.phenotype(genotype)
        genes = {"on": np.flatnonzero(phenotype[:-1]).tolist(), "output": int(phenotype[-1])}
        lines.append(genes | {"cost": net.cost(genotype)} | network_measures(search_said, test_said))
    return {key: [line[key] for line in lines] for key in lines[0]}


def parents(three: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """Accuracy and cost of both parents and their ensemble."""
    return {
        f"{key}_{name}": float(three[key][k])
        for key in ("search_accuracy", "test_accuracy", "test_ece", "cost")
        for k, name in enumerate(("a", "b", "ensemble"))
    }


def prefixed(prefix: str, columns: Mapping[str, list]) -> dict[str, list]:
    """The columns under names of their own."""
    return {f"{prefix}_{key}": values for key, values in columns.items()}


def retraining_facts(front: Mapping[str, list], again: Sequence[Retrained | None]) -> dict[str, float]:
    """What training with labels has changed, mean over the offspring that were trained."""
    done = [k for k, one in enumerate(again) if one is not None]
    return {
        f"retrained_{key}_gain": float(np.mean([again[k].metrics[key] - front[key][k] for k in done]))
        for key in ("search_accuracy", "test_accuracy", "test_loss")
        if done
    }


def leave(
    bench: Workbench,
    net: Supernetwork,
    genotypes: np.ndarray,
    front: Mapping[str, list],
    again: Sequence[Retrained | None],
) -> None:
    """Write the front as CSV, and the most accurate offspring as files of their own."""
    folder, cfg = bench.run.dir, bench.cfg
    pd.DataFrame(front).to_csv(folder / "front.csv", index_label="network", float_format="%.6g")
    files, facts = [], {"class_names": list(bench.data.class_names), "dataset": cfg.dataset.name}
    for k, (genotype, trained) in enumerate(zip(genotypes, again, strict=False)):
        path = folder / "offspring" / f"{k}.safetensors"
        facts["metrics"] = trained.metrics if trained else {key: values[k] for key, values in front.items()}
        name = f"{net.name}-{k}".replace(" ", "")
        offspring.save(net, genotype, path, name=name, trained=trained and trained.model, **facts)
        files.append(str(path))
    bench.run.stats["files"] = files
    log.info("Offspring are in %s", folder / "offspring")
