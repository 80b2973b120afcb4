"""Classifiers for somebody's own classes: any two networks of a library can be compared on any folder of images."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from src.core.evaluate import autocast, evaluating
from src.core.types import Loader
from src.models import Model
from src.models.model import find_head

__all__ = ["fit_head", "logistic_regression"]


def fit_head(model: Model, loader: Loader, precision: str = "fp32") -> Model:
    """Fit the classifier of `model` to the samples of `loader` on its frozen features, in place; deterministic."""
    features, labels = [], []
    with evaluating(model):
        for batch in loader.epoch(0):
            with autocast(precision, batch.images.device):
                features.append(model.features(batch.images))
            labels.append(batch.labels.clone())
    weight, bias = logistic_regression(torch.cat(features), torch.cat(labels), model.classes)
    head = model.net.get_submodule(find_head(model.net, model.classes))
    with torch.no_grad():
        head.weight.copy_(weight.view_as(head.weight))
        if head.bias is not None:
            head.bias.copy_(bias)
    model.tag = f"{model.tag}, fitted"
    return model


def logistic_regression(
    features: Tensor, labels: Tensor, classes: int, penalty: float = 1e-3, steps: int = 100
) -> tuple[Tensor, Tensor]:
    """Weight [C, D] and bias [C] of a softmax regression on features [n, D] by L-BFGS.

    `penalty` is half the weight of ||W||^2 for standardised features, in a mean over the samples.
    """
    mean, std = features.mean(0), features.std(0).clamp(min=1e-6)
    x = (features - mean) / std
    weight = torch.zeros(classes, x.shape[1], device=x.device, requires_grad=True)
    bias = torch.zeros(classes, device=x.device, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=steps, line_search_fn="strong_wolfe")

    def objective() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(x @ weight.T + bias, labels) + penalty * weight.square().sum()
        loss.backward()
        return loss

    optimizer.step(objective)
    with torch.no_grad():
        plain = weight / std
        return plain, bias - plain @ mean
