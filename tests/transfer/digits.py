"""Three small networks on handwritten digits that differ in size, preprocessing and skill, and configs for them."""

from pathlib import Path

import torch

from recombine import data as datasets
from recombine import models as zoo
from recombine.core.results import read_rows
from recombine.models.model import find_head
from recombine.run.config import run_id
from recombine.run.launch import launch
from tests.composing import composed

CONFIG = str(Path(__file__).parents[2] / "config")
NODES = {
    "wide": {"name": "cnn", "widths": [16, 16, 32, 32]},
    "narrow": {"name": "cnn", "widths": [4, 4, 8, 8], "size": 16, "mean": [0.1] * 3},
    "letters": {"name": "lenet5", "size": 32},
}
RIDGE = {"wide": 1e-3, "narrow": 1e-2, "letters": 1e-1}


def compose_config(folder, *overrides, config="transfer/transfer", student="narrow"):
    """The config of an entry with a short training; later overrides win."""
    roots = [f"{root}_root={folder / root}" for root in ("data", "weights", "cache", "output")]
    names = [f"model@student=any student.name={student}"]
    if config.startswith("transfer"):
        names.append("model@teacher=any teacher.name=wide")
    small = ["engine.epochs=2", "loader=torch", "loader.workers=0", "logger=none", "device=cpu", "optimizer.lr=0.02"]
    small.append("controls=[]")
    # classifiers are fitted to BatchNorm statistics that no training has seen
    small.append("method.batchnorm=keep")
    if {"method=ensemble", "method=supervised"} & {*overrides}:
        small.pop()
    chosen = {text.partition("=")[0]: text for text in [*" ".join(names).split(), *roots, *small, *overrides]}
    return composed(config.split("/")[0], *chosen.values())


def run_rows(recipe, cfg):
    """Launch, and read the rows of exactly this run."""
    launch(recipe, cfg)
    entry = recipe.__name__.replace(".recipe", "").rpartition(".")[2]
    return read_rows(Path(cfg.output_root) / entry / run_id(cfg, entry).run)


def open_digits(folder, seed=0):
    """The digits."""
    cfg = compose_config(folder)
    return datasets.open_data(cfg.dataset, loader=cfg.loader, data_root="", cache_root=folder, seed=seed, device="cpu")


def make_networks(folder):
    """Save the three networks, whose classifiers are fitted in closed form: real accuracies within a second."""
    data = open_digits(folder)
    batch = next(data.loader("train", 1400, train=False).epoch(0))
    data.close()
    for seed, (name, node) in enumerate(NODES.items()):
        model = zoo.build(node, classes=10, seed=seed)
        _fit_head(model, batch.images, batch.labels, RIDGE[name])
        model.name = name
        zoo.save(model, folder / "weights" / f"{name}.safetensors", {})


def _fit_head(model, images, labels, ridge):
    with torch.no_grad():
        features = torch.cat([model.features(part) for part in images.split(500)])
        features = torch.cat([features, torch.ones(len(features), 1)], 1).double()
        targets = torch.nn.functional.one_hot(labels, model.classes).double()
        penalty = ridge * torch.eye(features.shape[1], dtype=torch.float64) * len(features)
        solution = torch.linalg.solve(features.T @ features + penalty, features.T @ targets).float()
        head = model.net.get_submodule(find_head(model.net, model.classes))
        head.weight.copy_(4 * solution[:-1].T)
        head.bias.copy_(4 * solution[-1])
