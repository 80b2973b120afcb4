"""Features of networks at module paths, read in the pass that gives their logits."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Size, Tensor, nn

from recombine.core.errors import ConfigError, did_you_mean
from recombine.engine.evaluate import evaluating
from recombine.models import Model

__all__ = ["Place", "feature_maps", "find_places", "read_features"]

IMAGES = 2
"""In the batch by which a network's modules are looked at."""


class Place(NamedTuple):
    """A module whose output is read as features."""

    name: str
    """Its path."""
    shape: Size
    """Of its features of one image: maps [1, C, H, W], tokens [1, N, D], vectors [1, D]."""
    channels_last: bool
    """Whether the module gives maps as [B, H, W, C], as in Swin: they are read as [B, C, H, W]."""


def read_features(model: Model, images: Tensor, places: Sequence[Place] | None) -> tuple[list[Tensor], Tensor]:
    """float32 features at these places, or without any what enters the classifier; and the logits of the same pass."""
    if places is None:
        features, logits = model.features_and_logits(images)
        return [features], logits
    with _outputs(model.net, [place.name for place in places]) as kept:
        logits = model(images)
    found = [(place, kept[place.name][-1]) for place in places]
    return [_channels_first(place, each.float()) for place, each in found if each is not None], logits


def _channels_first(place: Place, features: Tensor) -> Tensor:
    return features.movedim(-1, 1) if place.channels_last else features


@contextmanager
def _outputs(net: nn.Module, modules: Sequence[str]) -> Iterator[dict[str, list[Tensor | None]]]:
    """What these modules give while the block runs, in the order of their calls: copies, which no later layer changes;
    None for what is no tensor.
    """
    kept: dict[str, list[Tensor | None]] = {name: [] for name in modules}

    def keep(name: str, output: Any) -> None:
        kept[name].append(output.clone() if isinstance(output, Tensor) else None)

    handles = [
        net.get_submodule(name).register_forward_hook(lambda _, __, output, name=name: keep(name, output))
        for name in kept
    ]
    try:
        yield kept
    finally:
        for handle in handles:
            handle.remove()


def find_places(model: Model, modules: Sequence[str] | None, setting: str) -> list[Place] | None:
    """Where these modules' features are read, None without modules: what enters the classifier.

    Raises ConfigError naming `setting` for a path that does not give one tensor with a value for each image.
    """
    if modules is None:
        return None
    known = [name for name, _ in model.net.named_modules() if name]
    if absent := next((name for name in modules if name not in known), None):
        raise ConfigError(f"{setting}: {model.name} has no module {absent}; {did_you_mean(absent, known)}")
    outputs = _run_once(model, modules)
    return [_place(model, name, outputs[name], setting) for name in modules]


def _place(model: Model, name: str, outputs: Sequence[Tensor | None], setting: str) -> Place:
    (output,) = outputs if len(outputs) == 1 else (None,)
    if output is None or output.ndim < 2 or len(output) != IMAGES:
        told = (
            f"is called {len(outputs)} times"
            if len(outputs) != 1
            else "gives more than one tensor"
            if output is None
            else f"gives {len(output)} values for {IMAGES} images"
        )
        raise ConfigError(f"{setting}: {name} of {model.name} {told}; name a module that gives one tensor once")
    last = output.ndim == 4 and _channel_axis(output) == 3
    return Place(name, (output.movedim(-1, 1) if last else output)[:1].shape, last)


def _channel_axis(maps: Tensor) -> int:
    """Which axis of the maps of two images holds the channels, 1 or 3: height and width are equal.

    Where all three are, the axis along which it shows least that the images differ in their upper left quarter alone.
    """
    _, first, second, third = maps.shape
    if first != second or second != third:
        return 3 if first == second else 1
    change = (maps[0] - maps[1]).abs()
    return min((1, 3), key=lambda axis: _imbalance(change.movedim(axis - 1, 0)))


def _imbalance(change: Tensor) -> float:
    """By how much more the first half of the first axis changes than the second one, in parts of both."""
    first, second = (float(half.sum()) for half in change.tensor_split(2))
    return abs(first - second) / max(first + second, 1e-12)


def feature_maps(model: Model, most: int = 8) -> list[str]:
    """Paths of the outermost modules that give maps, `most` of them."""
    outputs = _run_once(model, [name for name, _ in model.net.named_modules() if name])
    maps = [name for name, found in outputs.items() if len(found) == 1 and found[0] is not None and found[0].ndim == 4]
    return [name for name in maps if not any(name.startswith(f"{other}.") for other in maps)][:most]


def _run_once(model: Model, modules: Sequence[str]) -> dict[str, list[Tensor | None]]:
    """What the modules give for two random images that differ in their upper left quarter."""
    random, side = torch.Generator().manual_seed(0), model.size
    images = torch.randint(0, 256, (1, 3, side, side), dtype=torch.uint8, generator=random).repeat(IMAGES, 1, 1, 1)
    images[1, :, : side // 2, : side // 2] = 255 - images[1, :, : side // 2, : side // 2]
    with evaluating(model), _outputs(model.net, modules) as kept:
        model(images.to(next(model.parameters()).device))
    return kept
