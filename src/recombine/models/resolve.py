"""From a name, a checkpoint path or a config node to what has to be built and the file its weights come from."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from recombine.core.errors import ConfigError, did_you_mean
from recombine.core.settings import to_dict
from recombine.models import weight_files
from recombine.models.libraries import library_name, library_names
from recombine.models.registry import config_file, config_names, is_library, training_hint
from recombine.models.serialization import kind_of, plain_damage

__all__ = ["Spec", "locate", "preprocessing", "resolve"]


@dataclass(frozen=True)
class Spec:
    """A model node: what to build, how its images are prepared (None: as the library says), where its weights are."""

    name: str
    architecture: str
    """A built-in one (see `architectures.BUILT_IN`), `timm:<name>`, `torchvision:<name>`, `hf-hub:<repository>`, or the
    dotted name of somebody's own class, which a node gives as `_target_`."""
    weights: str | None = None
    """None: random; `pretrained`: the file of that name in weights_root, else the library's own; or a file."""
    backbone_weights: str | None = None
    """The classifier whose layers a segmentation network or detector without weights starts with, by any name."""
    use_ema: bool | None = None
    """Whether a file's average of weights over the training is taken; None: where it has one."""
    classes: int | None = None
    """Outputs of the stored weights; None: as the file has."""
    size: int | None = None
    crop_pct: float | None = None
    mean: list[float] | None = None
    std: list[float] | None = None
    interpolation: str | None = None
    claimed_accuracy: float | None = None
    options: dict[str, Any] = field(default_factory=dict)
    """Every other key of the node: arguments of the architecture."""


def from_mapping(node: Mapping[str, Any]) -> Spec:
    """A Spec from a node with name and architecture; every key that is no field of Spec is an architecture option."""
    known = {f.name for f in dataclasses.fields(Spec)} - {"options"}
    options = {key: value for key, value in node.items() if key not in known}
    return Spec(options=options, **{key: node[key] for key in known if key in node})


def from_config(name: str) -> Spec:
    """The node of config/model/<name>.yaml."""
    return from_mapping(yaml.safe_load(config_file(name).read_text()))


def from_file(path: Path) -> Spec:
    """A checkpoint that describes itself or whose file name is one of config/model; ConfigError for any other."""
    if not path.is_file():
        raise ConfigError(f"there is no checkpoint {path}")
    if about := weight_files.description(path):
        return described(about, path)
    if weight_files.stem(path) in config_names():
        return dataclasses.replace(from_config(weight_files.stem(path)), weights=str(path))
    if (kind := kind_of(path)) in ("patch", "clone"):
        raise ConfigError(f"{path} is a {kind}, no network; give it beside the network that it was made for (--{kind})")
    raise ConfigError(
        f"{path} does not say which network it belongs to; name the architecture too, "
        f"such as model=resnet20 model.weights={path}"
    )


def described(about: Mapping[str, Any], path: Path) -> Spec:
    """The Spec inside a file written by `save`."""
    node = {key: value for key, value in about.items() if key not in ("options", "tag")}
    return from_mapping({**about["options"], **node, "weights": str(path)})


def from_name(name: str, root: Path) -> Spec:
    """A name under config/model, a checkpoint path, a file in `root`, or a timm or torchvision name, in this order."""
    if name in config_names():
        spec = from_config(name)
        # A name alone never asked for random weights, so trained ones are taken where they exist.
        return (
            dataclasses.replace(spec, weights="pretrained")
            if not spec.weights and weight_files.find(name, root)
            else spec
        )
    if name.endswith(weight_files.SUFFIXES):
        return from_file(Path(name) if Path(name).is_file() else root / name)
    file = None if ":" in name else weight_files.find(name, root)
    if file and (about := weight_files.description(file)):
        return described(about, file)
    ours = bool(training_hint(name, str(root)))  # no library has such names, and asking one takes seconds
    if not ours and (architecture := library_name(name)):
        return Spec(name, architecture, "pretrained")
    if file:
        return from_file(file)
    known = [] if ours else [*config_names(), *library_names()]
    suggestion = did_you_mean(name.rpartition(":")[2], known, show=0)
    raise ConfigError(
        f"unknown model {name!r}{suggestion and f' ({suggestion})'}. Allowed: a name in config/model, "
        f"timm:<name>, torchvision:<name>, hf-hub:<repository>, a checkpoint file, or the name of one in {root} "
        f"(weights_root)"
    )


