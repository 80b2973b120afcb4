"""Put clone files together, take them apart, and store them with or without their source's weights.

recombine clones show mine.safetensors
recombine clones attach mine.safetensors digits.safetensors letters.safetensors   (mine need not be there yet)
recombine clones detach mine.safetensors clone2
recombine clones export mine.safetensors small.safetensors --form reference
recombine clones export small.safetensors whole.safetensors --form whole --model resnet18 --source resnet50
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from recombine import models
from recombine.core.errors import ConfigError
from recombine.models.freeze import digest
from recombine.pnc.clone import file
from recombine.pnc.clone.file import Stored


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    actions = parser.add_subparsers(dest="action", required=True)
    about = {"show": "what a file holds", "attach": "add the clones of other files", "detach": "remove a clone"}
    parsers = {name: actions.add_parser(name, help=text) for name, text in about.items()}
    parsers["export"] = actions.add_parser("export", help="write the clones with or without their source's weights")
    for one in parsers.values():
        one.add_argument("file", type=Path)
    parsers["attach"].add_argument("clones", nargs="+", type=Path)
    parsers["detach"].add_argument("name")
    add = parsers["export"].add_argument
    add("out", type=Path)
    add("--form", required=True, choices=("whole", "reference"), help="with the source's weights, or its masks alone")
    add("--model", help="the target, to make a reference whole")
    add("--source", action="append", default=[], help="a source, to make a reference whole; once for each")
    add("--weights-root", default="weights", help="where checkpoints are found by name")
    return parser.parse_args()


def main() -> None:
    """Do what is asked and show the file it led to."""
    options = arguments()
    place = options.file
    if options.action == "attach":
        file.write(place, attached(place, options.clones))
    elif options.action == "detach":
        file.write(place, detached(place, options.name))
    elif options.action == "export":
        place = file.write(options.out, exported(options))
    Console().print(table(place))


def attached(place: Path, others: Sequence[Path]) -> list[Stored]:
    """The clones of a file, if it is there, and those of others; names that are taken get a number."""
    clones = file.read(place) if place.exists() else []
    for other in others:
        for clone in file.read(other):
            name = file.free_name(clone.card["name"], [each.card["name"] for each in clones])
            clones.append(Stored(clone.card | {"name": name}, clone.tensors))
    return clones


def detached(place: Path, name: str) -> list[Stored]:
    """The clones of a file but one; ConfigError if it is not there, or the last."""
    clones = file.read(place)
    left = [clone for clone in clones if clone.card["name"] != name]
    if len(left) == len(clones):
        held = ", ".join(clone.card["name"] for clone in clones)
        raise ConfigError(f"{place} holds no clone {name!r}; it holds: {held}")
    if not left:
        raise ConfigError(f"{name} is the last clone of {place}: without it the network is its target; delete the file")
    return left


def exported(options: argparse.Namespace) -> list[Stored]:
    """The clones in the form that is asked for."""
    clones = file.read(options.file)
    if options.form == "reference":
        return [file.as_reference(clone) for clone in clones]
    if not any(clone.card["reference"] for clone in clones):
        return clones
    if options.model is None:
        raise ConfigError("--form whole takes the sources' weights: give --model <target> and --source <source>")
    names = (options.model, *options.source)
    target, *sources = (models.build(name, weights_root=options.weights_root) for name in names)
    own = digest(target)
    return [file.as_whole(clone, file.build(options.file, clone, target, own, sources)) for clone in clones]


def table(place: Path) -> Table:
    """What a file holds, for a terminal."""
    clones = file.read(place)
    about = clones[0].card
    size, small = file.size(clones), file.size([file.as_reference(clone) for clone in clones])
    title = f"{place}: for {about['network']} {about['target'][:12]}, {size:,} bytes ({small:,} as references)"
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
