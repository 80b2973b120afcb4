"""Predictions of pixels or objects as pictures: the image, the truth and the prediction side by side."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw
from torch import nn

from recombine.core.distributed import maximum
from recombine.core.files import replacing
from recombine.core.labels import IGNORE
from recombine.core.types import Loader
from recombine.engine.evaluate import evaluating

if TYPE_CHECKING:
    from recombine.run.run import Run

__all__ = ["colour", "draw_boxes", "palette", "save_predictions"]

WITHOUT_CLASS = (224, 224, 192)
"""The colour of pixels that have no class, as in PASCAL VOC."""
LINE = 14  # pixels of a line of the legend
DRAWN_FROM = 0.5
"""Score from which an object is drawn."""


def palette(classes: int) -> np.ndarray:
    """The colours of PASCAL VOC, which tell classes apart: uint8 [256, 3]; those beyond `classes` are `IGNORE`'s."""
    label, channels = np.arange(256)[:, None], np.arange(3)
    colours = np.zeros((256, 3), np.int64)
    for bit in range(8):
        colours |= (label >> (3 * bit + channels) & 1) << (7 - bit)
    colours[classes:] = WITHOUT_CLASS
    return colours.astype(np.uint8)


def colour(mask: np.ndarray, classes: int) -> Image.Image:
    """A mask uint8 [H, W] as an image with a palette; its pixels stay class numbers."""
    image = Image.fromarray(mask.astype(np.uint8), "P")
    image.putpalette(palette(classes).tobytes())
    return image


def save_predictions(net: nn.Module, loader: Loader, names: Sequence[str], run: Run, most: int = 6) -> list[Path]:
    """Draw the first `most` images of a loader into the run's `pictures/` and show them with its logger."""
    written: list[Path] = []
    with evaluating(net), closing(loader.epoch(0)) as batches:
        batch = next(iter(batches), None)
        if maximum(batch is not None)[0] and batch is not None and run.main:
            objects = batch.labels.is_floating_point()
            found = net(batch.images[:most])
            found = found if objects else found.argmax(1)
            parts = [batch.images[:most].permute(0, 2, 3, 1), batch.labels[:most], found]
            drawn = zip(batch.index[:most].tolist(), *(part.cpu().numpy() for part in parts), strict=True)
            compare = _boxes_side_by_side if objects else _side_by_side
            for position, image, truth, predicted in drawn:
                path = run.dir / "pictures" / f"{position}.png"
                path.parent.mkdir(exist_ok=True)
                with replacing(path) as temporary:
                    compare(image, truth, predicted, names).save(temporary, "PNG")
                run.tracker.image(f"predictions/{position}", path, "image, truth, prediction")
                written.append(path)
    return written


def _side_by_side(image: np.ndarray, truth: np.ndarray, predicted: np.ndarray, names: Sequence[str]) -> Image.Image:
    colours = palette(len(names))
    unknown = truth == IGNORE
    panels = [image, colours[truth], np.where(unknown[..., None], colours[predicted] // 2 + 96, colours[predicted])]
    picture = np.concatenate(panels, axis=1).astype(np.uint8)
    shown = sorted({*np.unique(truth[~unknown]), *np.unique(predicted)})
    columns = max(1, picture.shape[1] // 130)
    lines = -(-len(shown) // columns)
    whole = Image.new("RGB", (picture.shape[1], picture.shape[0] + LINE * lines), "white")
    whole.paste(Image.fromarray(picture))
    draw = ImageDraw.Draw(whole)
    for place, label in enumerate(shown):
        left, top = place % columns * 130, picture.shape[0] + place // columns * LINE
        draw.rectangle((left + 2, top + 2, left + 12, top + LINE - 3), tuple(map(int, colours[label])))
        draw.text((left + 16, top + 1), names[label][:18], "black")
    return whole


def draw_boxes(image: np.ndarray, boxes: np.ndarray, labels: np.ndarray, texts: Sequence[str]) -> Image.Image:
    """An image uint8 [H, W, 3] with boxes [n, 4] in the colours of their classes [n], each with a text."""
    picture = Image.fromarray(np.ascontiguousarray(image))
    draw, colours = ImageDraw.Draw(picture), palette(255)
    for box, label, text in zip(boxes, labels, texts, strict=True):
        shade = tuple(map(int, colours[int(label) + 1]))  # 0 is black
        left, top, right, bottom = map(float, box)
        draw.rectangle((left, top, right, bottom), outline=shade, width=2)
        wide = draw.textlength(text)
        draw.rectangle((left, top, left + wide + 4, top + LINE - 2), shade)
        draw.text((left + 2, top), text, "white" if sum(shade) < 384 else "black")
    return picture


def _boxes_side_by_side(image: np.ndarray, truth: np.ndarray, found: np.ndarray, names: Sequence[str]) -> Image.Image:
    truth, found = truth[truth[:, 4] >= 0], found[found[:, 4] >= DRAWN_FROM]
    wanted = [names[int(row[4])] + " (does not count)" * bool(row[5]) for row in truth]
    said = [f"{names[int(row[5])]} {row[4]:.2f}" for row in found]
    panels = [image, draw_boxes(image, truth[:, :4], truth[:, 4], wanted)]
    panels.append(draw_boxes(image, found[:, :4], found[:, 5], said))
    return Image.fromarray(np.concatenate([np.asarray(panel) for panel in panels], axis=1))
