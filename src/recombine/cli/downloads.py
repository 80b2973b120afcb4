"""`--download`: the libraries' weights that the jobs of a command need, fetched before a sweep.

`--dry-run` tells how large they are.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from rich.table import Table

from recombine.core.errors import ConfigError
from recombine.run.console import show

__all__ = ["download", "missing_weights", "show_sizes"]

LISTS = ("models", "teachers", "candidates", "parents")
"""Settings that are lists of networks."""


def missing_weights(configs: Iterable[DictConfig]) -> dict[str, int]:
    """Architecture and bytes of each network of timm or torchvision whose weights are not on this machine."""
    from recombine.models.libraries import download_size

    found = dict.fromkeys(name for cfg in configs for name in _library_networks(cfg))
    return {name: size for name in found if (size := download_size(name))}


def _library_networks(cfg: DictConfig) -> Iterator[str]:
    """Networks that come with their library's weights; what cannot be found at all is told by the run itself."""
    from recombine.models.resolve import locate

    root = Path(cfg.get("weights_root") or "weights")
    for node in _nodes(cfg):
        with suppress(ConfigError):
            spec, file = locate(node, root)
            if file is None and spec.weights == "pretrained":
                yield spec.architecture


def _nodes(cfg: DictConfig) -> Iterator[Any]:
    from recombine.flips.candidates import list_models

    values: Any = OmegaConf.to_container(cfg, resolve=False)
    for key, value in values.items():
        if key in LISTS and value:
            yield from (node for _, node in list_models(value, cfg.weights_root, values.get("exclude") or ()))
        elif isinstance(value, dict) and {"name", "architecture", "weights"} <= set(value):
            yield OmegaConf.to_container(cfg[key], resolve=True)


def download(configs: Iterable[DictConfig]) -> None:
    """Fetch all missing weights, one network after the other; ConfigError names those that could not be had."""
    from recombine.models.factory import build

    missing, failed = missing_weights(configs), []
    show_sizes(missing)
    for number, name in enumerate(missing, 1):
        print(f"{number} of {len(missing)}: {name}", flush=True)
        try:
            build(name)
        except ConfigError as error:
            failed += error.problems
    if failed:
        raise ConfigError(failed)


def show_sizes(missing: dict[str, int]) -> None:
    """What there is to download, the largest first."""
    if not missing:
        print("the weights of all networks are on this machine")
        return
    table = Table("network", "MB", box=None)
    for name, size in sorted(missing.items(), key=lambda item: -item[1]):
        table.add_row(name, f"{size / 1e6:,.0f}")
    show(table)
    print(f"to download: {len(missing)} networks, about {sum(missing.values()) / 1e9:.2f} GB (--download does it)")
