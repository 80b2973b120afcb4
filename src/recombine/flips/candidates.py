"""Which models are compared: names, config nodes, or every checkpoint of a folder that fits the data."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recombine import models as zoo
from recombine.core.errors import ConfigError
from recombine.core.files import config_files
from recombine.models.libraries import download_size, expand_pattern, library_classes
from recombine.models.registry import PRETRAINED
from recombine.models.resolve import locate
from recombine.models.serialization import is_kind, read_card
from recombine.models.weight_files import SUFFIXES, find, stem

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from recombine.data import Data
    from recombine.models import Model

__all__ = ["check_models", "choose_models", "list_checkpoints", "open_model", "randomize"]

log = logging.getLogger(__name__)
OTHER_CLASSES = (
    "give the label of each class among theirs with dataset.label_map={<class>: <label>}, call the classes as the "
    "networks do, or let classifiers be fitted to the training images with fit_heads=true"
)
"""What mends it that networks were trained for other classes."""


def list_models(models: str | Sequence[Any], weights_root: str, exclude: Sequence[str] = ()) -> list[tuple[str, Any]]:
    """The names that models have in rows, each with the name, file or node that the model is built from.

    A pattern such as timm:resnet* stands for all of the library's networks with weights, but those that one of
    `exclude` matches or that the list names itself.
    """
    if models == "all":
        root = Path(weights_root)
        files = sorted(root.iterdir()) if root.is_dir() else []
        return [(stem(file), str(file)) for file in files if file.suffix in SUFFIXES]
    nodes = [models] if isinstance(models, str) else models
    given = [(node if isinstance(node, str) else node["name"], node) for node in nodes]
    named = {name for name, _ in given}
    found: list[tuple[str, Any]] = []
    for name, node in given:
        if "*" not in name:
            found.append((name, node))
            continue
        fitting = [each for each in expand_pattern(name) if not any(fnmatch(each, text) for text in exclude)]
        found += [(each, each) for each in fitting if each not in named]
        named.update(fitting)
    return found


def check_models(
    models: str | Sequence[Any], weights_root: str, classes: int | None, exclude: Sequence[str] = ()
) -> list[str]:
    """Everything wrong with the models to be compared, without building any."""
    entries = list_models(models, weights_root, exclude)
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
    """All problems; networks that main_pretrain.py has not made yet come with the command that trains them."""
    names = {name: PRETRAINED.fullmatch(name) for name, those in problems.items() if those}
    known = config_files("dataset")
    absent = {
        name: parts
        for name, parts in names.items()
        if parts and parts["dataset"] in known and not find(name, Path(root))
    }
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
    entries = list_models(cfg.models, cfg.weights_root, cfg.exclude)
    usable = [node for _, node in entries if not _problems(node, cfg.weights_root, None)]
    files = (locate(node, Path(cfg.weights_root))[1] for node in usable)
    return [file for file in files if file is not None]


def choose_models(cfg: DictConfig, data: Data) -> dict[str, Any]:
    """Names and nodes of the models that are compared; `models=all` leaves out those that do not fit the data.

    Raises ConfigError where fewer than two do. Says how much has to be downloaded.
    """
    from recombine.flips.outputs import match_outputs
    from recombine.models.factory import stored_names

    chosen: dict[str, Any] = {}
    misfits = []
    for name, node in list_models(cfg.models, cfg.weights_root, cfg.exclude):
        if cfg.models == "all" and (reason := _misfit(node, cfg, data)):
            log.info("%s is left out: %s", name, reason)
            continue
        chosen[name] = node
        spec, file = locate(node, Path(cfg.weights_root))
        classes = spec.classes or (None if file else library_classes(spec.architecture))
        if classes and not cfg.fit_heads and match_outputs(stored_names(file, classes), classes, data) is None:
            misfits.append(_misfit_text(name, classes, data))
    misfits += [OTHER_CLASSES] * bool(misfits)
    if len(chosen) < 2:
        misfits = [f"models=all: only {', '.join(chosen) or 'none'} of {cfg.weights_root} fits dataset {data.name}"]
    if misfits:
        raise ConfigError(misfits)
    _tell_downloads(cfg, chosen)
    return chosen


def _tell_downloads(cfg: DictConfig, chosen: Mapping[str, Any]) -> None:
    """The size of weights that are not on this machine yet."""
    sizes = {}
    for name, node in chosen.items():
        spec, file = locate(node, Path(cfg.weights_root))
        if file is None and spec.weights == "pretrained":
            sizes[name] = download_size(spec.architecture)
    absent = [size for size in sizes.values() if size]
    if absent:
        log.info("the weights of %d networks are downloaded: about %.1f GB", len(absent), sum(absent) / 1e9)


def open_model(cfg: DictConfig, data: Data, node: Any, *, copy: bool = False) -> Model:
    """Build a model, or a random copy of it, with the classes of the data: these are chosen among its own, or fitted.

    Raises ConfigError where it has other classes than the data.
    """
    from recombine.flips.heads import fit_heads
    from recombine.flips.outputs import RestrictedOutputs, match_outputs

    model = zoo.build(node, weights_root=cfg.weights_root, seed=cfg.seed)
    outputs = match_outputs(model.class_names, model.classes, data)
    if outputs is None and not cfg.fit_heads:
        raise ConfigError([_misfit_text(model.name, model.classes, data), OTHER_CLASSES])
    if outputs is None:
        model = zoo.build(node, classes=data.classes, weights_root=cfg.weights_root, seed=cfg.seed)
        images = data.loader("train", cfg.eval_batch_size, train=False, size=model.canvas)
        model = model if copy else fit_heads(model.to(data.device), images, cfg.engine.precision)
        images.close()
    model = randomize(model, cfg.seed) if copy else model
    if outputs is not None and list(outputs.items()) != [(label, label) for label in range(model.classes)]:
        model.net, model.classes = RestrictedOutputs(model.net, outputs, data.classes), data.classes
    return model


def _misfit_text(name: str, classes: int, data: Data) -> str:
    return f"model {name} has {classes} classes, dataset {data.name} has {data.classes}"


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
