"""Which models are compared: named ones, config nodes, or every checkpoint of a folder that fits the data."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
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

__all__ = ["check_models", "list_checkpoints", "open_models", "randomize"]

log = logging.getLogger(__name__)


def list_models(models: str | Sequence[Any], weights_root: str) -> list[tuple[str, Any]]:
    """The names that models have in rows, each with the name, file or node that the model is built from."""
    if models == "all":
        root = Path(weights_root)
        files = sorted(root.iterdir()) if root.is_dir() else []
        return [(stem(file), str(file)) for file in files if file.suffix in SUFFIXES]
    nodes = [models] if isinstance(models, str) else models
    return [(node if isinstance(node, str) else node["name"], node) for node in nodes]


def check_models(models: str | Sequence[Any], weights_root: str, classes: int | None) -> list[str]:
    """Everything wrong with the models to be compared, without building any."""
    entries = list_models(models, weights_root)
    names = [name for name, _ in entries]
    problems = {name: _problems(node, weights_root, classes) for name, node in entries}
    usable = [name for name in names if not problems[name]] if models == "all" else names
    found = [f"models names {name} twice" for name in dict.fromkeys(names) if names.count(name) > 1]
    if len(usable) < 2:
        given = models if isinstance(models, str) else f"[{','.join(names)}]"
        found.append(
            f"models={given}: {len(usable)} usable where at least 2 can be compared; such as "
            f"models=[resnet20,resnet56], or models=all for every checkpoint in weights_root={weights_root}"
        )
    return found if models == "all" else found + _with_training_command(problems, weights_root)


def _problems(node: Any, weights_root: str, classes: int | None) -> list[str]:
    return zoo.check(node, weights_root=weights_root, classes=classes, frozen=True)


def _with_training_command(problems: Mapping[str, list[str]], root: str) -> list[str]:
    """All problems; networks that main_pretrain.py has not made yet are named with the command that does."""
    names = {name: PRETRAINED.fullmatch(name) for name, those in problems.items() if those}
    absent = {name: parts for name, parts in names.items() if parts and not find(name, Path(root))}
    found = [text for name, those in problems.items() if name not in absent for text in those]
    for dataset in dict.fromkeys(parts["dataset"] for parts in absent.values()):
        these = {name: parts for name, parts in absent.items() if parts["dataset"] == dataset}
        models, seeds = (",".join(dict.fromkeys(parts[key] for parts in these.values())) for key in ("model", "seed"))
        found.append(
            f"{', '.join(these)}: not in weights_root={root}. This trains {'them' if len(these) > 1 else 'it'}:\n"
            f"python main_pretrain.py{' -m' * (len(these) > 1)} model={models} dataset={dataset} seed={seeds}"
            + (f" weights_root={root}" if root != "weights" else "")
        )
    return found


def list_checkpoints(cfg: DictConfig) -> list[Path]:
    """The local files that the models come from."""
    usable = [
        node for _, node in list_models(cfg.models, cfg.weights_root) if not _problems(node, cfg.weights_root, None)
    ]
    files = (locate(node, Path(cfg.weights_root))[1] for node in usable)
    return [file for file in files if file is not None]


def open_models(cfg: DictConfig, data: Data) -> dict[str, Model]:
    """Build the models; `models=all` leaves out those that do not fit the data, otherwise ConfigError names them."""
    models: dict[str, Model] = {}
    misfits = []
    for name, node in list_models(cfg.models, cfg.weights_root):
        if cfg.models == "all" and (reason := _misfit(node, cfg, data)):
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


def _misfit(file: str, cfg: DictConfig, data: Data) -> str | None:
    """Why a checkpoint cannot be compared on these data, or None."""
    if problems := _problems(file, cfg.weights_root, data.classes):
        return problems[0]
    has_card = Path(file).suffix == ".safetensors" and is_kind(file, "student")
    trained_on = read_card(file, "student").get("dataset", data.name) if has_card else data.name
    return None if trained_on == data.name else f"it was trained on {trained_on}"


def randomize(model: Model, seed: int) -> Model:
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
