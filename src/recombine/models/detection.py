"""Networks that find objects: torchvision's Faster R-CNN, on any of timm's backbones."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection.faster_rcnn import FasterRCNN, FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.rpn import AnchorGenerator
from torchvision.ops import FeaturePyramidNetwork, MultiScaleRoIAlign
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from recombine.core.errors import ConfigError
from recombine.models.find_objects import find_objects

__all__ = ["DETECTIONS", "Detector", "Pyramid", "faster_rcnn", "torchvision_detector"]

DETECTIONS = 100
"""Objects that a network names in an image at most."""
STRIDES = (4, 8, 16, 32, 64)
"""Of the maps of the pyramid."""


class Pyramid(nn.Module):
    """A body that gives maps at strides 4 to 32, and a feature pyramid on them (Lin et al., CVPR 2017)."""

    def __init__(self, body: nn.Module, fpn: FeaturePyramidNetwork, channels: int) -> None:
        """`body` gives a dict or a list of maps; `channels`: of the pyramid's maps."""
        super().__init__()
        self.body, self.fpn, self.out_channels = body, fpn, channels

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Float images [B, 3, H, W] -> maps [B, channels, H / stride, W / stride] by name."""
        maps = self.body(images)
        found = maps.items() if isinstance(maps, dict) else enumerate(maps)
        return self.fpn(OrderedDict((str(name), value) for name, value in found))


class Detector(nn.Module):
    """Faster R-CNN (Ren et al., NeurIPS 2015); weights are named as in torchvision.

    Deviation: images are square and padded before they come, so that torchvision's own resizing is left out; every
    image has `DETECTIONS` rows.
    Deviation: where a timm backbone trains, its BatchNorms do; those of torchvision's detectors are always frozen.
    """

    encoder = "backbone.body"
    """What a patch belongs to and freezing keeps."""
    left_out = ()

    def __init__(self, backbone: nn.Module, rpn: nn.Module, roi_heads: nn.Module, classes: int) -> None:
        super().__init__()
        self.backbone, self.rpn, self.roi_heads, self.classes = backbone, rpn, roi_heads, classes

    def forward(self, images: Tensor) -> Tensor:
        """Float images [B, 3, H, W] -> [B, DETECTIONS, 6]: left, top, right, bottom, score, label (-1: nothing)."""
        listed = _listed(images)
        maps = self._maps(images)
        if torch.compiler.is_exporting():  # torchvision's branches depend on the image
            return find_objects(self.rpn, self.roi_heads, images, maps, DETECTIONS)[None]
        with torch.autocast(images.device.type, enabled=False):
            proposals, _ = self.rpn(listed, maps)
            found, _ = self.roi_heads(maps, proposals, listed.image_sizes)
        rows = images.new_full((len(images), DETECTIONS, 6), -1.0, dtype=torch.float32)
        for place, each in enumerate(found):
            parts = (each["boxes"], each["scores"][:, None], each["labels"][:, None] - 1)  # their label 0 is background
            rows[place, : len(each["boxes"])] = torch.cat(parts, 1)[:DETECTIONS]
        return rows

    def losses(self, images: Tensor, boxes: Tensor) -> dict[str, Tensor]:
        """The four losses of the paper, by torchvision's names; `boxes` as a loader of images with boxes has them.

        Boxes that do not count are left out.
        """
        targets = []
        for each in boxes:
            chosen = each[(each[:, 4] >= 0) & (each[:, 5] == 0)]
            targets.append({"boxes": chosen[:, :4], "labels": chosen[:, 4].long() + 1})
        listed, maps = _listed(images), self._maps(images)
        with torch.autocast(images.device.type, enabled=False):
            proposals, of_proposals = self.rpn(listed, maps, targets)
            _, of_boxes = self.roi_heads(maps, proposals, listed.image_sizes, targets)
        return {**of_proposals, **of_boxes}

    def _maps(self, images: Tensor) -> dict[str, Tensor]:
        return {name: value.float() for name, value in self.backbone(images).items()}

    def reset_classifier(self, classes: int) -> None:
        """Draw the last layers anew, with another number of classes."""
        heads: Any = self.roi_heads
        heads.box_predictor = FastRCNNPredictor(heads.box_predictor.cls_score.in_features, classes + 1)
        self.classes = classes


def _listed(images: Tensor) -> ImageList:
    height, width = images.shape[-2:]
    return ImageList(images, [(height, width)] * len(images))


def faster_rcnn(
    classes: int, backbone: str = "resnet18", channels: int = 256, hidden: int = 1024, rois: int = 512, anchor: int = 8
) -> Detector:
    """Faster R-CNN with a feature pyramid on a timm backbone.

    `channels` of the pyramid, `hidden` ones of the box head, `rois` regions of an image that the head trains on,
    `anchor`: side of a map's anchors over its stride.
    """
    import timm

    try:
        body: Any = timm.create_model(backbone, features_only=True, out_indices=(-4, -3, -2, -1))
        strides = tuple(body.feature_info.reduction())
    except (RuntimeError, TypeError, ValueError, IndexError, NotImplementedError) as error:
        raise ConfigError(f"model.backbone={backbone}: timm gives no maps at strides 4 to 32: {error}") from error
    if strides != STRIDES[:-1]:
        raise ConfigError(f"model.backbone={backbone} has maps at strides {strides}, and 4, 8, 16 and 32 are needed")
    fpn = FeaturePyramidNetwork(body.feature_info.channels(), channels, LastLevelMaxPool())
    names = [str(level) for level in range(len(strides))]
    whole = FasterRCNN(
        Pyramid(body, fpn, channels),
        rpn_anchor_generator=AnchorGenerator(tuple((anchor * stride,) for stride in STRIDES), ((0.5, 1.0, 2.0),) * 5),
        box_roi_pool=MultiScaleRoIAlign(names, output_size=7, sampling_ratio=2),
        box_head=TwoMLPHead(channels * 7**2, hidden),
        box_predictor=FastRCNNPredictor(hidden, classes + 1),
        box_batch_size_per_image=rois,
        box_detections_per_img=DETECTIONS,
    )
    return Detector(whole.backbone, whole.rpn, whole.roi_heads, classes)


def torchvision_detector(net: Any, classes: int) -> Detector:
    """torchvision's Faster R-CNN as a `Detector`, with the same modules."""
    pyramid = Pyramid(net.backbone.body, net.backbone.fpn, net.backbone.out_channels)
    return Detector(pyramid, net.rpn, net.roi_heads, classes)
