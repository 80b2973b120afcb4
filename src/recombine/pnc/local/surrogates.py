"""Local linear models of a frozen network around every sample, computed once, and the loss that compares with them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass

import torch
from torch import Tensor

from recombine.core.distributed import gather_by_index
from recombine.core.types import Loader
from recombine.engine.evaluate import autocast, evaluating
from recombine.models import Model
from recombine.pnc.local.neighbourhood import Neighbourhood, Purpose, View, fit_ridge
from recombine.pnc.local.segments import Segments

__all__ = ["CHUNK", "LimeModels", "LocalModels", "RefittedLimeModels", "fit_linear_models", "localization_loss"]

LocalModels = Callable[[Tensor, View], Tensor]
"""From positions in the split [B] and a view of the images to local models [B, Np + 1, O]."""
CHUNK = 2048  # blanked images in one forward pass


@torch.no_grad()
def fit_linear_models(
    net: Callable[[Tensor], Tensor],
    view: View,
    vectors: Tensor,
    settings: Neighbourhood,
    *,
    columns: Sequence[int] | Tensor | None = None,
    chunk: int = CHUNK,
) -> Tensor:
    """Coefficients float64 [B, Np + 1, O] of `net`'s outputs `columns` (all if None) around each image.

    `net` maps normalised images to logits [., C] and must be in eval mode; `view` of B images;
    `vectors` bool [B, K, Np]. At most `chunk` blanked images exist at a time.
    """
    count = vectors.shape[1]
    selected = None if columns is None else torch.as_tensor(columns, dtype=torch.int64, device=view.images.device)
    rows, width = max(1, chunk // count), min(chunk, count)
    thetas = []
    for batch, drawn in zip(view.split(rows), vectors.split(rows), strict=True):
        parts = [(net(settings.blank(batch, part)), part.shape[:2]) for part in drawn.split(width, 1)]
        outputs = torch.cat([settings.outputs(logits, selected).unflatten(0, shape) for logits, shape in parts], 1)
        thetas.append(fit_ridge(drawn, settings.weights(drawn, batch.counts), outputs, settings.alpha))
    return torch.cat(thetas)


@dataclass(frozen=True, eq=False)
class LimeModels:
    """The linear models g_i of all samples; calling it looks up those of a batch without waiting for the device."""

    index: Tensor
    """int64 [N], increasing positions in the split."""
    theta: Tensor
    """float32 [N, Np + 1, O], the intercept last."""

    @classmethod
    def fit(
        cls,
        source: Model,
        loader: Loader,
        columns: Sequence[int],
        settings: Neighbourhood,
        seed: int,
        *,
        segments: Segments | None = None,
        precision: str = "auto",
    ) -> LimeModels:
        """Fit `settings.num_fit` blanked images of every sample of `loader` to the outputs `columns` of `source`.

        `loader` yields each sample once and not augmented, as data.loader(..., train=False) does: a model belongs to
        the pixels it was fitted to. The source runs in eval mode. Each process of a distributed group fits a part
        and gets all models, on the source's device.
        """
        index = [torch.zeros(0, dtype=torch.int64)]
        theta = [torch.zeros(0, settings.patches + 1, len(columns))]
        with evaluating(source), closing(loader.epoch(0)) as batches:
            for batch in batches:
                labels = segments(batch.index, batch.images) if segments else None
                view = settings.view(batch.images, source.preprocess, labels)
                vectors = settings.draw((seed, 0, Purpose.FIT), batch.index, settings.num_fit, view)
                with autocast(precision, batch.images.device):
                    fitted = fit_linear_models(source.net, view, vectors, settings, columns=columns)
                index.append(batch.index.cpu())
                theta.append(fitted.float().cpu())
        device = next(source.parameters()).device
        return cls(*(tensor.to(device) for tensor in gather_by_index(torch.cat(index), torch.cat(theta))))

    def __call__(self, index: Tensor, view: View | None = None) -> Tensor:
        """Coefficients [B, Np + 1, O] of the samples at positions `index` [B], whatever their images.

        A sample that was not fitted gets NaN: the check that stops a diverging training then names it.
        """
        rows = torch.searchsorted(self.index, index).clamp(max=len(self.index) - 1)
        return self.theta[rows].masked_fill((self.index[rows] != index)[:, None, None], torch.nan)


@dataclass(frozen=True, eq=False)
class RefittedLimeModels:
    """Linear models fitted anew to the images of every batch, as augmented ones need them (lime.refit=true)."""

    net: Callable[[Tensor], Tensor]
    """From normalised images to logits; in eval mode."""
    columns: Tensor
    """int64 [O]."""
    settings: Neighbourhood
    seed: int

    def __call__(self, index: Tensor, view: View) -> Tensor:
        """Coefficients float32 [B, Np + 1, O] around the images of a view at positions `index` [B]."""
        vectors = self.settings.draw((self.seed, 0, Purpose.FIT), index, self.settings.num_fit, view)
        return fit_linear_models(self.net, view, vectors, self.settings, columns=self.columns).float()


def localization_loss(outputs: Tensor, goals: Tensor, weights: Tensor) -> Tensor:
    """How far the module is from the source nearby: mean over samples and vectors of pi_b |f(b x) - goal|^2.

    `outputs` [B, K, O] of the masked source on blanked images (`Neighbourhood.outputs`), `goals` [B, K, O] of the
    source's local models (`predict_linear`) or of the source itself, `weights` pi [B, K]; 0-d float32. Our reading of
    the localization objective, made without the paper's text. Deviation: a mean where that reading sums over samples
    and vectors, so that learning rate and weight against other losses mean the same at any batch size and number of
    vectors.
    """
    error = (outputs.float() - goals).square().sum(-1)
    return (weights * error).mean()
