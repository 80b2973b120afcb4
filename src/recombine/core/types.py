"""The nouns every other module shares: Batch, Step, Loader, Row. No logic."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np

if TYPE_CHECKING:  # tables and pages read rows without torch
    from torch import Tensor

__all__ = ["Batch", "Loader", "Row", "Step"]


class Batch(NamedTuple):
    """Samples on the device, not normalised; valid until the loader yields the next one (clone what you keep)."""

    images: Tensor
    """uint8 [B, 3, H, W], channels_last."""
    labels: Tensor
    """int64 [B]; of images with masks [B, H, W], 255 where a pixel has no class; of images with boxes float32
    [B, M, 6]: left, top, right, bottom in pixels, label (-1: no box), 1 where the object does not count."""
    index: Tensor  # type: ignore[assignment]
    """int64 [B], position of the sample in its split (before any subset was taken)."""


class Step(NamedTuple):
    """What a method returns for a batch."""

    loss: Tensor
    """0-d, differentiable."""
    logs: dict[str, Tensor]
    """0-d tensors on the device, detached; averaged between log points."""


class Loader(Protocol):
    """Batches of one split; what it yields is a pure function of (seed, epoch, position).

    `recombine.data.mixed.LoaderWrapper` has all of it for loaders that change what another one yields.
    """

    @property
    def batch_size(self) -> int:
        """Samples in a step over all ranks together."""
        ...

    @property
    def samples(self) -> int:
        """Samples of one epoch over all ranks together."""
        ...

    @property
    def digest(self) -> str:
        """Identity of the stored samples, their indices and size (augmentation left out): the key of caches."""
        ...

    @property
    def indices(self) -> np.ndarray:
        """Positions in the split of the samples in use, int64, ascending; of mixed data, one task's after another's."""
        ...

    @property
    def size(self) -> int | None:
        """Side in pixels of the images that are read; None where mixed data have several."""
        ...

    @property
    def augment(self) -> Any | None:
        """The `recombine.data.augment.Augment` of the images, None without one; of mixed data, the first there is."""
        ...

    @property
    def crop(self) -> Any | None:
        """The random crop that is part of `augment`; None for the largest centred square."""
        ...

    def __len__(self) -> int:
        """Steps in an epoch: without the ragged last batch when training, with it when evaluating."""
        ...

    def epoch(self, epoch: int, start: int = 0) -> Generator[Batch]:
        """Yield this rank's batches of `epoch` from step `start` on, without producing the skipped ones."""
        ...

    def epoch_batches(self, epoch: int, start: int = 0) -> list[np.ndarray]:
        """The `index` of each batch that `epoch` yields, without reading any image."""
        ...

    def close(self) -> None:
        """Stop threads and free buffers; may be called twice."""
        ...


@dataclass(frozen=True)
class Row:
    """One measured cell. A recipe fills the first block; `launch` fills the rest."""

    cell: dict[str, Any]
    """Which cell this is: names and settings, strings or numbers (never the seed)."""
    metrics: dict[str, float] = field(default_factory=dict)
    """Percent, points or counts, by name."""
    series: dict[str, list] = field(default_factory=dict)
    """Small curves and histograms that plots are drawn from (per class, per epoch)."""

    entry: str = ""
    seed: int = 0
    run: str = ""
    """Name of the run's directory."""
    group: str = ""
    """Runs that differ only in the seed share it."""
    status: str = "ok"
    """ok, failed, diverged or interrupted."""
    error: str | None = None
    provenance: dict[str, Any] = field(default_factory=dict)
    """Command, resolved config, git commit, versions, device, seconds, images/s, peak memory."""
    format: int = 2

    def as_dict(self) -> dict[str, Any]:
        """The JSON form."""
        return asdict(self)
