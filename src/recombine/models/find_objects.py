"""Faster R-CNN's objects in an image by steps that `torch.export` can follow; torchvision's own depend on the image."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.rpn import concat_box_prediction_layers
from torchvision.ops import clip_boxes_to_image, nms, roi_align
from torchvision.ops.poolers import _setup_scales

__all__ = ["find_objects"]

SMALLEST = 1e-2
"""Sides of objects in pixels, as in torchvision."""


def find_objects(rpn: Any, roi_heads: Any, image: Tensor, maps: dict[str, Tensor], most: int) -> Tensor:
    """The objects of one image [1, 3, H, W] with these maps -> [most, 6], best first; label -1: nothing.

    Left, top, right, bottom, score, label. Computes what `rpn` and `roi_heads` do in eval mode, with sizes that do not
    depend on the image wherever they leave a step.
    """
    height, width = image.shape[-2:]
    boxes, scores = _propose(rpn, image, maps)
    pooled = _pool(roi_heads.box_roi_pool, maps, boxes, (height, width))
    logits, deltas = roi_heads.box_predictor(roi_heads.box_head(pooled))
    found = roi_heads.box_coder.decode(deltas, [boxes])[:, 1:]  # label 0 is the background
    found = clip_boxes_to_image(found.reshape(-1, 4), (height, width))
    shares = F.softmax(logits, -1)[:, 1:].masked_fill((scores < 0)[:, None], -1)
    classes = shares.shape[1]
    labels = torch.arange(classes, device=image.device).repeat(len(boxes))
    wanted = (shares.reshape(-1) > roi_heads.score_thresh) & _large(found, SMALLEST)
    best, places = _suppress(found, shares.reshape(-1), labels, wanted, roi_heads.nms_thresh, most)
    rows = torch.cat([found[places], best[:, None], labels[places, None].to(best)], 1)
    rows = rows.masked_fill((best < 0)[:, None], -1.0)
    return F.pad(rows, (0, 0, 0, most - len(rows)), value=-1.0)


def _propose(rpn: Any, image: Tensor, maps: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Boxes [P, 4] that may hold something and their scores [P], negative where there is none."""
    height, width = image.shape[-2:]
    objectness, deltas = rpn.head(list(maps.values()))
    anchors = rpn.anchor_generator(ImageList(image, [(height, width)]), list(maps.values()))
    counts = [one[0].numel() for one in objectness]
    flat, moves = concat_box_prediction_layers(objectness, deltas)
    boxes = rpn.box_coder.decode(moves, anchors).reshape(-1, 4)
    levels = torch.cat([torch.full((count,), level, device=image.device) for level, count in enumerate(counts)])
    chosen = rpn._get_top_n_idx(flat.reshape(1, -1), counts)[0]
    boxes, scores, levels = boxes[chosen], flat.reshape(-1)[chosen].sigmoid(), levels[chosen]
    boxes = clip_boxes_to_image(boxes, (height, width))
    wanted = (scores >= rpn.score_thresh) & _large(boxes, rpn.min_size)
    best, places = _suppress(boxes, scores, levels, wanted, rpn.nms_thresh, rpn.post_nms_top_n())
    return boxes[places], best


def _large(boxes: Tensor, side: float) -> Tensor:
    return (boxes[:, 2] - boxes[:, 0] >= side) & (boxes[:, 3] - boxes[:, 1] >= side)


def _suppress(
    boxes: Tensor, scores: Tensor, groups: Tensor, wanted: Tensor, overlap: float, most: int
) -> tuple[Tensor, Tensor]:
    """Scores and places of the boxes that no better one of their group overlaps; -1 where fewer than `most` are left.

    Two boxes outside of the image are added: `torch.export` takes it that `nms` keeps two or more.
    """
    (places,) = wanted.nonzero(as_tuple=True)
    outside = boxes.new_tensor([[-2.0, -2.0, -1.0, -1.0], [-4.0, -4.0, -3.0, -3.0]])
    apart = groups.index_select(0, places)[:, None] * (boxes.max() + 1)  # so that groups do not overlap
    together = torch.cat([outside, boxes.index_select(0, places) + apart])
    values = torch.cat([scores.new_full((2,), -1.0), scores.index_select(0, places)])
    kept = nms(together, values, overlap)
    into = torch.cat([places.new_tensor([0, 1]), places + 2]).index_select(0, kept)
    left = scores.new_full((len(scores) + 2,), -1.0).scatter(0, into, values.index_select(0, kept))[2:]
    best, chosen = left.topk(min(most, len(scores)))
    return best, chosen


def _pool(pool: Any, maps: dict[str, Tensor], boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """What `MultiScaleRoIAlign` cuts out for each box [P, C, h, w], each from the map that suits its size."""
    chosen = [maps[name] for name in pool.featmap_names]
    scales, level_of = _setup_scales(chosen, [size], pool.canonical_scale, pool.canonical_level)
    cut = [
        roi_align(each, [boxes], pool.output_size, scale, pool.sampling_ratio)
        for each, scale in zip(chosen, scales, strict=True)
    ]
    return torch.stack(cut)[level_of([boxes]), torch.arange(len(boxes), device=boxes.device)]
