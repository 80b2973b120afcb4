"""From a name, a checkpoint path or a config node to what has to be built and the file its weights come from."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from recombine.core.errors import ConfigError, did_you_mean
from recombine.models import weights, zoo
from recombine.models.registry import config_file, config_names

__all__ = ["Spec", "locate"]


@dataclass(frozen=True)
class Spec:
    """A model node: what to build, how its images are prepared (None: as the library says), where its weights are."""

    name: str
    architecture: str
    """A built-in one (see `zoo.BUILT_IN`), `timm:<name>`, `torchvision:<name>` or `hf-hub:<repository>`."""
    weights: str | None = None
    """None: random; `pretrained`: the file of that name in weights_root, else the library's own; or a file."""
    classes: int | None = None
    """Outputs of the stored weights."""
    size: int | None = None
    crop_pct: float | None = None
    mean: list[float] | None = None
    std: list[float] | None = None
    interpolation: str | None = None
    claimed_accuracy: float | None = None
    options: dict[str, Any] = field(default_factory=dict)
    """Every other key of the node: arguments of the architecture."""

    def preprocessing(self) -> dict[str, Any]:
        """The preprocessing settings that are given."""
        keys = ("size", "crop_pct", "mean", "std", "interpolation")
        return {key: getattr(self, key) for key in keys if getattr(self, key) is not None}


def plain(node: Any) -> Any:
    """Config containers as dict and list, recursively."""
    if isinstance(node, Mapping):
        return {str(key): plain(value) for key, value in node.items()}
    if isinstance(node, Sequence) and not isinstance(node, str):
        return [plain(value) for value in node]
    return node


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
    if about := weights.description(path):
        return described(about, path)
    if weights.stem(path) in config_names():
        return dataclasses.replace(from_config(weights.stem(path)), weights=str(path))
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
            dataclasses.replace(spec, weights="pretrained") if not spec.weights and weights.find(name, root) else spec
        )
    if name.endswith(weights.SUFFIXES):
        return from_file(Path(name) if Path(name).is_file() else root / name)
    file = None if ":" in name else weights.find(name, root)
    if file and (about := weights.description(file)):
        return described(about, file)
    if architecture := zoo.library_name(name):
        return Spec(name, architecture, "pretrained")
    if file:
        return from_file(file)
    known = [*config_names(), *zoo.library_names()]
    near = did_you_mean(name.rpartition(":")[2], known, show=0)
    raise ConfigError(
        f"unknown model {name!r}{near and f' ({near})'}. Allowed: a name in config/model, "
        f"timm:<name>, torchvision:<name>, hf-hub:<repository>, a checkpoint file, or the name of one in {root} "
        f"(weights_root)"
    )


def overlay(spec: Spec, given: Mapping[str, Any]) -> Spec:
    """`spec` with the given keys laid over its fields and options."""
    base = {f.name: getattr(spec, f.name) for f in dataclasses.fields(Spec) if f.name != "options"}
    return from_mapping({**spec.options, **base, **given})


def resolve(model: str | Mapping[str, Any], root: Path) -> tuple[Spec, dict[str, Any]]:
    """The Spec of a name or node, and what a node without architecture lays over the Spec of its name."""
    node = plain(model)
    if isinstance(node, str):
        return from_name(node, root), {}
    if not isinstance(node, dict) or not isinstance(node.get("name"), str):
        raise ConfigError(f"a model is a name or a node with a name, not {node!r}; such as model=resnet20")
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
    Raises ConfigError for unknown names and missing or unfitting files.
    """
    spec, given = resolve(model, root)
    if spec.weights is None:
        return spec, None
    file = weights_file(spec, root)
    about = weights.description(file) if file else None
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
        file = weights.find(spec.name, root)
        if file is None and zoo.is_library(spec.architecture):
            return None
        sought = f"{spec.name}.safetensors (.th, .pt, .pth, .bin) or {spec.name}-<8 hex digits>.* in {root}"
    else:
        file = next((p for p in (Path(spec.weights), root / spec.weights) if p.is_file()), None)
        sought = f"{spec.weights} and {root / spec.weights}"
    if file is None:
        raise ConfigError(
            f"no weights for model {spec.name}: looked for {sought}; mend with weights_root=<folder>, "
            f"model.weights=<file>, or model.weights=null for random ones"
        )
    return file
