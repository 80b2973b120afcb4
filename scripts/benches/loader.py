"""FFCV against a torch DataLoader with Pillow, on JPEG files at 224 px."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from benches.timing import compare
from recombine.core.types import Row

BATCH = 64
IMAGES = 800

__all__ = ["measure"]


def measure() -> Iterator[Row]:
    """CPU time of a training image: random resized crop and flip, to uint8."""
    with tempfile.TemporaryDirectory() as folder:
        kind = _photographs(Path(folder) / "photos")
        yield compare(f"FFCV, {kind}", _ours(Path(folder)), _baseline(Path(folder)), "CPU ms per image")


def _photographs(folder: Path) -> str:
    """Fill a class tree with JPEG files: Imagenette's of RECOMBINE_DATA, or cuttings of scikit-learn's photographs."""
    real = Path(os.environ.get("RECOMBINE_DATA", "")) / "imagenette160"
    if os.environ.get("RECOMBINE_DATA") and real.is_dir():
        from recombine.data.sources import open_source

        samples = open_source("parquet", "imagenette160", real.parent, False).samples("train")
        blobs, kind = [samples[i] for i in range(min(IMAGES, len(samples)))], "Imagenette JPEG files of 160 px"
    else:
        blobs, kind = _cuttings(), "JPEG cuttings of 256 px"
    for k, blob in enumerate(blobs):
        path = folder / f"train/class{k % 4}/{k:04}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(blob)
    return f"{len(blobs)} {kind}"


def _cuttings() -> list[bytes]:
    import cv2
    import numpy as np
    from sklearn.datasets import load_sample_images

    rng, pictures, blobs = np.random.default_rng(0), load_sample_images().images, []
    for k in range(IMAGES):
        picture = pictures[k % len(pictures)]
        top, left = (rng.integers(0, side - 256) for side in picture.shape[:2])
        part = picture[top : top + 256, left : left + 256, ::-1]
        blobs.append(cv2.imencode(".jpg", part, [cv2.IMWRITE_JPEG_QUALITY, 90])[1].tobytes())
    return blobs


def _ours(folder: Path) -> Callable[[], float]:
    from recombine.data import open_data

    node = {"name": "photos", "source": "folder", "augment": "crop_resize", "download": False}
    where = {"data_root": folder, "cache_root": folder / "cache", "seed": 0, "device": "cpu"}
    data = open_data(node, loader={"kind": "ffcv", "workers": 1}, **where)
    batches = data.loader("train", BATCH, train=True, size=224)
    epochs = iter(range(1000))

    def measure() -> float:
        started = time.process_time()
        seen = sum(len(batch.index) for batch in batches.epoch(next(epochs)))
        return (time.process_time() - started) / seen

    return measure


def _baseline(folder: Path) -> Callable[[], float]:
    from torchvision import datasets, transforms

    steps = [transforms.RandomResizedCrop(224), transforms.RandomHorizontalFlip(), transforms.PILToTensor()]
    images = datasets.ImageFolder(str(folder / "photos/train"), transforms.Compose(steps))
    batches = torch.utils.data.DataLoader(images, BATCH, shuffle=True, drop_last=True)

    def measure() -> float:
        started = time.process_time()
        seen = sum(len(labels) for _, labels in batches)
        return (time.process_time() - started) / seen

    return measure
