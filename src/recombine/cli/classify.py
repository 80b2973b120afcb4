"""The classes of image files, or of their pixels, by a network of the command line."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import torch
from rich.table import Table
from torch import Tensor

from recombine.cli.networks import BASE, open_network
from recombine.cli.predict_boxes import objects_table, predict_boxes
from recombine.cli.predict_masks import output_paths, predict_masks, shares_table
from recombine.core.console import open_console
from recombine.core.errors import ConfigError
from recombine.data.pixels import Decoding, decode, shown
from recombine.models.dense import labels_pixels
from recombine.models.detection import Detector
from recombine.models.model import Model, unwrap
from recombine.patch import PatchedNetwork
from recombine.run.device import open_device

__all__ = ["classify", "read"]

BATCH = 64


def classify(files: Sequence[Path], options: argparse.Namespace) -> None:
    """Print the classes of every image, as the options of `recombine predict` say."""
    model, cloned, patched, names, decoding = open_network(options)
    if options.task not in (None, "auto", *names):
        raise ConfigError(f"--task {options.task}: one of auto, {', '.join(names)} is needed")
    check_output(model, options)
    if isinstance(model.net, Detector) or labels_pixels(model):
        label_places(patched, files, decoding, names, options)
        return
    with open_device(options.device) as (device, _, _):
        cloned.to(device), patched.to(device)

        def answer(images: Tensor) -> dict[str, Tensor]:
            if options.task in (None, "auto"):
                return {BASE: cloned(images), **patched.predict_all(images)}
            return {options.task: cloned(images) if options.task == BASE else patched(images, options.task)}

        found = predict(answer, partial(read, model=model, decoding=decoding), files, names, options)
        if options.json:
            print_lines(found)
        else:
            open_console().print(as_table(list(found), patched.list()))


def check_output(model: Model, options: argparse.Namespace) -> None:
    """Raise ConfigError for a folder of masks or pictures that this network does not give."""
    gives = "boxes" if isinstance(model.net, Detector) else "masks" if labels_pixels(model) else "classes"
    for name, given in (("masks", options.masks), ("boxes", options.boxes)):
        if given and gives != name:
            what = {"classes": "classifies whole images", "masks": "labels pixels", "boxes": "finds objects"}[gives]
            raise ConfigError(f"--{name}: {model.name} {what} and gives no {name}")


def label_places(
    network: PatchedNetwork,
    files: Sequence[Path],
    decoding: Decoding,
    names: Mapping[str, list[str]],
    options: argparse.Namespace,
) -> None:
    """Print the objects of every image, or write its mask and print the classes with the most pixels; of one task."""
    tasks = [options.task] if options.task else [*network.list()] or [BASE]
    if len(tasks) > 1 or tasks == ["auto"]:
        raise ConfigError(f"masks and boxes are of one task: --task {' or '.join(names)}")
    boxes = isinstance(unwrap(network.base).net, Detector)
    paths = output_paths(files, "boxes" if boxes else "masks", options.boxes if boxes else options.masks)
    with open_device(options.device) as (device, _, _):
        network.to(device).eval()
        model = network.base if tasks == [BASE] else network.task(tasks[0])
        known = names[tasks[0]]
        if boxes:
            found, table = predict_boxes(model, files, paths, decoding, known, options.score), objects_table
        else:
            assert paths is not None, "masks have to go somewhere"
            found, table = predict_masks(model, files, paths, decoding, known, options.top), shares_table
        if options.json:
            print_lines(found)
        else:
            open_console().print(table(list(found)))


def print_lines(rows: Iterable[dict]) -> None:
    """One JSON object a line, each as soon as it is known."""
    for each in rows:
        print(json.dumps(each))


@torch.no_grad()
def predict(
    answer: Callable[[Tensor], Mapping[str, Tensor]],
    load: Callable[[Path], Tensor],
    files: Sequence[Path],
    names: dict[str, list[str]],
    options: argparse.Namespace,
) -> Iterator[dict]:
    """The predictions for each image by every task in an answer: image, task, class, probability.

    `answer` gives logits by task for uint8 images [B, 3, H, W].
    """
    for first in range(0, len(files), BATCH):
        batch = files[first : first + BATCH]
        images = torch.cat([load(file) for file in batch])
        predictions = {name: logits.softmax(1).cpu() for name, logits in answer(images).items()}
        for k, file in enumerate(batch):
            confidence = {name: float(probabilities[k].max()) for name, probabilities in predictions.items()}
            tasks = [max(predictions, key=confidence.__getitem__)] if options.task == "auto" else predictions
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
