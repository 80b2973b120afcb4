"""Classify image files with a network and any patches of it.

python scripts/predict.py --model resnet56 --weights-root weights/cifar10 --patch mnist.safetensors images/*.png
python scripts/predict.py --model timm:resnet50 --patch flowers.safetensors cars.safetensors --task auto photo.jpg
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from rich.console import Console
from rich.table import Table

from src import models
from src.core.errors import ConfigError, RecombineError
from src.data.samples import decode
from src.models.model import Model
from src.patch import System

BASE = "base"


def arguments() -> argparse.Namespace:
    """The command line."""
    raw = argparse.RawTextHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("images", nargs="+", type=Path, help="image files or folders of them")
    parser.add_argument(
        "--model", required=True, help="the base: a name, a checkpoint, timm:<name>, torchvision:<name>"
    )
    parser.add_argument("--weights-root", default="weights", help="where checkpoints are found by name")
    parser.add_argument("--classes", type=Path, help="JSON list of the base's class names; default: their numbers")
    parser.add_argument("--patch", nargs="*", default=[], type=Path, help="patch files, as main_patch.py leaves them")
    parser.add_argument("--task", help="only this patch (base: only the base; auto: the most confident of all)")
    parser.add_argument("--json", action="store_true", help="one JSON object a line instead of a table")
    return parser.parse_args()


def main() -> None:
    """Print the class of every image."""
    options = arguments()
    model = models.build(options.model, weights_root=options.weights_root)
    system = System(model)
    for path in options.patch:
        system.attach(path)
    names = {BASE: json.loads(options.classes.read_text()) if options.classes else list(map(str, range(model.classes)))}
    names |= {name: card["class_names"] for name, card in system.list().items()}
    if options.task not in (None, "auto", *names):
        raise ConfigError(f"--task {options.task}: one of auto, {', '.join(names)} is needed")
    lines = [
        line for file in image_files(options.images) for line in classify(system, model, file, names, options.task)
    ]
    if options.json:
        for line in lines:
            print(json.dumps(line))
    else:
        Console().print(as_table(lines))


def image_files(paths: Sequence[Path]) -> list[Path]:
    """The files given, and those below folders given; ConfigError for what is not there."""
    missing = [str(path) for path in paths if not path.exists()]
    if missing:
        raise ConfigError(f"no such image: {', '.join(missing)}")
    return [file for path in paths for file in (sorted(path.rglob("*.*")) if path.is_dir() else [path])]


@torch.no_grad()
def classify(system: System, model: Model, file: Path, names: dict, task: str | None) -> list[dict]:
    """What each expert asked for says about one image: image, task, class, probability."""
    image = torch.from_numpy(decode(file.read_bytes(), str(file))).permute(2, 0, 1)[None]
    image = model.preprocess.fit(image)
    asked = names if task in (None, "auto") else [task]
    lines = []
    for expert in asked:
        probability, label = system(image, None if expert == BASE else expert).softmax(1)[0].max(0)
        lines.append(
            {"image": str(file), "task": expert, "class": names[expert][label], "probability": float(probability)}
        )
    return [max(lines, key=lambda line: line["probability"])] if task == "auto" else lines


def as_table(lines: Sequence[dict]) -> Table:
    """For a terminal."""
    table = Table("image", "task", "class", "probability")
    for line in lines:
        table.add_row(line["image"], line["task"], line["class"], f"{line['probability']:.3f}")
    return table


if __name__ == "__main__":
    try:
        main()
    except RecombineError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)
