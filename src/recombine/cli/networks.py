"""A network of the command line: the base, its clones, its patches, and the names of their classes."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn

from recombine import models, pnc, stitch
from recombine.cli.network_options import named_file
from recombine.core.errors import ConfigError
from recombine.data.pixels import Decoding
from recombine.models.model import Model
from recombine.models.resolve import locate
from recombine.models.serialization import kind_of, read_card
from recombine.patch import PatchedNetwork
from recombine.patch import read_card as read_patch_card
from recombine.patch.serialization import DENSE_HEADS
from recombine.pnc import ClonedNetwork

__all__ = ["BASE", "NamedNetwork", "open_network"]

BASE = "base"
"""The task of the base among those of its patches."""


class NamedNetwork(NamedTuple):
    """What `--model`, `--clone` and `--patch` name."""

    model: Model
    """The base alone."""
    cloned: nn.Module
    """The base with its clones; the base itself if there are none."""
    patched: PatchedNetwork
    names: dict[str, list[str]]
    """Class names by task: those of the base and its clones, and of each patch."""
    decoding: Decoding
    """How the images that the base was trained on became pixels."""


def open_network(options: argparse.Namespace) -> NamedNetwork:
    """The network that the options name; ConfigError for what is not there or does not fit."""
    model, card = load_base(options)
    patched = attach_patches(model, options.patch)
    cloned, class_names = attach_clones(model, card.get("class_names"), options)
    names = {BASE: class_names} | {name: card["class_names"] for name, card in patched.list().items()}
    return NamedNetwork(model, cloned, patched, names, read_decoding(card, options.model))


def load_base(options: argparse.Namespace) -> tuple[Model, Mapping[str, Any]]:
    """The network and the card of its file, empty where it has none."""
    card = stitch.offspring_card(options.model)
    if card is not None:
        return stitch.load(options.model), card
    _, file = locate(options.model, Path(options.weights_root))
    cards = [read_patch_card(named_file(text)[1]) for text in options.patch]
    # a network that labels pixels may have no classes before its patch
    classes = next((card["classes"] for card in cards if card.get("head") in DENSE_HEADS), None)
    model = models.build(options.model, classes=classes, weights_root=options.weights_root)
    return model, read_card(file, "student") if file and kind_of(file) == "student" else {}


def read_decoding(card: Mapping[str, Any], name: str) -> Decoding:
    """How the images that a network was trained on became pixels, as its card says."""
    given = card.get("decoding", {})
    try:
        return Decoding(**given | {"pixel_range": given.get("pixel_range") and tuple(given["pixel_range"])})
    except (TypeError, AttributeError) as error:
        raise ConfigError(f"{name} is damaged or of another version: its card says decoding={given}") from error


def attach_patches(model: Model, patches: Sequence[str]) -> PatchedNetwork:
    """The base with patches given as `file` or `name=file`; ConfigError for impossible names."""
    network = PatchedNetwork(model)
    for text in patches:
        name, file = named_file(text)
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
    if not options.clone and options.source:
        raise ConfigError("--source names what a clone was copied from; give the clone's file too (--clone FILE)")
    if not options.clone:
        return model, names
    cloned = ClonedNetwork(model, names)
    sources = [models.build(name, weights_root=options.weights_root) for name in options.source]
    for file in options.clone:
        pnc.attach(cloned, file, sources=sources)
    return cloned, cloned.class_names


def read_class_names(path: Path | None, model: Model) -> list[str]:
    """The class names of the base: those of a JSON file, its own, or their numbers."""
    if path is None:
        return model.class_names or [str(k) for k in range(model.classes)]
    try:
        names = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"--classes {path} cannot be read as JSON: {error}") from error
    if not isinstance(names, list) or len(names) != model.classes:
        found = f"{len(names)} names" if isinstance(names, list) else "no list"
        raise ConfigError(f"--classes {path} holds {found}; a list of the {model.classes} names of the base is needed")
    return [str(name) for name in names]
