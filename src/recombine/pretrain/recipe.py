"""Pretraining: build, train, evaluate, save (the settings of Roth et al. are in config/experiment/pretrain).

Deviation: each network keeps its own normalisation, where the authors gave ImageNet's to all of them, so that its
accuracy is the same in every role it has later.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor
from torch.nn import functional as F

from recombine import data as datasets
from recombine import models as zoo
from recombine.core.files import check_writable
from recombine.core.settings import to_dict
from recombine.core.types import Batch, Row
from recombine.data import Data
from recombine.data.loading import BatchLoader
from recombine.engine.engine import Engine, Fit
from recombine.engine.method import Method
from recombine.engine.metrics import Accuracy, Mean, PerClass
from recombine.models import Model
from recombine.models.model import find_head
from recombine.pretrain.settings import PretrainSettings
from recombine.run.config import build
from recombine.run.console import show
from recombine.run.run import Run

if TYPE_CHECKING:
    from omegaconf import DictConfig

__all__ = ["OBJECTIVE", "SETTINGS", "cell", "files", "run"]

SETTINGS = PretrainSettings
"""The class that declares the config."""

OBJECTIVE = "accuracy"
"""What a hyper-parameter search maximises."""
LR_SCALING = {"none": 0, "linear": 1, "linear_twice": 2}
"""How often the learning rate is multiplied by batch_size / 256."""


def cell(cfg: DictConfig) -> dict[str, Any]:
    """What identifies the row, known before anything is built."""
    return {
        "model": cfg.model.name,
        "dataset": cfg.dataset.name,
        "fraction": cfg.dataset.fraction,
        "start": "random" if cfg.model.weights is None else "pretrained",
        "trained": "classifier" if cfg.freeze else "all",
    }


def files(cfg: DictConfig) -> list[Path]:
    """The checkpoint: where it is gone or another run's, the finished training writes it again."""
    return [Path(cfg.weights_root) / f"{save_name(cfg)}.safetensors"]


def run(cfg: DictConfig, run: Run) -> Iterator[Row]:
    """Train, evaluate and save the network, yield its row."""
    if run.main:
        check_writable(Path(cfg.weights_root))
    data = datasets.open_data_for(cfg, run)
    try:
        model = zoo.build(cfg.model, classes=data.classes, weights_root=cfg.weights_root, seed=cfg.seed)
        method = build(cfg.method, net=model)
        if cfg.freeze:
            freeze_backbone(method, model)
        if run.main:
            show(zoo.describe([model]))
        engine = Engine(cfg.engine, run)
        train = training_loader(cfg, data, model)
        test = data.loader(cfg.split, cfg.eval_batch_size, train=False, size=model.canvas)
        metrics = {"all": Accuracy(), "by class": PerClass(data.classes), "loss": Mean("loss", cross_entropy)}
        fit = engine.fit(
            method,
            train,
            build(cfg.optimizer, lr=learning_rate(cfg)),
            build(cfg.schedule),
            evaluate=engine.evaluator(test, metrics),
        )
    finally:
        data.close()
    run.stats["images_per_second"] = round(fit.images_per_second, 1)
    if run.main:
        run.stats["weights"] = {save_name(cfg): str(save_network(model, fit, cfg, data.class_names))}
    yield row(cfg, model, fit)


def training_loader(cfg: DictConfig, data: Data, model: Model) -> BatchLoader:
    """Random crops come at the network's input size, whole images at its canvas, of which it takes the centre."""
    loader = data.loader("train", cfg.batch_size, train=True, size=model.size)
    if loader.augment is not None and loader.augment.crop is not None:
        return loader
    return data.loader("train", cfg.batch_size, train=True, size=model.canvas)


def learning_rate(cfg: DictConfig) -> float:
    """The optimizer's lr, multiplied by batch_size / 256 as often as `lr_scaling` says."""
    return cfg.optimizer.lr * (cfg.batch_size / 256) ** LR_SCALING[cfg.lr_scaling]


def cross_entropy(logits: Tensor, batch: Batch) -> Tensor:
    """Of each sample, [B]."""
    return F.cross_entropy(logits, batch.labels, reduction="none")


def freeze_backbone(method: Method, model: Model) -> None:
    """Let `method` train only the classifier: all modules beside the path to it are frozen, statistics included."""
    frozen, prefix, module = [], "net.net", model.net
    model.net.requires_grad_(False)
    for part in find_head(model.net, model.classes).split("."):
        frozen += [f"{prefix}.{name}" for name, _ in module.named_children() if name != part]
        prefix, module = f"{prefix}.{part}", module.get_submodule(part)
    module.requires_grad_(True)
    method.frozen = (*method.frozen, *frozen)


def save_name(cfg: DictConfig) -> str:
    """The name of the saved network; a training cut short, as by engine=debug, replaces no other network."""
    network = cfg.model.name.rpartition(":")[2].rpartition("/")[2]
    cut = "" if cfg.engine.max_steps is None else f"-{cfg.engine.max_steps}-steps"
    return cfg.save_as or f"{network}-{cfg.dataset.name}-s{cfg.seed}{cut}"


def save_network(model: Model, fit: Fit, cfg: DictConfig, class_names: list[str]) -> Path:
    """Write the network with its card; its accuracy becomes the claimed one."""
    model.name, model.claimed_accuracy = save_name(cfg), fit.metrics["accuracy"]
    card = {"dataset": cfg.dataset.name, "class_names": class_names, "metrics": fit.metrics, "config": to_dict(cfg)}
    return zoo.save(model, files(cfg)[0], card)


def row(cfg: DictConfig, model: Model, fit: Fit) -> Row:
    """Accuracy and loss after the last epoch, the best epoch's accuracy beside it, and the curves."""
    epochs = [record for record in fit.history if "train/loss" in record]
    accuracies = [record["val/accuracy"] for record in fit.history if "val/accuracy" in record]
    summary = zoo.summary(model)
    return Row(
        cell=cell(cfg),
        metrics={
            "accuracy": fit.metrics["accuracy"],
            "accuracy_best": max(accuracies),
            "mean_class_accuracy": fit.metrics["mean_class_accuracy"],
            "loss": fit.metrics["loss"],
            **{name: summary[name] for name in ("parameters", "trainable", "macs")},
        },
        series={
            "epoch": [record["epoch"] for record in epochs],
            "train_loss": [record["train/loss"] for record in epochs],
            "accuracy": [record.get("val/accuracy") for record in epochs],
        },
    )
