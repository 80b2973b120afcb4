"""Pretraining: build, train, evaluate, save (the settings of Roth et al. are in config/experiment/pretrain).

Deviation: each network keeps its own normalisation, where the authors gave ImageNet's to all of them, so that its
accuracy is the same in every role it has later.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor
from torch.nn import functional as F

from recombine import data as datasets
from recombine import models as zoo
from recombine.core.errors import ConfigError
from recombine.core.files import replacing, write_atomically
from recombine.core.labels import IGNORE
from recombine.core.results import hide_paths
from recombine.core.settings import to_dict
from recombine.core.types import Batch, Row
from recombine.data import Data
from recombine.data.checks import task_of
from recombine.data.loading import BatchLoader
from recombine.data.settings import DatasetSettings
from recombine.engine.engine import Engine, Fit
from recombine.engine.method import Method
from recombine.engine.metrics import Mean
from recombine.engine.pictures import save_predictions
from recombine.engine.task_metrics import for_task
from recombine.models import Model
from recombine.models.dense import is_dense
from recombine.models.model import find_head
from recombine.models.serialization import kind_of, read_card
from recombine.pretrain.settings import PretrainSettings
from recombine.run.config import build, run_id
from recombine.run.console import show
from recombine.run.run import Run

if TYPE_CHECKING:
    from omegaconf import DictConfig

__all__ = ["HEADLINE", "OBJECTIVE", "SETTINGS", "cell", "files", "objective", "run"]

HEADLINE = (
    *("accuracy", "mean_class_accuracy", "miou", "pixel_accuracy", "map_voc07", "map_coco", "loss"),
    *("parameters", "macs"),
)
"""What a person sees of a row first."""

SETTINGS = PretrainSettings
"""The class that declares the config."""

RESULTS = {"classification": "accuracy", "segmentation": "miou", "detection": "map_voc07"}
"""The measure that counts, by what networks learn."""
OBJECTIVE = RESULTS["classification"]
"""What a hyper-parameter search maximises."""

DATA = ("class_subset", "label_map", "classes", "fraction", "fraction_seed", "val_fraction")
"""Settings of a data set that say which of its images are trained on, and with which labels."""
LR_SCALING = {"none": 0, "linear": 1, "linear_twice": 2}
"""How often the learning rate is multiplied by batch_size / 256."""


def objective(cfg: DictConfig) -> str:
    """What a hyper-parameter search maximises on these data."""
    return RESULTS[task_of(DatasetSettings.of(cfg.dataset, "dataset"))]


def cell(cfg: DictConfig) -> dict[str, Any]:
    """What identifies the row, known before anything is built."""
    return {
        "model": cfg.model.name,
        "dataset": datasets.label_for(cfg),
        "fraction": cfg.dataset.fraction,
        "start": "random" if cfg.model.weights is None else "pretrained",
        "trained": "classifier" if cfg.freeze else "all",
    }


def files(cfg: DictConfig) -> list[Path]:
    """The checkpoint: where it is gone or another run's, the finished training writes it again."""
    return [registered_path(cfg)]


def run(cfg: DictConfig, run: Run) -> Iterator[Row]:
    """Train, evaluate and save the network, yield its row."""
    data = datasets.open_data_for(cfg, run)
    registered_path(cfg)  # a name that is taken is told before the training
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
        metrics = for_task(data.task, data.classes)
        if data.task != "detection":  # whose loss needs networks in training mode
            metrics |= {"loss": Mean("loss", cross_entropy)}
        fit = engine.fit(
            method,
            train,
            build(cfg.optimizer, lr=learning_rate(cfg)),
            build(cfg.schedule),
            evaluate=engine.evaluator(test, metrics),
        )
        if data.task != "classification":
            save_predictions(model, test, data.class_names, run)
    finally:
        data.close()
    run.stats["images_per_second"] = round(fit.images_per_second, 1)
    if run.main:
        path = save_network(model, fit, cfg, run, data)
        run.stats["weights"] = {path.stem: str(path)}
        run.note_file(path)
    yield row(cfg, model, fit)


def training_loader(cfg: DictConfig, data: Data, model: Model) -> BatchLoader:
    """Random crops come at the network's input size, whole images at its canvas, of which it takes the centre."""
    loader = data.loader("train", cfg.batch_size, train=True, size=model.size, even=True)
    if loader.augment is not None and loader.augment.crop is not None:
        return loader
    return data.loader("train", cfg.batch_size, train=True, size=model.canvas, even=True)


def learning_rate(cfg: DictConfig) -> float:
    """The optimizer's lr, multiplied by batch_size / 256 as often as `lr_scaling` says."""
    return cfg.optimizer.lr * (cfg.batch_size / 256) ** LR_SCALING[cfg.lr_scaling]


