"""Model: a network with its preprocessing inside."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as transforms

from recombine.core.errors import ConfigError
from recombine.models.settings import PreprocessSettings

__all__ = ["Model", "Preprocess", "find_head", "head_names", "pooled", "reset_head", "unwrap"]

WRAPPERS = (nn.DataParallel, nn.parallel.DistributedDataParallel)


class Preprocess(nn.Module):
    """Resize, centre crop and normalise uint8 images for one network.

    The buffers are not persistent, so a state dict of the model holds the weights alone.
    """

    scale: Tensor
    offset: Tensor

    def __init__(
        self,
        size: int,
        mean: Sequence[float],
        std: Sequence[float],
        crop_pct: float = 1.0,
        interpolation: str = "bilinear",
    ) -> None:
        """`size` in pixels; `crop_pct` = size / resized side; `mean` and `std` per channel of images in 0..1.

        Raises ConfigError for values no image can be prepared with.
        """
        super().__init__()
        self.size, self.crop_pct, self.interpolation = size, crop_pct, interpolation
        self.mean, self.std = list(mean), list(std)
        PreprocessSettings.of(self.settings(), "model")
        # (x / 255 - mean) / std as one multiply-add; the quotients are taken in double precision.
        mean_, std_ = (torch.tensor(v, dtype=torch.float64).view(1, 3, 1, 1) for v in (self.mean, self.std))
        self.register_buffer("scale", (1 / (255 * std_)).float(), persistent=False)
        self.register_buffer("offset", (-mean_ / std_).float(), persistent=False)

    @property
    def canvas(self) -> int:
        """The side to which images are resized; at this size the preprocessing is a pure centre crop."""
        return math.floor(
            self.size / self.crop_pct + 1e-6
        )  # floor as timm; the small term keeps 224 / (224 / 232) at 232

    def forward(self, images: Tensor) -> Tensor:
        """uint8 [B, 3, H, W] -> normalised float32 [B, 3, size, size]; the memory format is kept."""
        if images.shape[-2] != self.size or images.shape[-1] != self.size:
            images = self.fit(images)
        return torch.addcmul(self.offset, images, self.scale)

    def fit(self, images: Tensor, interpolation: str | None = None) -> Tensor:
        """Resize the short side to `canvas` (antialiased, rounded to uint8 like an image library) and centre crop.

        `interpolation` in place of that of images: nearest for numbers of classes or segments.
        """
        if min(images.shape[-2:]) != self.canvas:
            mode = InterpolationMode(interpolation or self.interpolation)  # torchvision below 0.27 takes no names
            images = transforms.resize(images, [self.canvas], interpolation=mode, antialias=True)
        return transforms.center_crop(images, [self.size, self.size])

    def settings(self) -> dict[str, Any]:
        """The five numbers that describe it."""
        return {key: getattr(self, key) for key in ("size", "crop_pct", "mean", "std", "interpolation")}


class Model(nn.Module):
    """A classifier that takes images as they are stored: uint8 [B, 3, H, W] of any square size in, float logits out."""

    def __init__(
        self,
        net: nn.Module,
        preprocess: Preprocess,
        *,
        name: str,
        classes: int,
        architecture: str,
        options: dict[str, Any] | None = None,
        tag: str = "random",
        claimed_accuracy: float | None = None,
        class_names: Sequence[str] | None = None,
    ) -> None:
        """`architecture` and `options` rebuild `net`; `tag` says where its weights come from; `class_names` of its
        outputs, where they are known."""
        super().__init__()
        self.net, self.preprocess = net, preprocess
        self.name, self.classes, self.tag, self.claimed_accuracy = name, classes, tag, claimed_accuracy
        self.architecture, self.options = architecture, dict(options or {})
        self.class_names = list(class_names) if class_names else None

    size = property(lambda self: self.preprocess.size, doc="Side of the network's input in pixels.")
    canvas = property(lambda self: self.preprocess.canvas, doc="Side at which preprocessing is a pure centre crop.")
    crop_pct = property(lambda self: self.preprocess.crop_pct, doc="size / canvas, before rounding.")
    mean = property(lambda self: self.preprocess.mean, doc="Per channel, of images in 0..1.")
    std = property(lambda self: self.preprocess.std, doc="Per channel, of images in 0..1.")
    interpolation = property(lambda self: self.preprocess.interpolation, doc="Of the resize to the canvas.")

    @property
    def head(self) -> nn.Module:
        """The classifier: `find_head`."""
        return self.net.get_submodule(find_head(self.net, self.classes))

    @property
    def width(self) -> int:
        """Number of `features`."""
        head: Any = self.head
        return head.in_features if isinstance(head, nn.Linear) else head.in_channels

    def forward(self, images: Tensor) -> Tensor:
        """uint8 [B, 3, H, W] -> float32 logits [B, classes], the same in every role of the model."""
        return self.net(self.preprocess(images)).float()

    def losses(self, images: Tensor, boxes: Tensor) -> dict[str, Tensor]:
        """The parts of a detector's loss: uint8 images [B, 3, H, W] and boxes [B, M, 6], see `Batch`."""
        net: Any = self.net
        return net.losses(self.preprocess(images), boxes)

    def features(self, images: Tensor) -> Tensor:
        """uint8 [B, 3, H, W] -> float32 [B, D]: what enters the classifier, averaged over positions."""
        return self.features_and_logits(images)[0]

    def features_and_logits(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """`features` and the logits made from them, in one pass."""
        kept: list[Tensor] = []
        handle = self.head.register_forward_pre_hook(lambda head, inputs: kept.append(pooled(inputs[0], head)))
        try:
            logits = self(images)
        finally:
            handle.remove()
        return kept[0], logits

    def description(self) -> dict[str, Any]:
        """Everything but the weights: enough to build the model again."""
        return {
            "name": self.name,
            "architecture": self.architecture,
            "options": self.options,
            "classes": self.classes,
            **self.preprocess.settings(),
            "tag": self.tag,
            "claimed_accuracy": self.claimed_accuracy,
        }

    def digest(self) -> str:
        """Identity of the function: weights, architecture and preprocessing (not its name). 32 hex digits."""
        function = {k: v for k, v in self.description().items() if k not in ("name", "tag", "claimed_accuracy")}
        digest = hashlib.sha256(json.dumps(function, sort_keys=True).encode())
        for key, value in sorted(self.net.state_dict().items()):
            digest.update(f"{key} {value.dtype} {tuple(value.shape)}".encode())
            digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
        return digest.hexdigest()[:32]


def unwrap(net: nn.Module) -> nn.Module:
    """The network inside what torch.compile, DataParallel or DistributedDataParallel made of it."""
    while True:
        inner = net.module if isinstance(net, WRAPPERS) else getattr(net, "_orig_mod", None)
        if not isinstance(inner, nn.Module):
            return net
        net = inner


def head_names(net: nn.Module, classes: int) -> list[str]:
    """Names of all linear layers and convolutions with `classes` outputs, which classifiers are among."""
    outputs = {nn.Linear: "out_features", nn.Conv2d: "out_channels"}
    return [
        name
        for name, module in net.named_modules()
        for kind, attribute in outputs.items()
        if isinstance(module, kind) and getattr(module, attribute) == classes
    ]


def find_head(net: nn.Module, classes: int) -> str:
    """Name of the classifier: the last linear layer or convolution with `classes` outputs; ConfigError if none."""
    names = head_names(net, classes)
    if not names:
        raise ConfigError(
            f"{type(net).__name__} has no linear or convolutional layer with {classes} outputs as its head"
        )
    return names[-1]


def pooled(values: Tensor, head: nn.Module) -> Tensor:
    """What a classifier reads or gives as float32 [B, D], averaged over positions.

    Channels of a convolution are in the second axis, [B, D, H, W], those of a linear layer in the last, [B, ..., D].
    """
    if isinstance(head, nn.Linear):
        return (values.flatten(1, -2).mean(1) if values.ndim > 2 else values).float()
    return values.mean((2, 3)).float()


def reset_head(net: nn.Module, classes: int, new_classes: int) -> None:
    """Replace the classifier of `classes` outputs by a freshly initialised one of `new_classes`, in place."""
    if hasattr(net, "reset_classifier"):
        net.reset_classifier(new_classes)  # type: ignore[operator]
        return
    name = find_head(net, classes)
    parent, _, child = name.rpartition(".")
    old: Any = net.get_submodule(name)
    bias = old.bias is not None
    if isinstance(old, nn.Linear):
        new: nn.Module = nn.Linear(old.in_features, new_classes, bias)
    else:
        new = nn.Conv2d(old.in_channels, new_classes, old.kernel_size, old.stride, old.padding, bias=bias)
    setattr(net.get_submodule(parent), child, new)
