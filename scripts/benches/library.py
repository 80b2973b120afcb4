"""All pairs of 300 networks on 50,000 images of 1,000 classes, from generated predictions in the store to rows on disk.

The arithmetic is that of real networks: it depends on the numbers of networks, images, classes and pairs alone.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from resource import RUSAGE_SELF, getrusage

import numpy as np
import torch

from benches.timing import now
from recombine.core.results import write_rows
from recombine.core.types import Row
from recombine.engine.class_predictions import ClassPredictions, compute_once
from recombine.flips.comparison import Comparison, PairComparison, list_pairs, make_rows

__all__ = ["measure"]

NETWORKS, IMAGES, CLASSES = 300, 50_000, 1000
SAMPLE = 30
"""Pairs that are compared one by one for the baseline."""


def measure() -> Iterator[Row]:
    """CPU seconds and memory for all pairs, and the speedup over comparing one pair after the other."""
    cpu = torch.device("cpu")
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / "predictions" / f"{place}.classes.safetensors" for place in range(NETWORKS)]
        for place, file in enumerate(files):
            compute_once(file, lambda seed=place: generate(seed))  # type: ignore[misc]
        stored = sum(file.stat().st_size for file in files) / 2**20
        start = now(cpu)
        comparison = Comparison([f"network {place}" for place in range(NETWORKS)], [read(file) for file in files])
        pairs = list_pairs(NETWORKS, "all", 0, False)
        rows = _rows(comparison, pairs)
        written = write_rows(Path(folder), rows)
        seconds = now(cpu) - start
        size = sum(file.stat().st_size for file in written.parent.glob("row*")) / 2**20
        start = now(cpu)
        for pair in pairs[:: len(pairs) // SAMPLE][:SAMPLE]:
            _one_pair(comparison, pair)
        alone = (now(cpu) - start) / SAMPLE
    memory = getrusage(RUSAGE_SELF).ru_maxrss / 2**10
    case = f"{NETWORKS} networks, {IMAGES:,} images, {len(pairs):,} pairs"
    each = {"speedup": alone * len(pairs) / seconds, "ours": 1e3 * seconds / len(pairs), "baseline": 1e3 * alone}
    whole = {"cpu_seconds": seconds, "memory_mib": memory, "store_mib": stored, "rows_mib": size}
    yield Row(cell={"case": case, "unit": "CPU ms a pair"}, metrics=each | whole)


def generate(seed: int) -> ClassPredictions:
    """A network whose errors follow the difficulty of the images, which is the same for all."""
    shared, own = np.random.default_rng(0), np.random.default_rng(seed + 1)
    labels, difficulty = np.arange(IMAGES) % CLASSES, shared.normal(size=IMAGES)
    right = difficulty + own.normal(scale=0.7, size=IMAGES) < own.uniform(0.5, 1.3)
    classes = np.where(right, labels, own.integers(0, CLASSES, IMAGES)).astype(np.int32)
    confidence = own.beta(4, 1, IMAGES).astype(np.float32)
    parts = classes, confidence, np.where(right, confidence, 0).astype(np.float32), labels, np.arange(IMAGES)
    return ClassPredictions(*map(torch.from_numpy, parts))


def read(file: Path) -> ClassPredictions:
    """What the store has; nothing is computed."""
    return compute_once(file, lambda: 1 / 0)  # type: ignore[arg-type, return-value]


def _rows(comparison: Comparison, pairs: list[PairComparison]) -> list[Row]:
    names = [f"class {label}" for label in range(CLASSES)]
    return make_rows(comparison, pairs, {}, class_names=names, claimed={}, similarity=None, legacy=False)


def _one_pair(comparison: Comparison, pair: PairComparison) -> None:
    two = [comparison.predictions[place] for place in (pair.teacher, pair.student)]
    _rows(Comparison(["teacher", "student"], two), [PairComparison(0, 1)])
