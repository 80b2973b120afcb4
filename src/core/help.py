"""What `--help` lists: the groups that an entry has, with their options."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Iterator

from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig

__all__ = ["groups"]


def groups() -> str:
    """One paragraph per group of the running entry, at the terminal's width; experiments are those of the entry."""
    config = HydraConfig.get()
    own = f"experiment/{config.job.name.removeprefix('main_')}"
    slots: dict[str, list[str]] = {}
    for slot in [*reversed(list(config.runtime.choices)), "experiment"]:
        group = str(slot).partition("@")[0]
        if not group.startswith("hydra/") and slot not in slots.get(group, []):
            slots.setdefault(group, []).append(slot)
    listed = {group: sorted(_options(group, own if group == "experiment" else group)) for group in slots}
    return "\n".join(_paragraph(", ".join(slots[group]), options) for group, options in listed.items() if options)


def _paragraph(name: str, options: list[str]) -> str:
    width = min(shutil.get_terminal_size().columns, 120)
    unbroken = {"break_on_hyphens": False, "break_long_words": False}
    return textwrap.fill(f"{name}: {', '.join(options)}", width, subsequent_indent="    ", **unbroken)


def _options(group: str, folder: str) -> Iterator[str]:
    """Options below `folder` as they are written after `group=`."""
    loader = GlobalHydra.instance().config_loader()
    names = [f"{folder}/{name}" for name in loader.get_group_options(folder) if not name.startswith("_")]
    yield from (name.removeprefix(f"{group}/") for name in names)
    for inner in loader.list_groups(folder):
        yield from _options(group, f"{folder}/{inner}")
