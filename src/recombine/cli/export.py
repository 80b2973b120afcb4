"""Write a network for use without this project: what it computes is compared with the original before it is kept.

recombine export --model student.safetensors student.pt2 student.onnx
recombine export --model resnet56 --weights-root weights/cifar10 --patch mnist.safetensors --task mnist mnist.onnx
recombine export --model cnn-digits_high-s0 --clone clone.safetensors cloned.pt2
recombine export --model outputs/stitch/my-run/offspring/0.safetensors --images my/images offspring.onnx
recombine export --model student.safetensors student.pt2 --model-card README.md --push-to-hub me/student

A .pt2 file runs with torch alone, a .onnx file with any ONNX runtime. Both take uint8 images [B, 3, S, S] of the
network's own size, prepare them inside, give logits, and hold the class names.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from rich.table import Table
from torch import nn

from recombine.cli.hub import model_card, push
from recombine.cli.networks import BASE, NamedNetwork, add_network_arguments, open_network
from recombine.cli.predict import image_files, read
from recombine.core.console import open_console
from recombine.core.errors import ConfigError
from recombine.core.files import write_atomically
from recombine.models.export import EXPORTS, Equality, OneTask, export_network

IMAGES = 64
"""Images of a folder that are compared at the most."""


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path, help=f"what to write: names that end in {', '.join(EXPORTS)}")
    add_network_arguments(parser)
    parser.add_argument("--task", help="a patch by name; by default the only patch there is, else the base")
    parser.add_argument("--images", type=Path, action="append", help="compare on these images too, not on noise alone")
    parser.add_argument("--model-card", type=Path, help="write what the network is, for others, as Markdown")
    parser.add_argument("--push-to-hub", metavar="OWNER/NAME", help="upload files and card to the Hugging Face hub")
    return parser.parse_args()


def main() -> None:
    """Write each file and show how it compares."""
    options = arguments()
    wrong = [str(file) for file in options.files if file.suffix not in EXPORTS]
    if wrong:
        raise ConfigError(f"cannot export to {', '.join(wrong)}: names that end in {', '.join(EXPORTS)} are needed")
    found = open_network(options)
    network, task = choose_task(found, options.task)
    files = image_files(options.images)[:IMAGES] if options.images else []
    images = torch.cat([read(file, found.model, found.decoding) for file in files]) if files else None
    written: dict[Path, Equality] = {}
    shown = Table("file", "bytes", "images compared", "largest difference", "same class (%)")
    for file in options.files:
        card = {"class_names": found.names[task], "size": found.model.size, "model": found.model.name, "task": task}
        equality = export_network(network, file, found.model.size, card, images)
        write_labels(file, card)
        numbers = f"{equality.images}", f"{equality.difference:.1e}", f"{equality.agreement:.2f}"
        shown.add_row(str(file), f"{file.stat().st_size:,}", *numbers)
        written[file] = equality
    open_console().print(shown)
    if options.model_card or options.push_to_hub:
        publish(options, model_card(found, task, written), list(written))


def publish(options: argparse.Namespace, card: str, files: list[Path]) -> None:
    """Write the model card, and upload it with the exported files, class names, and the artifacts they were made of."""
    if options.model_card:
        write_atomically(options.model_card, card)
    if options.push_to_hub:
        artifacts = [Path(text.rpartition("=")[2]) for text in (options.model, *options.patch, *options.clone)]
        names = [file.with_suffix(".labels.json") for file in files]
        together = dict.fromkeys(file for file in (*files, *names, *artifacts) if file.is_file())
        print(push(options.push_to_hub, list(together), card))


def choose_task(found: NamedNetwork, task: str | None) -> tuple[nn.Module, str]:
    """The network to export and the name of its task; ConfigError if several could be meant."""
    patches = [name for name in found.names if name != BASE]
    if task is None and len(patches) > 1:
        raise ConfigError(f"--task: an exported network has one task; choose one of {', '.join(found.names)}")
    task = task or (patches[0] if patches else BASE)
    if task not in found.names:
        raise ConfigError(f"--task {task}: one of {', '.join(found.names)} is needed")
    return (found.cloned, BASE) if task == BASE else (OneTask(found.patched, task), task)


def write_labels(file: Path, card: dict[str, Any]) -> None:
    """The class names beside the network, for whoever does not want to look into it."""
    write_atomically(file.with_suffix(".labels.json"), json.dumps(card["class_names"], ensure_ascii=False) + "\n")
