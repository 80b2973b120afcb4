"""Classify image files with a network, any clones in it and any patches of it.

recombine predict --model resnet56 --weights-root weights/cifar10 --patch mnist.safetensors images/*.png
recombine predict --model cnn-digits_high-s0 --clone outputs/pnc/*/clone.safetensors images/
recombine predict --model outputs/stitch/*/offspring/0.safetensors images/
recombine predict --model timm:resnet50 --patch cars.safetensors --patch birds.safetensors --task auto a.jpg
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torchvision.models import ResNet18_Weights

from recombine import models, pnc, stitch
from recombine.core.errors import ConfigError
from recombine.data.storage import decode
from recombine.models.model import Model
from recombine.patch import PatchedNetwork
from recombine.pnc import ClonedNetwork
from recombine.run.device import opened

BASE = "base"
SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
BATCH = 64
Expert = Callable[[Tensor], Tensor]
"""uint8 images [B, 3, H, W] in, logits out."""


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    add = parser.add_argument
    add("images", nargs="+", type=Path, help="image files or folders of them")
    add(
        "--model",
        required=True,
        help="the base: a name, a checkpoint or offspring file, timm:<name>, torchvision:<name>",
    )
    add("--weights-root", default="weights", help="where checkpoints are found by name")
    add("--classes", type=Path, help="JSON list of the base's class names; default: ImageNet's of 1000, else numbers")
    add("--patch", action="append", default=[], help="a patch file, or <another name>=<file>; once for each patch")
    add("--clone", action="append", default=[], help="a clone file: its classes join the base's; once for each file")
    add("--source", action="append", default=[], help="a clone's source, where the file holds its masks alone")
    add("--task", help="only this patch (base: only the base; auto: the most confident of all)")
    add("--top", type=int, default=1, help="so many classes of each image, the most probable first")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:<number>")
    add("--json", action="store_true", help="one JSON object a line instead of a table")
    return parser.parse_args()


def main() -> None:
    """Print the classes of every image."""
    options = arguments()
    if options.top < 1:
        raise ConfigError(f"--top {options.top}: a number of classes of at least 1 is needed")
    if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", options.device):
        raise ConfigError(f"--device {options.device}: one of auto, cpu, cuda, cuda:<number>, mps is needed")
    files = image_files(options.images)
    model, base_names = load_base(options)
    patched = attach_patches(model, options.patch)
    cloned, class_names = attach_clones(model, base_names, options)
    names = {BASE: class_names} | {name: card["class_names"] for name, card in patched.list().items()}
    if options.task not in (None, "auto", *names):
        raise ConfigError(f"--task {options.task}: one of auto, {', '.join(names)} is needed")
    with opened(options.device) as (device, _, _):
        experts: dict[str, Expert] = {BASE: cloned.to(device)}
        experts |= {name: partial(patched.to(device), task=name) for name in patched.list()}
        found = predict(experts, model, files, names, options)
        if options.json:
            for each in found:
                print(json.dumps(each))
        else:
            Console().print(as_table(list(found), patched.list()))


def load_base(options: argparse.Namespace) -> tuple[Model, list[str] | None]:
    """The network, and its class names where its file has them."""
    card = stitch.offspring_card(options.model)
    if card is None:
        return models.build(options.model, weights_root=options.weights_root), None
    return stitch.load(options.model), card.get("class_names")


def attach_patches(model: Model, patches: Sequence[str]) -> PatchedNetwork:
    """The base with patches given as `file` or `name=file`; ConfigError for impossible names."""
    network = PatchedNetwork(model)
    for text in patches:
        name, _, file = ("", "", text) if Path(text).exists() else text.rpartition("=")
        try:
            network.attach(file, name or None)
        except ConfigError as error:
            raise ConfigError(str(error).replace("attach(network, path, name)", f"--patch another={file}")) from error
    return network


def attach_clones(model: Model, names: list[str] | None, options: argparse.Namespace) -> tuple[nn.Module, list[str]]:
    """The base with clones of parts of other networks, and the names of all its classes, the base's first.

    `names` of the base, if its file has them.
    """
    cards = [card for file in options.clone for card in pnc.read_cards(file).values()]
    names = names or next((card.get("target_class_names") for card in cards), None)
    names = names if names and not options.classes else read_class_names(options.classes, model)
    if not options.clone:
        return model, names
    cloned = ClonedNetwork(model, names)
    sources = [models.build(name, weights_root=options.weights_root) for name in options.source]
    for file in options.clone:
        pnc.attach(cloned, file, sources=sources)
    return cloned, cloned.class_names


def read_class_names(path: Path | None, model: Model) -> list[str]:
    """The class names of the base: those of a JSON file, ImageNet's if there are 1000 classes, or their numbers."""
    if path is None:
        known = ResNet18_Weights.IMAGENET1K_V1.meta["categories"]
        return known if model.classes == len(known) else [str(k) for k in range(model.classes)]
    try:
        names = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"--classes {path} cannot be read as JSON: {error}") from error
    if not isinstance(names, list) or len(names) != model.classes:
        found = f"{len(names)} names" if isinstance(names, list) else "no list"
        raise ConfigError(f"--classes {path} holds {found}; a list of the {model.classes} names of the base is needed")
    return [str(name) for name in names]


def image_files(paths: Sequence[Path]) -> list[Path]:
    """The files given, and the images below folders given; ConfigError for what is not there."""
    missing = [str(path) for path in paths if not path.exists()]
    if missing:
        raise ConfigError(f"no such image: {', '.join(missing)}")
    if patches := [str(path) for path in paths if path.suffix == ".safetensors"]:
        raise ConfigError(f"these are patches and no images: {', '.join(f'--patch {path}' for path in patches)}")
    files = []
    for path in paths:
        inside = (
            [file for file in sorted(path.rglob("*")) if file.suffix.lower() in SUFFIXES] if path.is_dir() else [path]
        )
        if not inside:
            raise ConfigError(f"{path} holds no image: files that end in {', '.join(SUFFIXES)} are")
        files += inside
    return files


@torch.no_grad()
def predict(
    experts: Mapping[str, Expert],
    model: Model,
    files: Sequence[Path],
    names: dict[str, list[str]],
    options: argparse.Namespace,
) -> Iterator[dict]:
    """The predictions of each selected expert for each image: image, task, class, probability."""
    selected = list(experts) if options.task in (None, "auto") else [options.task]
    for first in range(0, len(files), BATCH):
        batch = files[first : first + BATCH]
        images = torch.cat([read(file, model) for file in batch]).to(next(model.parameters()).device)
        predictions = {name: experts[name](images).softmax(1).cpu() for name in selected}
        for k, file in enumerate(batch):
            confidence = {name: float(probabilities[k].max()) for name, probabilities in predictions.items()}
            tasks = [max(selected, key=confidence.__getitem__)] if options.task == "auto" else selected
            for name in tasks:
                yield from top_classes(
                    predictions[name][k], {"image": str(file), "task": name}, names[name], options.top
                )


def read(file: Path, model: Model) -> Tensor:
    """An image as the network takes it: uint8 [1, 3, size, size]."""
    return model.preprocess.fit(torch.from_numpy(decode(file.read_bytes(), str(file))).permute(2, 0, 1)[None])


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
