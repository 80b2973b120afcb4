"""The frozen networks of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from recombine import models as zoo
from recombine.core.errors import ConfigError
from recombine.data import Data
from recombine.models import Model
from recombine.models.freeze import digest
from recombine.pnc.clone.batchnorm import find_batchnorms, recalibrate
from recombine.pnc.data import CloneData
from recombine.pnc.method_settings import CloningSettings, PncMethodSettings
from recombine.pnc.settings import PncSettings
from recombine.pnc.sources import list_sources
from recombine.run.run import Run

__all__ = ["build_frozen", "build_source_networks", "build_target", "build_untrained", "reinitialise"]


def build_target(settings: PncSettings, run: Run, data: Data) -> Model:
    """The target, frozen; ConfigError if its classes are not those of its data."""
    return _build(settings.target.model_dump(exclude_unset=True), data, "target", settings.weights_root, run)


def build_source_networks(
    settings: PncSettings, method: PncMethodSettings, run: Run, pairs: Sequence[CloneData], target: Model
) -> list[Model]:
    """The network of each source, frozen; ConfigError if its classes are not those of its data, or it is the target."""
    sources = list_sources(settings.model_dump(exclude_unset=True))
    networks = [
        _build(source.model, pair.source, "source", settings.weights_root, run)
        for source, pair in zip(sources, pairs, strict=True)
    ]
    if same := [network.name for network in networks if digest(network) == digest(target)]:
        raise ConfigError(
            f"source {same[0]} is the target itself, weight for weight; give another network as source or as target"
        )
    if isinstance(method, CloningSettings) and method.source_weights == "random":
        size = settings.eval_batch_size
        return [reinitialise(net, pair, run.seed, size) for net, pair in zip(networks, pairs, strict=True)]
    return networks


def build_untrained(model: Model, classes: int, seed: int) -> Model:
    """A network of the same architecture and preprocessing with weights drawn from `seed`."""
    node = {**model.options, **model.preprocess.settings(), "architecture": model.architecture, "weights": None}
    return zoo.build({**node, "name": f"{model.name}-untrained"}, classes=classes, seed=seed)


def reinitialise(source: Model, data: CloneData, seed: int, batch_size: int) -> Model:
    """The source with random weights in place of what it learned: the control of what these are worth.

    Its BatchNorm statistics are of the images it was trained on: with those of a start, 0 and 1, no network is of use.
    """
    device = next(source.parameters()).device
    net = build_untrained(source, source.classes, seed).to(device).eval().requires_grad_(False)
    images = data.source.loader("train", batch_size, train=False, indices=None, size=net.canvas, augment=False)

    def forward(batch: Tensor) -> None:
        net(batch)

    recalibrate(find_batchnorms(net), forward, images)
    return net


def _build(node: Mapping[str, Any] | str, data: Data, role: str, weights_root: str, run: Run) -> Model:
    model = build_frozen(node, weights_root, run)
    if model.classes != data.classes:
        raise ConfigError(
            f"{role} {model.name} has {model.classes} classes and its data, {data.name}, {data.classes}; choose "
            f"the data it was trained on (dataset= for the target, dataset@source_data= for the source)"
        )
    return model


def build_frozen(node: Mapping[str, Any] | str, weights_root: str, run: Run) -> Model:
    """A network as it is used here: on the run's device, in eval mode, without gradients."""
    model = zoo.build(node, weights_root=weights_root, seed=run.seed)
    return model.to(run.device).eval().requires_grad_(False)
