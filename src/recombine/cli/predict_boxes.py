"""The objects in images by a detector: a line for each, and pictures with their boxes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.table import Table
from torch import nn

from recombine.core.files import replacing
from recombine.data.crop import fit_whole
from recombine.data.pixels import Decoding, decode, shown
from recombine.engine.pictures import draw_boxes

__all__ = ["objects_table", "predict_boxes"]


@torch.no_grad()
def predict_boxes(
    model: nn.Module,
    files: Sequence[Path],
    paths: Sequence[Path] | None,
    decoding: Decoding,
    names: Sequence[str],
    score: float,
) -> Iterator[dict[str, Any]]:
    """Yield the objects of each image with at least this score, best first; draw them into a picture of each image."""
    for number, file in enumerate(files):
        image = decode(file.read_bytes(), shown(str(file)), decoding)
        found = predict_image(model, image)
        found = found[found[:, 4] >= score]
        if paths is not None:
            paths[number].parent.mkdir(parents=True, exist_ok=True)
            texts = [f"{names[int(row[5])]} {row[4]:.2f}" for row in found]
            with replacing(paths[number]) as temporary:
                draw_boxes(image, found[:, :4], found[:, 5], texts).save(temporary, "PNG")
        for row in found:
            box = [round(float(value), 1) for value in row[:4]]
            yield {"image": shown(str(file)), "class": names[int(row[5])], "score": float(row[4]), "box": box}


def predict_image(model: Any, image: np.ndarray) -> np.ndarray:
    """Objects [n, 6] of an image uint8 [H, W, 3], in its pixels, best first; it is seen whole as in training."""
    height, width = image.shape[:2]
    seen, (top, left, side) = fit_whole(image, model.canvas)
    pixels = torch.from_numpy(seen).permute(2, 0, 1)[None]
    rows = model(pixels.to(next(model.parameters()).device))[0].cpu().numpy()
    rows = rows[rows[:, 5] >= 0]
    rows[:, :4] = rows[:, :4] * (side / model.canvas) + [left, top, left, top]
    rows[:, :4] = np.clip(rows[:, :4], 0, [width, height, width, height])
    return rows[np.argsort(-rows[:, 4], kind="stable")]


def objects_table(rows: Sequence[dict[str, Any]]) -> Table:
    """The objects of each image for a terminal."""
    table = Table("image", "class", "score", "left, top, right, bottom")
    for row in rows:
        table.add_row(row["image"], row["class"], f"{row['score']:.2f}", ", ".join(f"{v:.0f}" for v in row["box"]))
    return table
