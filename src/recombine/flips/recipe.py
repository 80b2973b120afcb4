"""Flips: N models cost N evaluations, then every ordered pair is arithmetic."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from torch import Tensor

from recombine import data as datasets
from recombine import models as zoo
from recombine.core.files import replacing, write_atomically
from recombine.core.types import Row
from recombine.data import Data
from recombine.engine.evaluate import read_cached
from recombine.flips.candidates import choose_models, list_checkpoints
from recombine.flips.comparison import Comparison, list_pairs, make_rows
from recombine.flips.evaluation import Evaluated, evaluate_models
from recombine.flips.plots import PLOTS
from recombine.flips.semantics import class_similarity
from recombine.flips.settings import FlipsSettings
from recombine.report.plots import save_plots
from recombine.run.config import build
from recombine.run.console import show
from recombine.run.run import Run

if TYPE_CHECKING:
    from omegaconf import DictConfig

__all__ = ["HEADLINE", "SETTINGS", "cell", "files", "run"]

HEADLINE = (
    "accuracy_teacher",
    "accuracy_student",
    "rho_pos",
    "rho_neg",
    "agreement",
    "oracle_accuracy",
    "ensemble_gain",
)
"""What a person sees of a row first."""

SETTINGS = FlipsSettings
"""The class that declares the config."""

log = logging.getLogger(__name__)

CLAIM_TOLERANCE = 0.3
"""Points by which an accuracy may differ from the published one without a warning."""


def cell(cfg: DictConfig) -> dict[str, Any]:
    """What is known of all pairs beforehand, for the row of a failed run."""
    return {"dataset": datasets.label_for(cfg), "split": cfg.split}


def files(cfg: DictConfig) -> list[Path]:
    """The checkpoints that are compared: with other weights the same command runs again."""
    return list_checkpoints(cfg)


def run(cfg: DictConfig, run: Run) -> Iterator[Row]:
    """Evaluate every model once, compare all ordered pairs, write matrices and plots, yield a row for each pair."""
    data = datasets.open_data_for(cfg, run)
    try:
        nodes = choose_models(cfg, data)
        pairs = list_pairs(len(nodes), cfg.pairs, cfg.seed, cfg.random_baseline)
        found = evaluate_models(cfg, run, data, nodes)
    finally:
        data.close()
    models = {name: each.model for name, each in found.items()}
    comparison = _compare(found, cfg.keep_logits)
    claimed = {name: model.claimed_accuracy for name, model in models.items()}
    if _is_whole_split(cfg, data):
        _compare_with_claims(comparison, claimed)
    encoder = build(cfg.text_encoder) if cfg.text_encoder else None
    rows = make_rows(
        comparison,
        pairs,
        cell(cfg),
        class_names=data.class_names,
        claimed=claimed,
        similarity=class_similarity(encoder, data.class_names),
        legacy=cfg.legacy_class_count,
    )
    run.stats["weights"] = {name: f"{each.model.tag}, digest {each.digest}" for name, each in found.items()}
    if run.main:
        show(zoo.describe(models.values(), dict(zip(comparison.names, comparison.accuracy, strict=True))))
        _write_matrices(comparison, data.class_names, run.dir)
        save_plots(PLOTS, rows, run)
        accuracies = [[name, comparison.accuracy[i], claimed[name]] for i, name in enumerate(models)]
        run.tracker.table("models", ["model", "accuracy", "claimed"], accuracies)
    yield from rows


def _compare(found: Mapping[str, Evaluated], keep_logits: bool) -> Comparison:
    """All networks side by side; logits are read when a pair needs them."""
    files = [each.file for each in found.values()]

    def read(place: int) -> Tensor:
        stored = read_cached(files[place], ["logits"])
        assert stored is not None, "logits are kept with the predictions"
        return stored["logits"]

    return Comparison(list(found), [each.predictions for each in found.values()], read if keep_logits else None)


def _is_whole_split(cfg: DictConfig, data: Data) -> bool:
    """Whether published accuracies can be expected: all test images of the dataset with their labels."""
    changed = (
        cfg.dataset.get("test_fraction", 1.0) != 1.0,
        cfg.dataset.get("class_subset"),
        cfg.dataset.get("label_map"),
    )
    return cfg.split == "test" and data.partial is None and not any(changed)


def _compare_with_claims(comparison: Comparison, claimed: Mapping[str, float | None]) -> None:
    for name, accuracy in zip(comparison.names, comparison.accuracy, strict=True):
        if claimed[name] is not None and abs(accuracy - claimed[name]) > CLAIM_TOLERANCE:
            log.warning(
                "%s: top-1 is %.2f %% here and %.2f %% as published; is its preprocessing right?",
                name,
                accuracy,
                claimed[name],
            )


def _write_matrices(comparison: Comparison, class_names: Sequence[str], folder: Path) -> None:
    """Write each matrix as CSV (teachers down, students across) and the flips of every class as one NumPy archive."""
    for name, matrix in comparison.matrices.items():
        table = pd.DataFrame(matrix, index=pd.Index(comparison.names, name="teacher"), columns=comparison.names)
        write_atomically(folder / f"{name}.csv", table.to_csv(float_format="%.6g"))
    with replacing(folder / "flips_per_class.npz") as temporary, open(temporary, "wb") as stream:
        np.savez_compressed(
            stream,
            positive_flips=comparison.flips,
            images_per_class=comparison.images_per_class,
            models=np.array(comparison.names),
            classes=np.array([class_names[c] for c in comparison.present]),
        )
