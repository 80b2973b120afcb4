"""Find or download datasets, verify every image, convert them to .beton files, and print what there is.

recombine prepare dataset=cifar10 data_root=data          one set
recombine prepare dataset=mnist,cifar10,svhn -m           several, one after the other
"""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hydra
from hydra._internal.utils import get_args_parser
from omegaconf import DictConfig, OmegaConf
from rich.table import Table

from recombine.cli.help import print_help, register_help
from recombine.cli.overrides import compose_all
from recombine.core.console import open_console
from recombine.core.errors import ConfigError, RecombineError, WriteError
from recombine.core.files import CONFIG_DIR, check_writable
from recombine.core.settings import Settings
from recombine.data.settings import DatasetSettings
from recombine.run.config import unresolved, validate
from recombine.run.console import show_problems

if TYPE_CHECKING:
    from recombine.data import Data

CONFIG = str(CONFIG_DIR)
FAILED: list[int] = []


class PrepareSettings(Settings):
    """What can be set."""

    dataset: DatasetSettings
    """The data set."""
    data_root: str
    """Folder of data sets."""
    cache_root: str
    """Folder of what is converted."""
    rewrite: bool
    """Convert again what is whole and current."""


def prepare(cfg: DictConfig) -> None:
    """One dataset; what is wrong is shown and noted, so that the other jobs of a multirun go on."""
    from recombine.data import open_data  # and with it torch

    roots = {"data_root": cfg.data_root, "cache_root": cfg.cache_root}
    try:
        if problems := unresolved(cfg):
            raise ConfigError(problems)
        node: Any = OmegaConf.to_container(cfg.dataset, resolve=True)
        data = open_data(node, loader={"kind": "ffcv", "workers": "auto"}, **roots, seed=0, device="cpu")
        _show(data, cfg.rewrite)
    except RecombineError as error:
        print(error, file=sys.stderr)
        FAILED.append(error.exit_code)


def _show(data: Data, rewrite: bool) -> None:
    table = Table("split", "samples", "official", "classes", "pixels", "storage", "MiB", title=data.name)
    files = []
    for name in data.source.splits:
        split = data.split(name)
        official = {"train": data.source.known.train, "test": data.source.known.test}.get(name)
        try:
            path = import_module("recombine.data.write").ensure(split, rewrite=rewrite)
            size, file = f"{path.stat().st_size / 2**20:,.1f}", str(path)
        except WriteError:
            raise
        except (ImportError, OSError) as error:
            size, file = "-", f"FFCV does not load ({error}): found, but nothing converted"
        files.append(file)
        pixels = str(split.size) if split.size else "vary"
        counts = f"{len(split.samples):,}", f"{official:,}" if official else "-", str(split.classes)
        table.add_row(name, *counts, pixels, split.storage.kind, size)
    print(f"{data.name}: found in {data.source.place}")
    open_console().print(table)
    print("\n".join(dict.fromkeys(files)))
    if data.partial:
        print(f"partial: {data.partial}")


def unwritable(cfg: DictConfig) -> list[str]:
    """A message where nothing could be converted, as no file can be made."""
    try:
        check_writable(Path(cfg.cache_root))
    except ConfigError as error:
        return error.problems
    return []


def main() -> None:
    """Check the command line as the entries do, then one job after the other; exits with 2 if a set is absent."""
    # overrides may stand before and after flags, as in `dataset=mnist,usps -m data_root=...`; argparse wants one piece
    sys.argv[1:] = sorted(sys.argv[1:], key=lambda word: "=" in word and not word.startswith("-"))
    arguments = get_args_parser().parse_args()
    register_help()
    if not (arguments.shell_completion or arguments.hydra_help):
        found = compose_all(CONFIG, "prepare/prepare", arguments.overrides, sweep=arguments.multirun)
        problems = list(found.problems)
        for cfg in (found.cfg, *found.others.values()):
            problems += (validate(cfg, PrepareSettings) or unwritable(cfg)) if cfg is not None else []
        if problems:
            show_problems(list(dict.fromkeys(problems)))
            sys.exit(ConfigError.exit_code)
        if arguments.help and print_help("prepare", CONFIG, "prepare/prepare", arguments.overrides, resolve=False):
            return
    hydra.main(version_base="1.3", config_path=CONFIG, config_name="prepare/prepare")(prepare)()
    sys.exit(FAILED[0] if FAILED else 0)
