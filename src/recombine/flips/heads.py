"""Classifiers for other classes: any two networks of a library can be compared on any folder of images.

Distilled networks have two classifiers, whose mean are the logits: each is fitted on what enters it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import cast

import torch
from torch import Tensor, nn

from recombine.core.errors import ConfigError
from recombine.core.types import Loader
from recombine.engine.evaluate import autocast, evaluating
from recombine.engine.logistic_regression import logistic_regression
from recombine.models import Model
from recombine.models.model import head_names, pooled

__all__ = ["find_heads", "fit_heads"]

Head = nn.Linear | nn.Conv2d


def fit_heads(model: Model, loader: Loader, precision: str = "fp32") -> Model:
    """Fit the classifiers of `model` to the samples of `loader` on its frozen features, in place; deterministic."""
    heads: list[Head] = []
    inputs_of: dict[nn.Module, Tensor] = {}
    features, labels = [], []

    def record(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        inputs_of[layer] = pooled(inputs[0], layer)

    with evaluating(model):
        for batch in loader.epoch(0):
            heads = heads or find_heads(model, batch.images[:2])
            with autocast(precision, batch.images.device), _hooked(heads, record):
                model(batch.images)
            features.append([inputs_of[head] for head in heads])
            labels.append(batch.labels.clone())
    for head, parts in zip(heads, zip(*features, strict=True), strict=True):
        weight, bias = logistic_regression(torch.cat(parts), torch.cat(labels), model.classes)
        with torch.no_grad():
            head.weight.copy_(weight.view_as(head.weight))
            if head.bias is not None:
                head.bias.copy_(bias)
    model.tag = f"{model.tag}, fitted"
    return model


def find_heads(model: Model, images: Tensor) -> list[Head]:
    """The last layers with an output for each class whose mean output is the logits, whatever these outputs are.

    Raises ConfigError for a network that makes its logits in another way: fitted layers would not fit its logits.
    """
    layers = [cast(Head, model.net.get_submodule(name)) for name in head_names(model.net, model.classes)]
    random = torch.Generator().manual_seed(0)
    outputs: dict[nn.Module, Tensor] = {}

    def replace(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        outputs[layer] = torch.randn(output.shape, generator=random).to(output)
        return outputs[layer].clone()  # what follows may work in place

    with evaluating(model), _hooked(layers, replace):
        logits = model(images)
    called = [layer for layer in layers if layer in outputs]
    for first in reversed(range(len(called))):
        last = [pooled(outputs[layer], layer) for layer in called[first:]]
        alike = all(output.shape == logits.shape for output in last)
        if alike and torch.allclose(torch.stack(last).mean(0), logits, rtol=1e-3, atol=1e-4):
            return called[first:]
    raise ConfigError(
        f"fit_heads=true cannot fit the classifier of {model.name}: its logits are not the mean of its layers with "
        f"{model.classes} outputs; train it instead (main_pretrain.py model=any model.name={model.name} freeze=true) "
        "and name the result, or choose another network"
    )


@contextmanager
def _hooked(layers: Sequence[nn.Module], hook: Callable) -> Iterator[None]:
    """Call `hook(layer, inputs, output)` in each forward pass of the block; what it returns is the layer's output."""
    handles = [layer.register_forward_hook(hook) for layer in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
