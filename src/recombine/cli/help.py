"""What `--help` lists: the groups that an entry has, with their options."""

from __future__ import annotations

import os
import shutil
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from string import Template

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.object_type import ObjectType
from omegaconf import OmegaConf, flag_override

__all__ = ["PROGRAM", "groups", "print_help", "program", "register_help", "started_as"]

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
    found = loader.repository  # type: ignore[attr-defined]  # the loader itself copies all of it for each question
    names = [f"{folder}/{name}" for name in found.get_group_options(folder, ObjectType.CONFIG) if name[0] != "_"]
    yield from (name.removeprefix(f"{group}/") for name in names)
    for inner in found.get_group_options(folder, ObjectType.GROUP):
        yield from _options(group, f"{folder}/{inner}")


def print_help(entry: str, config_dir: str, config_name: str, overrides: list[str], *, resolve: bool) -> bool:
    """Print what Hydra's --help prints, in a fifth of its time; False for a template with Hydra's own lists of groups.

    Hydra makes its lists, one line for each of hundreds of groups, whether the template shows them or not.
    """
    with initialize_config_dir(config_dir, job_name=entry, version_base="1.3"):
        cfg = compose(config_name, overrides, return_hydra_config=True)
        HydraConfig.instance().set_config(cfg)
        template = Template(cfg.hydra.help.template)
        with flag_override(cfg, ["struct", "readonly"], [False, False]):
            del cfg["hydra"]
        try:
            print(template.substitute(CONFIG=OmegaConf.to_yaml(cfg, resolve=resolve)))
        except KeyError:
            return False
    return True


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
