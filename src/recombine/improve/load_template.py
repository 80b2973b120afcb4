"""Classify images with model.pt2: python load.py image.jpg ...

Needs torch, NumPy and Pillow. The preparation is the network's own: resized so that the short side has `canvas` pixels,
the centre of `size` pixels cut out; the network normalises inside.
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps

HERE = Path(__file__).parent
PREPROCESSING: dict = {}


def load():
    """The network (uint8 [B, 3, size, size] in, logits out) and its class names."""
    names = json.loads((HERE / "labels.json").read_text(encoding="utf-8"))
    return torch.export.load(HERE / "model.pt2").module(), names


def read(path):
    """An image file as the network takes it: uint8 [1, 3, size, size]."""
    image = ImageOps.exif_transpose(Image.open(path)).convert("RGB")
    side, size = PREPROCESSING["canvas"], PREPROCESSING["size"]
    x = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None]
    short = min(x.shape[-2:])
    if short != side:
        height, width = (int(side * n / short) for n in x.shape[-2:])
        mode = PREPROCESSING["interpolation"]
        x = torch.nn.functional.interpolate(x, (height, width), mode=mode, antialias=mode != "nearest")
    top, left = (round((n - size) / 2) for n in x.shape[-2:])
    return x[..., top : top + size, left : left + size].contiguous()


if __name__ == "__main__":
    network, names = load()
    for path in sys.argv[1:]:
        with torch.no_grad():
            probabilities = network(read(path)).softmax(1)[0]
        best = int(probabilities.argmax())
        print(f"{path}\t{names[best]}\t{float(probabilities[best]):.3f}")
