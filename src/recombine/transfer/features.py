"""Features of networks at module paths, read in the pass that gives their logits."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Size, Tensor, nn

from recombine.core.errors import ConfigError, did_you_mean
from recombine.engine.evaluate import evaluating
from recombine.models import Model

__all__ = ["feature_maps", "feature_shapes", "read_features"]


def read_features(model: Model, images: Tensor, modules: Sequence[str] | None) -> tuple[list[Tensor], Tensor]:
    """float32 outputs of these modules, or without any what enters the classifier; and the logits of the same pass."""
    if modules is None:
        features, logits = model.features_and_logits(images)
        return [features], logits
    with _outputs(model.net, modules) as kept:  # copies, which no layer after them changes in place
        logits = model(images)
    found = [kept[name][-1] for name in modules]
    return [each.float() for each in found if each is not None], logits


@contextmanager
def _outputs(net: nn.Module, modules: Sequence[str]) -> Iterator[dict[str, list[Tensor | None]]]:
    """What these modules give while the block runs, in the order of their calls."""
    kept: dict[str, list[Tensor | None]] = {name: [] for name in modules}
    handles = [
        net.get_submodule(name).register_forward_hook(lambda _, __, output, name=name: kept[name].append(_copy(output)))
        for name in kept
    ]
    try:
        yield kept
    finally:
        for handle in handles:
            handle.remove()


def _copy(output: Any) -> Tensor | None:
    """A tensor as the module gave it; None for anything else."""
    return output.clone() if isinstance(output, Tensor) else None


def feature_shapes(model: Model, modules: Sequence[str] | None, setting: str) -> list[Size]:
    """Shapes of `read_features` of one image; ConfigError naming `setting` for a path that gives no single tensor."""
    if modules is None:
        return [Size((1, model.width))]
    known = [name for name, _ in model.net.named_modules() if name]
    if absent := next((name for name in modules if name not in known), None):
        raise ConfigError(f"{setting}: {model.name} has no module {absent}; {did_you_mean(absent, known)}")
    shapes = _run_once(model, modules)
    for name, found in shapes.items():
        if len(found) != 1 or not isinstance(found[0], Size):
            told = f"is called {len(found)} times" if len(found) != 1 else "gives more than one tensor"
            raise ConfigError(f"{setting}: {name} of {model.name} {told}; name a module that gives one tensor once")
    return [Size(shapes[name][0] or ()) for name in modules]


def feature_maps(model: Model, most: int = 8) -> list[str]:
    """Paths of the outermost modules that give maps [B, C, H, W], `most` of them."""
    shapes = _run_once(model, [name for name, _ in model.net.named_modules() if name])
    maps = [name for name, found in shapes.items() if len(found) == 1 and len(found[0] or ()) == 4]
    return [name for name in maps if not any(name.startswith(f"{other}.") for other in maps)][:most]


def _run_once(model: Model, modules: Sequence[str]) -> dict[str, list[Size | None]]:
    """Shapes of what the modules give for one image, None for what is no tensor."""
    device = next(model.parameters()).device
    image = torch.zeros(1, 3, model.size, model.size, dtype=torch.uint8, device=device)
    with evaluating(model), _outputs(model.net, modules) as kept:
        model(image)
    return {name: [None if each is None else each.shape for each in found] for name, found in kept.items()}
