"""Clone files put together and taken apart without the networks they are for."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from rich.table import Table

from recombine import models
from recombine.core.errors import ConfigError
from recombine.models.freeze import digest
from recombine.pnc.clone.serialization import (
    StoredClone,
    build_clone,
    file_size,
    free_name,
    read_clones,
    to_reference,
    to_whole,
    write_clones,
)

__all__ = ["change_clones"]


def change_clones(options: argparse.Namespace) -> Table:
    """Run an action of `recombine artifacts` on a clone file and show what the file holds then."""
    path = options.file
    if options.action == "attach":
        write_clones(path, attach_clones(path, options.clones))
    elif options.action == "detach":
        write_clones(path, detach_clone(path, options.name))
    elif options.action == "export":
        path = write_clones(options.out, export_clones(options))
    return format_table(path)


def attach_clones(path: Path, others: Sequence[Path]) -> list[StoredClone]:
    """The clones of a file, if it is there, and those of others; names that are taken get a number."""
    clones = read_clones(path) if path.exists() else []
    for other in others:
        for clone in read_clones(other):
            name = free_name(clone.card["name"], [each.card["name"] for each in clones])
            clones.append(StoredClone(clone.card | {"name": name}, clone.tensors))
    return clones


def detach_clone(path: Path, name: str) -> list[StoredClone]:
    """The clones of a file but one; ConfigError if it is not there, or the last."""
    clones = read_clones(path)
    left = [clone for clone in clones if clone.card["name"] != name]
    if len(left) == len(clones):
        held = ", ".join(clone.card["name"] for clone in clones)
        raise ConfigError(f"{path} holds no clone {name!r}; it holds: {held}")
    if not left:
        raise ConfigError(f"{name} is the last clone of {path}: without it the network is its target; delete the file")
    return left


def export_clones(options: argparse.Namespace) -> list[StoredClone]:
    """The clones with or without their sources' weights, as `--form` says."""
    clones = read_clones(options.file)
    if options.form == "reference":
        return [to_reference(clone) for clone in clones]
    if not any(clone.card["reference"] for clone in clones):
        return clones
    if options.model is None:
        raise ConfigError("--form whole takes the sources' weights: give --model <target> and --source <source>")
    names = (options.model, *options.source)
    target, *sources = (models.build(name, weights_root=options.weights_root) for name in names)
    weights = digest(target)
    return [to_whole(clone, build_clone(options.file, clone, target, weights, sources)) for clone in clones]


def format_table(path: Path) -> Table:
    """What a file holds, for a terminal."""
    clones = read_clones(path)
    first = clones[0].card
    size, small = file_size(clones), file_size([to_reference(clone) for clone in clones])
    title = f"{path}: for {first['network']} {first['target'][:12]}, {size:,} bytes ({small:,} as references)"
    shown = Table("clone", "classes", "source", "R", "form", "average accuracy", title=title)
    for card, _ in clones:
        accuracy = card.get("metrics", {}).get("accuracy_average")
        shown.add_row(
            card["name"],
            ", ".join(map(str, card["class_names"])),
            f"{card['source']['name']} {card['source_digest'][:12]}",
            f"{card['position']} into {card['source_position']}",
            "reference" if card["reference"] else "whole",
            "" if accuracy is None else f"{accuracy:.2f} %",
        )
    return shown
