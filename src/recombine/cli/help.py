"""What `--help` lists: the groups that an entry has, with their options."""

from __future__ import annotations

import os
import shutil
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

__all__ = ["PROGRAM", "groups", "program", "register_help", "started_as"]

PROGRAM = "RECOMBINE_PROGRAM"
"""Environment variable: the words that started the command, for the workers of its launcher."""


def groups() -> str:
    """One paragraph per group of the running entry, at the terminal's width; experiments are those of the entry."""
    config = HydraConfig.get()
    experiments = f"experiment/{config.job.name}"
    slots: dict[str, list[str]] = {}
    for slot in [*reversed(list(config.runtime.choices)), "experiment"]:
        group = str(slot).partition("@")[0]
        if not group.startswith("hydra/") and slot not in slots.get(group, []):
            slots.setdefault(group, []).append(slot)
    listed = {group: sorted(_options(group, experiments if group == "experiment" else group)) for group in slots}
    return "\n".join(_paragraph(", ".join(slots[group]), options) for group, options in listed.items() if options)


def _paragraph(name: str, options: list[str]) -> str:
    width = min(shutil.get_terminal_size().columns, 120)
    text = f"{name}: {', '.join(options)}"
    return textwrap.fill(text, width, subsequent_indent="    ", break_on_hyphens=False, break_long_words=False)


def _options(group: str, folder: str) -> Iterator[str]:
    """Options below `folder` as they are written after `group=`."""
    loader = GlobalHydra.instance().config_loader()
    names = [f"{folder}/{name}" for name in loader.get_group_options(folder) if not name.startswith("_")]
    yield from (name.removeprefix(f"{group}/") for name in names)
    for inner in loader.list_groups(folder):
        yield from _options(group, f"{folder}/{inner}")


def program() -> str:
    """The words that started this entry: `python main_transfer.py` in a clone, else `recombine transfer`.

    Workers of a launcher are started otherwise; they tell what started the sweep.
    """
    return os.environ.get(PROGRAM) or started_as(HydraConfig.get().job.name)


def started_as(entry: str) -> str:
    """What started this very process, which runs `entry`."""
    script = Path(sys.argv[0])
    processes = os.environ.get("LOCAL_WORLD_SIZE", "1")
    starter = "" if processes == "1" else f"torchrun --nproc_per_node {processes} "
    if script.suffix == ".py" and script.stem != "command":
        return f"{starter or 'python '}{script.name}"
    return f"{starter and starter + '--no-python '}recombine {entry}"


def register_help() -> None:
    """Make `${groups:}` and `${program:}` known, which the help template of every entry uses."""
    OmegaConf.register_new_resolver("groups", groups, replace=True)
    OmegaConf.register_new_resolver("program", program, replace=True)
