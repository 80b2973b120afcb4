"""Runs of main_stitch.py on handwritten digits, with small networks trained for them."""

from __future__ import annotations

from pathlib import Path

import torch

from recombine import data as datasets
from recombine import models
from recombine.core.results import read_rows
from recombine.run.launch import Run, launch
from recombine.run.signals import StopSignals
from recombine.run.tracking import Tracker
from recombine.stitch import recipe
from tests import composing

QUICK = ["loader=torch", "loader.workers=0", "logger=none", "device=cpu", "budget=60", "num_saved=2"]


def train_on_digits(folder, nodes):
    """Train a network for each config node by name, a seed each, and keep it in `folder`."""
    where = {"loader": {"kind": "torch", "workers": 0}, "data_root": "", "seed": 0, "device": "cpu"}
    data = datasets.open_data({"name": "digits"}, cache_root=folder, **where)
    size = {"size": 16, "mean": [0.3] * 3, "std": [0.3] * 3, "weights": None}
    for seed, (name, node) in enumerate(nodes.items()):
        model = models.build({**node, **size}, classes=10, seed=seed)
        optimizer = torch.optim.AdamW(model.parameters(), 0.01)
        for epoch in range(2):
            for batch in data.loader("train", 64, train=True).epoch(epoch):
                optimizer.zero_grad()
                torch.nn.functional.cross_entropy(model.train()(batch.images), batch.labels).backward()
                optimizer.step()
        models.save(model.eval(), folder / f"{name}.safetensors", {})
    data.close()


def composed(folder, weights, *overrides):
    """The config of a run with the networks `first` and `second`."""
    roots = {"data": folder, "weights": weights, "cache": folder / "c", "output": folder / "o"}
    networks = ["model@a=any", "a.name=first", "model@b=any", "b.name=second"]
    given = [f"{name}_root={path}" for name, path in roots.items()]
    return composing.composed("stitch", *given, *networks, *QUICK, *overrides)


def launched(folder, weights, *overrides):
    """The rows of all runs in `folder` after one more."""
    launch(recipe, composed(folder, weights, *overrides))
    return read_rows(folder / "o")


def new_run(folder: Path) -> Run:
    """A run that records nothing."""
    where = {"dir": folder, "id": "r", "group": "g", "entry": "stitch", "cache": folder / "c", "seed": 0}
    return Run(**where, device=torch.device("cpu"), tracker=Tracker.silent(), signals=StopSignals())