def cross_entropy(logits: Tensor, batch: Batch) -> Tensor:
    """Of each image, [B]; where pixels have labels, the mean of its pixels."""
    loss = F.cross_entropy(logits, batch.labels, reduction="none", ignore_index=-100 if logits.ndim == 2 else IGNORE)
    return loss if loss.ndim == 1 else loss.sum((1, 2)) / (batch.labels != IGNORE).sum((1, 2)).clamp(min=1)


def freeze_backbone(method: Method, model: Model) -> None:
    """Let `method` train only the classifier: all modules beside the path to it are frozen, statistics included.

    The classifier of a network for pixels or objects is all that follows its backbone.
    """
    if is_dense(model.net):
        method.frozen = (*method.frozen, f"net.net.{model.net.encoder}")
        return
    frozen, prefix, module = [], "net.net", model.net
    model.net.requires_grad_(False)
    for part in find_head(model.net, model.classes).split("."):
        frozen += [f"{prefix}.{name}" for name, _ in module.named_children() if name != part]
        prefix, module = f"{prefix}.{part}", module.get_submodule(part)
    module.requires_grad_(True)
    method.frozen = (*method.frozen, *frozen)


def save_name(cfg: DictConfig, part: str = "") -> str:
    """The name of the saved network; a training cut short, as by engine=debug, replaces no other network.

    `part` tells data apart that have one name.
    """
    network = cfg.model.name.rpartition(":")[2].rpartition("/")[2]
    cut = "" if cfg.engine.max_steps is None else f"-{cfg.engine.max_steps}-steps"
    return cfg.save_as or f"{network}-{datasets.label_for(cfg)}{part}-s{cfg.seed}{cut}"


def data_digest(cfg: DictConfig) -> str:
    """Identity of the images that are trained on and of their labels: other settings of a set are other data."""
    parts = [datasets.label_for(cfg), *(to_dict(cfg.dataset).get(key) for key in DATA)]
    return hashlib.blake2b(json.dumps(parts).encode(), digest_size=4).hexdigest()


def registered_path(cfg: DictConfig) -> Path:
    """Where in weights_root the network goes: never in the place of one of other data, which this run did not write.

    Raises ConfigError if `save_as` asks for the place of such a network.
    """
    root = Path(cfg.weights_root)
    path = root / f"{save_name(cfg)}.safetensors"
    if not path.exists():
        return path
    card = read_card(path, "student") if kind_of(path) == "student" else {"dataset": "unknown", "data": ""}
    ours = (card.get("data", data_digest(cfg)), card.get("dataset")) == (data_digest(cfg), datasets.label_for(cfg))
    if ours or card.get("run") == run_id(cfg, "pretrain").run:
        return path
    if cfg.save_as:
        mend = "give another name, or move that file away"
        raise ConfigError(f"save_as={cfg.save_as}: {path} is of other data ({card.get('dataset')}); {mend}")
    return root / f"{save_name(cfg, f'-{data_digest(cfg)}')}.safetensors"


def save_network(model: Model, fit: Fit, cfg: DictConfig, run: Run, data: Data) -> Path:
    """Keep the network in the run's folder and register it in weights_root; its accuracy becomes the claimed one."""
    path = registered_path(cfg)
    model.name, model.claimed_accuracy = path.stem, fit.metrics.get("accuracy")
    settings = hide_paths(to_dict(cfg), cfg)
    card = {**data.card(), "data": data_digest(cfg), "run": run.id, "metrics": fit.metrics, "config": settings}
    kept = zoo.save(model, run.dir / "network.safetensors", card)
    write_atomically(run.dir / "labels.json", json.dumps(card["class_names"], ensure_ascii=False) + "\n")
    with replacing(path) as copy:
        shutil.copyfile(kept, copy)
    return path


def row(cfg: DictConfig, model: Model, fit: Fit) -> Row:
    """What was measured after the last epoch, and the curves."""
    # without the best epoch: of test images that would be a choice by them
    epochs = [record for record in fit.history if "train/loss" in record]
    name = next(name for name in reversed(RESULTS.values()) if name in fit.metrics)
    measured = [record.get(f"test/{name}", record.get(f"val/{name}")) for record in fit.history]
    summary = zoo.summary(model)
    return Row(
        cell=cell(cfg),
        metrics={
            **fit.metrics,
            **{name: summary[name] for name in ("parameters", "trainable", "macs")},
        },
        series={
            "epoch": [record["epoch"] for record in epochs],
            "train_loss": [record["train/loss"] for record in epochs],
            name: [value for record, value in zip(fit.history, measured, strict=True) if "train/loss" in record],
        },
    )
