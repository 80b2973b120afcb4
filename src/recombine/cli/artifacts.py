"""List what students, offspring, patches and clones are; put clone files together and take them apart.

recombine artifacts list outputs/patch/*/patches/*.safetensors clone.safetensors
recombine artifacts attach mine.safetensors digits.safetensors letters.safetensors   (mine need not be there yet)
recombine artifacts detach mine.safetensors clone2
recombine artifacts export mine.safetensors small.safetensors --form reference
recombine artifacts export small.safetensors whole.safetensors --form whole --model resnet18 --source resnet50

Patches stay in files of their own: recombine predict --patch a.safetensors --patch b.safetensors puts on any number.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from recombine.cli.paths import existing_file, filled, folder, new_file
from recombine.core.console import open_console
from recombine.core.errors import ConfigError
from recombine.models.serialization import kind_of, read_card
from recombine.pnc.clone.cards import read_cards


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    actions = parser.add_subparsers(dest="action", required=True)
    shown = actions.add_parser("list", help="what files hold, whatever their kind")
    shown.add_argument("files", nargs="+", type=existing_file)
    about = {"attach": "add the clones of other files", "detach": "take off one clone"}
    parsers = {name: actions.add_parser(name, help=text) for name, text in about.items()}
    parsers["export"] = actions.add_parser("export", help="write the clones with or without their source's weights")
    for name, one in parsers.items():
        one.add_argument("file", type=new_file if name == "attach" else existing_file)
    parsers["attach"].add_argument("clones", nargs="+", type=existing_file)
    parsers["detach"].add_argument("name")
    add = parsers["export"].add_argument
    add("out", type=new_file)
    add("--form", required=True, choices=("whole", "reference"), help="with the source's weights, or its masks alone")
    add("--model", type=filled, help="the target, to make a reference whole")
    add("--source", action="append", type=filled, default=[], help="a source, to make a reference whole; once for each")
    add("--weights-root", type=folder, default="weights", help="where checkpoints are found by name")
    return parser.parse_args()


def main() -> None:
    """Run one action and show the resulting file."""
    options = parse_arguments()
    if options.action == "list":
        open_console().print(list_files(options.files))
        return
    from recombine.cli.clone_files import change_clones  # and with it torch

    open_console().print(change_clones(options))


def list_files(paths: Sequence[Path]) -> Table:
    """What files hold, a row for each patch, clone, student or offspring; ConfigError for any other file."""
    shown = Table("file", "kind", "name", "made for", "classes", "accuracy (%)")
    for path in paths:
        kind = kind_of(path)
        if kind is None:
            raise ConfigError(f"{path} is no file of ours: students, offspring, patches and clones are")
        cards = [*read_cards(path).values()] if kind == "clone" else [read_card(path, kind)]
        for card in cards:
            shown.add_row(str(path), kind, *DESCRIBE[kind](card))
    return shown


def describe_network(card: Mapping[str, Any]) -> tuple[str, str, str, str]:
    """Columns of a student."""
    model, metrics = card["model"], card.get("metrics", {})
    accuracy = metrics.get("accuracy_after", metrics.get("accuracy"))
    return model["name"], card.get("dataset", ""), str(model["classes"]), format_number(accuracy)


def describe_offspring(card: Mapping[str, Any]) -> tuple[str, str, str, str]:
    """Columns of an offspring."""
    parents = " x ".join(parent["name"] for parent in card["parents"])
    return (
        card["name"],
        parents,
        str(card["parents"][0]["classes"]),
        format_number(card.get("metrics", {}).get(f"test_{'miou' if card.get('task') else 'accuracy'}")),
    )


def describe_patch(card: Mapping[str, Any]) -> tuple[str, str, str, str]:
    """Columns of a patch: mean accuracy over its tasks."""
    known = [card.get("metrics", {}).get(f"accuracy_{task}") for task in card.get("tasks", ())]
    accuracy = sum(known) / len(known) if known and None not in known else None
    return card["name"], f"{card['network']} {card['base'][:12]}", str(card["classes"]), format_number(accuracy)


def describe_clone(card: Mapping[str, Any]) -> tuple[str, str, str, str]:
    """Columns of a clone."""
    classes = ", ".join(map(str, card["class_names"]))
    accuracy = card.get("metrics", {}).get("accuracy_average")
    return card["name"], f"{card['network']} {card['target'][:12]}", classes, format_number(accuracy)


def format_number(value: float | None) -> str:
    """Two digits, or nothing for a value that no one measured."""
    return "" if value is None else f"{value:.2f}"


DESCRIBE: dict[str, Callable[[Mapping[str, Any]], tuple[str, str, str, str]]] = {
    "student": describe_network,
    "offspring": describe_offspring,
    "patch": describe_patch,
    "clone": describe_clone,
}
