"""The options of tools that name a network, and what is wrong with them before torch is imported."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from recombine.cli.paths import file, filled, folder
from recombine.core.errors import ConfigError
from recombine.data.storage import IMAGES
from recombine.data.tree import image_paths
from recombine.models.resolve import locate
from recombine.models.serialization import kind_of, read_card

__all__ = ["add_network_arguments", "check_network", "image_files", "named_file"]


def add_network_arguments(parser: argparse.ArgumentParser) -> None:
    """The options that name a network."""
    add = parser.add_argument
    add(
        "--model",
        required=True,
        type=filled,
        help="the base: a name, a checkpoint or offspring file, timm:<name>, torchvision:<name>",
    )
    add("--weights-root", type=folder, default="weights", help="where checkpoints are found by name")
    add("--classes", type=file, help="JSON list of the base's class names; default: ImageNet's of 1000, else numbers")
    several: dict[str, Any] = {"action": "append", "type": filled, "default": []}
    add("--patch", **several, help="a patch file, or <another name>=<file>; once for each patch")
    add("--clone", **several, help="a clone file: its classes join the base's; once for each file")
    add("--source", **several, help="a clone's source, where the file holds its masks alone")


def check_network(options: argparse.Namespace) -> None:
    """ConfigError with everything that shows before a network is built: names and files that are not there."""
    problems: list[str] = []
    for name in (*options.source, *([] if kind_of(options.model) == "offspring" else [options.model])):
        with noting(problems):
            locate(name, Path(options.weights_root))
    for kind, files in (("patch", options.patch), ("clone", options.clone)):
        for text in files:
            with noting(problems):
                read_card(named_file(text)[1], kind)
    if problems:
        raise ConfigError(dict.fromkeys(problems))


@contextmanager
def noting(problems: list[str]) -> Iterator[None]:
    """Collect what a ConfigError says, and go on after the block."""
    try:
        yield
    except ConfigError as error:
        problems += error.problems


def named_file(text: str) -> tuple[str, str]:
    """Name and file of `file` or `name=file`."""
    name, _, file = ("", "", text) if Path(text).exists() else text.rpartition("=")
    return name, file


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
