"""The report page of 1,000 generated rows with configs, and curves of 100 epochs: CPU time and size."""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import product
from statistics import median

import torch

from benches.timing import now
from recombine.cli.entries import register_papers
from recombine.core.files import CONFIG_DIR
from recombine.core.types import Row
from recombine.report.html import page
from recombine.report.spec import load_specs

__all__ = ["generate", "measure"]

EPOCHS, SEEDS = 100, 5
CONFIG = {"engine": {"epochs": EPOCHS, "precision": "auto"}, "optimizer": {"lr": 0.1}, "dataset": {"name": "cifar10"}}
CURVES = ("accuracy_after", "transfer_delta", "knowledge_gain", "knowledge_loss", "train_loss")
NETWORKS = [f"network{k}" for k in range(8)]
METHODS = ("kl", "kl_dp", "kl_dp_u", "ce_dp")


def measure() -> Iterator[Row]:
    """CPU seconds and size of the page."""
    register_papers()
    rows, specs, cpu = list(generate(1000)), load_specs(CONFIG_DIR / "table"), torch.device("cpu")
    seconds = []
    for _ in range(3):
        start = now(cpu)
        document = page(rows, specs)
        seconds.append(now(cpu) - start)
    points = sum(len(values) for row in rows for values in row.series.values())
    metrics = {"cpu_seconds": median(seconds), "page_mb": len(document.encode()) / 1e6}
    yield Row(cell={"case": f"{len(rows):,} rows, {points:,} points of curves"}, metrics=metrics)


def generate(count: int) -> Iterator[Row]:
    """Rows as runs of transfer between all pairs of networks leave them, the same each time."""
    draw = random.Random(0)
    cells = product(METHODS, NETWORKS, NETWORKS, range(SEEDS))
    chosen = [cell for cell in cells if cell[1] != cell[2]][:count]
    for number, (method, teacher, student, seed) in enumerate(chosen):
        curves = {name: [draw.gauss(50, 10) for _ in range(EPOCHS)] for name in CURVES}
        cell = {"method": method, "teacher": teacher, "student": student, "dataset": "cifar10", "split": "test"}
        metrics = {name: values[-1] for name, values in curves.items()} | {
            f"metric{k}": draw.random() for k in range(12)
        }
        command = f"python main_transfer.py method={method} model@teacher={teacher} model@student={student} seed={seed}"
        about = {"command": command, "commit": "0" * 40, "seconds": 60.0, "config": CONFIG | {"seed": seed}}
        series = {"epoch": list(range(1, EPOCHS + 1)), **curves}
        group = f"{student}-{teacher}-{method}"
        yield Row(cell, metrics, series, "transfer", seed, f"{group}-{number}", group, "ok", None, about)