def overlay(spec: Spec, given: Mapping[str, Any]) -> Spec:
    """`spec` with the given keys laid over its fields and options."""
    base = {f.name: getattr(spec, f.name) for f in dataclasses.fields(Spec) if f.name != "options"}
    return from_mapping({**spec.options, **base, **given})


def resolve(model: str | Mapping[str, Any], root: Path) -> tuple[Spec, dict[str, Any]]:
    """The Spec of a name or node, and what a node without architecture lays over the Spec of its name."""
    node = to_dict(model)
    if isinstance(node, str):
        return from_name(node, root), {}
    if not isinstance(node, dict) or not isinstance(node.get("name"), str):
        raise ConfigError(f"a model is a name or a node with a name, not {node!r}; such as model=resnet20")
    if own := node.pop("_target_", None):
        node["architecture"] = own
    if node.get("architecture"):
        return from_mapping(node), {}
    spec = from_name(node.pop("name"), root)
    given = {key: value for key, value in node.items() if value is not None}
    if "weights" in node and not (node["weights"] == "pretrained" and spec.weights):
        spec = dataclasses.replace(spec, weights=node["weights"])
    given.pop("weights", None)
    return overlay(spec, given), given


def locate(model: str | Mapping[str, Any], root: Path) -> tuple[Spec, Path | None]:
    """The Spec and its checkpoint file (None: random, or the library's own weights).

    A file written by `save` describes itself: its options, classes and preprocessing replace those of config/model.
    Raises ConfigError for unknown names and missing or unfitting weight_files.
    """
    spec, given = resolve(model, root)
    if spec.weights is None:
        return spec, None
    file = weights_file(spec, root)
    about = weight_files.description(file) if file else None
    if file is None or about is None:
        return spec, file
    if about["architecture"] != spec.architecture:
        raise ConfigError(
            f"{file} holds a {about['architecture']}, but model {spec.name} is a {spec.architecture}; "
            f"name the file itself as the model, or another one with model.weights=<file>"
        )
    return overlay(described(about, file), {**given, "name": spec.name}), file


def weights_file(spec: Spec, root: Path) -> Path | None:
    """The file that `spec.weights` means; None for a library's own weights; ConfigError if it is missing."""
    if spec.weights == "pretrained":
        file = weight_files.find(spec.name, root)
        if file is None and is_library(spec.architecture):
            return None
        sought = f"{spec.name}.safetensors (.th, .pt, .pth, .bin) or {spec.name}-<8 hex digits>.* in {root}"
    else:
        assert spec.weights is not None, "random weights have no file"
        file = next((p for p in (Path(spec.weights), root / spec.weights) if p.is_file()), None)
        sought = f"{spec.weights} and {root / spec.weights}"
    if file is None:
        raise ConfigError(
            f"no weights for model {spec.name}: looked for {sought}; mend with weights_root=<folder>, "
            f"model.weights=<file>, or model.weights=null for random ones"
        )
    if damage := plain_damage(file):
        raise ConfigError(f"{file} {damage}")
    return file


def preprocessing(spec: Spec, library: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of `Preprocess`: what the node gives, else what the library has; ConfigError for a gap."""
    keys = ("size", "crop_pct", "mean", "std", "interpolation")
    settings = {**library, **{key: getattr(spec, key) for key in keys if getattr(spec, key) is not None}}
    missing = [f"model.{key}" for key in ("size", "mean", "std") if key not in settings]
    if missing:
        raise ConfigError(f"model {spec.name} does not say how to prepare images: set {', '.join(missing)}")
    for key in ("mean", "std"):
        if isinstance(settings[key], (int, float)):
            settings[key] = [settings[key]] * 3
    return settings
