"""Classify image files, or their pixels, with a network, any clones in it and any patches of it.

recombine predict --model resnet56 --weights-root weights/cifar10 --patch mnist.safetensors images/*.png
recombine predict --model cnn-digits_high-s0 --clone outputs/pnc/*/clone.safetensors images/
recombine predict --model outputs/stitch/*/offspring/0.safetensors images/
recombine predict --model timm:resnet50 --patch cars.safetensors --patch birds.safetensors --task auto a.jpg
recombine predict --model lraspp_mobilenetv2_tv-camvid-s0 --masks masks/ images/
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import torch
from rich.table import Table
from torch import Tensor

from recombine.cli.networks import BASE, add_network_arguments, open_network
from recombine.cli.predict_masks import mask_paths, predict_masks, shares_table
from recombine.core.console import open_console
from recombine.core.errors import ConfigError
from recombine.data.pixels import Decoding, decode, shown
from recombine.data.storage import IMAGES
from recombine.data.tree import image_paths
from recombine.models.model import Model
from recombine.models.segmentation import Segmenter
from recombine.patch import PatchedNetwork
from recombine.run.device import open_device

BATCH = 64
Expert = Callable[[Tensor], Tensor]
"""uint8 images [B, 3, H, W] in, logits out."""


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    add = parser.add_argument
    add("images", nargs="+", type=Path, help="image files or folders of them")
    add_network_arguments(parser)
    add("--task", help="only this patch (base: only the base; auto: the most confident of all)")
    add("--top", type=int, default=1, help="so many classes of each image, the most probable first")
    add("--masks", type=Path, help="of a network that labels pixels: the folder for a mask of each image (PNG)")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:<number>")
    add("--json", action="store_true", help="one JSON object a line instead of a table")
    return parser.parse_args()


def main() -> None:
    """Print the classes of every image."""
    options = arguments()
    if options.top < 1:
        raise ConfigError(f"--top {options.top}: a number of classes of at least 1 is needed")
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", options.device):
        raise ConfigError(f"--device {options.device}: one of auto, cpu, cuda, cuda:<number> is needed")
    files = image_files(options.images)
    model, cloned, patched, names, decoding = open_network(options)
    if options.task not in (None, "auto", *names):
        raise ConfigError(f"--task {options.task}: one of auto, {', '.join(names)} is needed")
    if isinstance(model.net, Segmenter):
        label_pixels(patched, files, decoding, names, options)
        return
    if options.masks:
        raise ConfigError(f"--masks: {model.name} classifies whole images and gives no masks")
    with open_device(options.device) as (device, _, _):
        experts: dict[str, Expert] = {BASE: cloned.to(device)}
        experts |= {name: partial(patched.to(device), task=name) for name in patched.list()}
        found = predict(experts, partial(read, model=model, decoding=decoding), files, names, options)
        if options.json:
            print_lines(found)
        else:
            open_console().print(as_table(list(found), patched.list()))


def label_pixels(
    network: PatchedNetwork,
    files: Sequence[Path],
    decoding: Decoding,
    names: Mapping[str, list[str]],
    options: argparse.Namespace,
) -> None:
    """Write the mask of every image, of one task, and print the classes with the most pixels."""
    tasks = [options.task] if options.task else [*network.list()] or [BASE]
    if len(tasks) > 1 or tasks == ["auto"]:
        raise ConfigError(f"masks are of one task: --task {' or '.join(names)}")
    paths = mask_paths(files, options.masks)
    with open_device(options.device) as (device, _, _):
        network.to(device).eval()
        model = network.base if tasks == [BASE] else network.task(tasks[0])
        found = predict_masks(model, files, paths, decoding, names[tasks[0]], options.top)
        if options.json:
            print_lines(found)
        else:
            open_console().print(shares_table(list(found)))


def print_lines(rows: Iterable[dict]) -> None:
    """One JSON object a line, each as soon as it is known."""
    for each in rows:
        print(json.dumps(each))


def image_files(paths: Sequence[Path]) -> list[Path]:
    """The files given, and the images below folders given; ConfigError for what is not there."""
    missing = [str(path) for path in paths if not path.exists()]
    if missing:
        raise ConfigError(f"no such image: {', '.join(missing)}")
    if patches := [str(path) for path in paths if path.suffix == ".safetensors"]:
        raise ConfigError(f"these are patches and no images: {', '.join(f'--patch {path}' for path in patches)}")
    files = []
    for path in paths:
        inside = image_paths(path) if path.is_dir() else [path]
        if not inside:
            raise ConfigError(f"{path} holds no image: files that end in {', '.join(IMAGES)} are")
        files += inside
    return files


@torch.no_grad()
def predict(
    experts: Mapping[str, Expert],
    load: Callable[[Path], Tensor],
    files: Sequence[Path],
    names: dict[str, list[str]],
    options: argparse.Namespace,
) -> Iterator[dict]:
    """The predictions of each selected expert for each image: image, task, class, probability."""
    selected = list(experts) if options.task in (None, "auto") else [options.task]
    for first in range(0, len(files), BATCH):
        batch = files[first : first + BATCH]
        images = torch.cat([load(file) for file in batch])
        predictions = {name: experts[name](images).softmax(1).cpu() for name in selected}
        for k, file in enumerate(batch):
            confidence = {name: float(probabilities[k].max()) for name, probabilities in predictions.items()}
            tasks = [max(selected, key=confidence.__getitem__)] if options.task == "auto" else selected
            for name in tasks:
                yield from top_classes(
                    predictions[name][k], {"image": shown(str(file)), "task": name}, names[name], options.top
                )


def read(file: Path, model: Model, decoding: Decoding) -> Tensor:
    """An image as the network takes it, on its device: uint8 [1, 3, size, size]."""
    pixels = torch.from_numpy(decode(file.read_bytes(), shown(str(file)), decoding))
    return model.preprocess.fit(pixels.permute(2, 0, 1)[None].to(next(model.parameters()).device))


def top_classes(probabilities: Tensor, row: dict, names: list[str], count: int) -> Iterator[dict]:
    """A row for each of the most probable classes."""
    for probability, label in zip(*probabilities.topk(min(count, len(names))), strict=True):
        yield {**row, "class": names[int(label)], "probability": float(probability)}


def as_table(rows: Sequence[dict], cards: dict[str, dict]) -> Table:
    """The predictions for a terminal, with the accuracies of the patches below."""
    known = [
        f"{name}: {card['metrics'][f'accuracy_{task}']:.2f} % right on the test images of {task}"
        for name, card in cards.items()
        for task in card.get("tasks", ())
        if f"accuracy_{task}" in card.get("metrics", ())
    ]
    table = Table("image", "task", "class", "probability", caption="\n".join(known) or None, caption_justify="left")
    for row in rows:
        table.add_row(row["image"], row["task"], row["class"], f"{row['probability']:.3f}")
    return table
