"""scripts/predict.py as a user starts it: image files in, classes of base and patches out."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import torch
from PIL import Image

from src import models, patch
from src.patch.delta import Delta
from src.patch.patched import Patched, traced

SCRIPT = Path(__file__).parents[2] / "scripts" / "predict.py"


def predicted(*arguments):
    return subprocess.run([sys.executable, SCRIPT, *map(str, arguments)], capture_output=True, text=True)


def test_base_and_patch_on_image_files(tmp_path, resnet8, images):
    models.save(resnet8, tmp_path / "base.safetensors", {})
    torch.manual_seed(0)
    patched = Patched(resnet8, Delta(traced(resnet8), 3, modules=1)).eval()
    patch.save(patched, tmp_path / "abc.safetensors", name="letters", class_names=["a", "b", "c"])
    for k in range(2):
        Image.fromarray(images[k].permute(1, 2, 0).numpy()).save(tmp_path / f"{k}.png")
    files = [tmp_path / "0.png", tmp_path / "1.png"]
    common = ["--model", tmp_path / "base.safetensors", "--patch", tmp_path / "abc.safetensors", "--json"]
    done = predicted(*files, *common)
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    with torch.no_grad():
        base = resnet8(images[:2]).argmax(1).tolist()
        task = patched(images[:2]).argmax(1).tolist()
    expected = [
        ("base", str(base[0])),
        ("letters", "abc"[task[0]]),
        ("base", str(base[1])),
        ("letters", "abc"[task[1]]),
    ]
    assert [(line["task"], line["class"]) for line in lines] == expected

    done = predicted(*files, *common, "--task", "numbers")
    assert done.returncode == 2 and "--task numbers: one of auto, base, letters is needed" in done.stderr
