"""The masks of images by a segmentation network, as image files of the images' sizes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from rich.table import Table
from torch import nn

from recombine.core.errors import ConfigError
from recombine.core.files import replacing
from recombine.data.crop import fit_whole
from recombine.data.pixels import Decoding, decode, shown
from recombine.engine.pictures import colour

__all__ = ["output_paths", "predict_masks", "shares_table"]


def output_paths(files: Sequence[Path], kind: str, folder: Path | None) -> list[Path] | None:
    """Where the mask of each image goes, or the picture with its boxes (`kind`), which may be left out.

    ConfigError where one would replace an image or another one.
    """
    if folder is None and kind == "boxes":
        return None
    if folder is None:
        raise ConfigError("this network labels pixels: --masks FOLDER says where the masks go, an image file each")
    paths = [folder / f"{file.stem}.png" for file in files]
    images = {file.resolve() for file in files}
    if taken := [str(path) for path in paths if path.resolve() in images]:
        raise ConfigError(f"--{kind} would replace the image {taken[0]}: it needs another folder")
    if twice := [path.stem for path in paths if paths.count(path) > 1]:
        raise ConfigError(f"several images are called {twice[0]}: predict each folder of images into its own --{kind}")
    return paths


@torch.no_grad()
def predict_masks(
    model: nn.Module, files: Sequence[Path], paths: Sequence[Path], decoding: Decoding, names: Sequence[str], top: int
) -> Iterator[dict[str, Any]]:
    """Write the mask of each image; yield the `top` classes with the largest shares of its pixels."""
    for file, path in zip(files, paths, strict=True):
        mask = predict_mask(model, decode(file.read_bytes(), shown(str(file)), decoding))
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary:
            colour(mask, len(names)).save(temporary, "PNG")
        counts = np.bincount(mask.ravel(), minlength=len(names))
        for label in np.argsort(-counts, kind="stable")[:top]:
            share = float(counts[label] / mask.size)
            yield {"image": shown(str(file)), "mask": str(path), "class": names[label], "share": share}


def predict_mask(model: Any, image: np.ndarray) -> np.ndarray:
    """The class of each pixel, uint8 [H, W], of an image uint8 [H, W, 3], which is seen whole as in training."""
    height, width = image.shape[:2]
    seen, (top, left, side) = fit_whole(image, model.canvas)
    pixels = torch.from_numpy(seen).permute(2, 0, 1)[None]
    logits = model(pixels.to(next(model.parameters()).device))[0].permute(1, 2, 0).cpu().numpy()
    large = cv2.resize(logits, (side, side), interpolation=cv2.INTER_LINEAR)
    inside = large.reshape(side, side, -1)[-top : height - top, -left : width - left]
    return inside.argmax(2).astype(np.uint8)


def shares_table(rows: Sequence[dict[str, Any]]) -> Table:
    """The largest classes of each image for a terminal."""
    table = Table("image", "mask", "class", "share of pixels")
    for row in rows:
        table.add_row(row["image"], row["mask"], row["class"], f"{row['share']:.3f}")
    return table
