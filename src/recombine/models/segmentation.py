"""Networks that classify every pixel: torchvision's, and LR-ASPP on any of timm's backbones."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.segmentation.lraspp import LRASPPHead

from recombine.core.errors import ConfigError

__all__ = ["Segmenter", "lraspp", "torchvision_segmenter"]

LEVELS = ("low", "high")
"""The maps that LR-ASPP reads: those of an eighth and of a sixteenth of the image's side."""


class Segmenter(nn.Module):
    """A backbone of feature maps and a classifier of their pixels; weights are named as in torchvision.

    Deviation: torchvision's second training output (aux_classifier) is left out, and logits come without a dict.
    """

    encoder = "backbone"
    """What a patch belongs to and freezing keeps."""
    left_out = ("aux_classifier.",)
    """Weights in torchvision's files that it has no use for."""

    def __init__(self, backbone: nn.Module, classifier: nn.Module, classes: int) -> None:
        """`backbone` gives a dict of maps, or a list of those of `LEVELS`."""
        super().__init__()
        self.backbone, self.classifier, self.classes = backbone, classifier, classes

    def forward(self, images: Tensor) -> Tensor:
        """Float images [B, 3, H, W] -> logits [B, classes, H, W]."""
        maps = self.backbone(images)
        if isinstance(maps, list | tuple):
            maps = dict(zip(LEVELS, maps, strict=True))
        logits = self.classifier(maps if isinstance(self.classifier, LRASPPHead) else maps["out"])
        return F.interpolate(logits, size=images.shape[-2:], mode="bilinear", align_corners=False)

    def reset_classifier(self, classes: int) -> None:
        """Draw the last layers anew, with another number of classes."""
        head: Any = self.classifier
        names = ("low_classifier", "high_classifier") if isinstance(head, LRASPPHead) else (str(len(head) - 1),)
        for name in names:
            old: Any = head.get_submodule(name)
            setattr(head, name, nn.Conv2d(old.in_channels, classes, old.kernel_size))
        self.classes = classes


def lraspp(classes: int, backbone: str = "mobilenetv2_100", inter_channels: int = 128, pad_type: str = "") -> Segmenter:
    """LR-ASPP (Howard et al., ICCV 2019, section 6.4) on a timm backbone at output stride 16."""
    import timm

    options: dict[str, Any] = {"pad_type": pad_type} if pad_type else {}
    try:
        maps = timm.create_model(backbone, features_only=True, out_indices=(2, 4), output_stride=16, **options)
    except (RuntimeError, TypeError, ValueError, NotImplementedError) as error:
        raise ConfigError(f"model.backbone={backbone}: timm gives no maps at output stride 16: {error}") from error
    low, high = maps.feature_info.channels()  # type: ignore[union-attr, operator]
    return Segmenter(maps, LRASPPHead(low, high, classes, inter_channels), classes)


def torchvision_segmenter(net: Any, classes: int) -> Segmenter:
    """torchvision's DeepLabV3, FCN or LR-ASPP as a `Segmenter`, with the same modules."""
    return Segmenter(net.backbone, net.classifier, classes)
