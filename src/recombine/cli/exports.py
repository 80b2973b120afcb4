"""Exported networks with their class names, compared with the original, and published if that is asked for."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.table import Table
from torch import Tensor, nn

from recombine.cli.classify import read
from recombine.cli.hub import model_card, push
from recombine.cli.networks import BASE, NamedNetwork, open_network
from recombine.core.console import open_console
from recombine.core.errors import ConfigError
from recombine.core.files import write_atomically
from recombine.data.crop import fit_whole
from recombine.data.pixels import decode, shown
from recombine.models.dense import is_dense
from recombine.models.export import Equality, OneTask, export_network

__all__ = ["export"]

IMAGES = 64
"""Images of a folder that are compared at the most."""


def export(images: Sequence[Path], options: argparse.Namespace) -> None:
    """Write each file that the options of `recombine export` name, and show how it compares on noise and `images`."""
    found = open_network(options)
    network, task = choose_task(found, options.task)
    whole = network if task == BASE else found.patched.task(task)
    size = getattr(whole, "preprocess", found.model.preprocess).size  # a segmentation patch has a size of its own
    pixels = torch.cat([see(file, found, size) for file in images[:IMAGES]]) if images else None
    written: dict[Path, Equality] = {}
    table = Table("file", "bytes", "images compared", "largest difference", "same class or object (%)")
    for file in options.files:
        card = {"class_names": found.names[task], "size": size, "model": found.model.name, "task": task}
        equality = export_network(network, file, size, card, pixels)
        write_labels(file, card)
        numbers = f"{equality.images}", f"{equality.difference:.1e}", f"{equality.agreement:.2f}"
        table.add_row(str(file), f"{file.stat().st_size:,}", *numbers)
        written[file] = equality
    open_console().print(table)
    if options.model_card or options.push_to_hub:
        publish(options, model_card(found, task, size, written), list(written))


def see(file: Path, found: NamedNetwork, size: int) -> Tensor:
    """An image as evaluation sees it: uint8 [1, 3, size, size]."""
    if not is_dense(found.model.net):
        return read(file, found.model, found.decoding)
    square, _ = fit_whole(decode(file.read_bytes(), shown(str(file)), found.decoding), size)
    return torch.from_numpy(square).permute(2, 0, 1)[None]


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
