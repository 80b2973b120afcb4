"""Which models are compared: named ones, config nodes, or every checkpoint of a folder that fits the data."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recombine import models as zoo
from recombine.core.errors import ConfigError
from recombine.models.artifact import is_kind, read_card
from recombine.models.files import SUFFIXES, find, stem
from recombine.models.registry import PRETRAINED
from recombine.models.resolve import locate

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from recombine.data import Data
    from recombine.models import Model

__all__ = ["checkpoints", "open_models", "problems", "random_copy"]

log = logging.getLogger(__name__)


def named(cfg: DictConfig) -> list[tuple[str, Any]]:
    """The names that models have in rows, each with what the model is built from."""
    if cfg.models == "all":
        root = Path(cfg.weights_root)
        files = sorted(root.iterdir()) if root.is_dir() else []
        return [(stem(file), str(file)) for file in files if file.suffix in SUFFIXES]
    nodes = [] if cfg.models is None else [cfg.models] if isinstance(cfg.models, str) else list(cfg.models)
    return [(node if isinstance(node, str) else str(node.get("name")), node) for node in nodes]


def problems(cfg: DictConfig) -> list[str]:
    """What is wrong with `cfg.models`, all at once, without building any."""
    entries = named(cfg)
    names = [name for name, _ in entries]
    faults = {name: _faults(node, cfg, cfg.dataset.classes) for name, node in entries}
    found = [f"models names {name} twice" for name in dict.fromkeys(names) if names.count(name) > 1]
    if cfg.models == "all":
        entries, faults = [name for name in names if not faults[name]], {}
    if len(entries) < 2:
        found.append(
            f"models={cfg.models}: {len(entries)} usable where at least 2 can be compared; such as "
            f"models=[resnet20,resnet56], or models=all for every checkpoint in weights_root={cfg.weights_root}"
        )
    return found + _to_train(faults, cfg)


def _faults(node: Any, cfg: DictConfig, classes: int | None) -> list[str]:
    return zoo.check(node, weights_root=cfg.weights_root, classes=classes, frozen=True)


def _to_train(faults: Mapping[str, list[str]], cfg: DictConfig) -> list[str]:
    """All faults; networks that main_pretrain.py has not made yet are named with the command that does."""
    root = cfg.weights_root
    names = {name: PRETRAINED.fullmatch(name) for name, those in faults.items() if those}
    absent = {name: parts for name, parts in names.items() if parts and not find(name, Path(root))}
    found = [fault for name, those in faults.items() if name not in absent for fault in those]
    for dataset in dict.fromkeys(parts["dataset"] for parts in absent.values()):
        these = {name: parts for name, parts in absent.items() if parts["dataset"] == dataset}
        models, seeds = (",".join(dict.fromkeys(parts[key] for parts in these.values())) for key in ("model", "seed"))
        found.append(
            f"{', '.join(these)}: not in weights_root={root}. This trains {'them' if len(these) > 1 else 'it'}:\n"
            f"python main_pretrain.py{' -m' * (len(these) > 1)} model={models} dataset={dataset} seed={seeds}"
            + (f" weights_root={root}" if root != "weights" else "")
        )
    return found


def checkpoints(cfg: DictConfig) -> list[Path]:
    """The local files that the models come from."""
    found = (locate(node, Path(cfg.weights_root))[1] for _, node in named(cfg) if not _faults(node, cfg, None))
    return [file for file in found if file is not None]


def open_models(cfg: DictConfig, data: Data) -> dict[str, Model]:
    """Build the models; `models=all` leaves out those that do not fit the data, otherwise ConfigError names them."""
    everything = cfg.models == "all"
    models, misfits = {}, []
    for name, node in named(cfg):
        if everything and (reason := _unfit(node, cfg, data)):
            log.info("%s is left out: %s", name, reason)
            continue
        model = zoo.build(node, weights_root=cfg.weights_root, seed=cfg.seed)
        if model.classes != data.classes:
            misfits.append(f"model {name} has {model.classes} classes, dataset {data.name} has {data.classes}")
        models[name] = model
    if not misfits and len(models) < 2:
        misfits = [f"models=all: only {', '.join(models) or 'none'} of {cfg.weights_root} fits dataset {data.name}"]
    if misfits:
        raise ConfigError(misfits)
    return models


def _unfit(file: str, cfg: DictConfig, data: Data) -> str | None:
    """Why a checkpoint cannot be compared on these data, or None."""
    if faults := _faults(file, cfg, data.classes):
        return faults[0]
    ours = Path(file).suffix == ".safetensors" and is_kind(file, "student")
    trained_on = read_card(file, "student").get("dataset", data.name) if ours else data.name
    return None if trained_on == data.name else f"it was trained on {trained_on}"


def random_copy(model: Model, seed: int) -> Model:
    """The same network and preprocessing with random weights."""
    node = {
        **model.options,
        **model.preprocess.settings(),
        "name": f"{model.name}-random",
        "architecture": model.architecture,
        "weights": None,
        "classes": model.classes,
    }
    return zoo.build(node, classes=model.classes, seed=seed)
