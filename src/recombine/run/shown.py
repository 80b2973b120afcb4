"""Runs that are finished already: shown again within a second or two, as nothing here imports torch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from recombine.core.errors import DamagedError
from recombine.core.files import read_json, write_json
from recombine.core.inputs import Manifest
from recombine.run.config import run_folder
from recombine.run.console import first_rank, show_rows
from recombine.run.directory import finished, locked, noted_files

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from recombine.core.types import Row

__all__ = ["Shown", "manifest_of", "note_shown", "show_finished"]

FILE = "shown.json"


class Shown(NamedTuple):
    """What was shown."""

    objective: float | None
    """What sweepers get."""
    headline: tuple[str, ...]
    """Names of the metrics that a person sees first."""


def manifest_of(cfg: DictConfig, folder: Path | None) -> Manifest:
    """What the run of a config reads, noted in `folder`."""
    roots = {key: cfg[key] for key in ("weights_root", "data_root", "output_root") if cfg.get(key)}
    return Manifest(folder, roots)


def note_shown(
    folder: Path, rows: Sequence[Row], headline: Iterable[str], objective: str, published: Callable | None
) -> None:
    """Keep what `show_finished` needs to know of a recipe."""
    known = [dict(published(row)) for row in rows] if published and len(rows) == 1 else []
    write_json(folder / FILE, {"headline": list(headline), "objective": objective, "published": known})


def show_finished(entry: str, cfg: DictConfig, files: Callable[[DictConfig], Iterable[Path]] | None) -> Shown | None:
    """Show the run of `cfg` if it ended well and nothing has changed that it read or left; None if it has to be run.

    `files` as of a recipe, where which files there are depends on more than the config; it imports no torch.
    """
    folder = run_folder(entry, cfg)
    if (cfg.get("engine") or {}).get("resume") == "never" or not (folder / FILE).is_file():
        return None
    with locked(folder) if first_rank() else nullcontext():
        try:
            noted: Mapping[str, Any] = read_json(folder / FILE)
        except DamagedError:
            return None
        if manifest_of(cfg, None).changes(folder, verify=bool(cfg.get("verify_inputs", False))):
            return None
        rows = finished(folder, files(cfg) if files else noted_files(folder))
        if not rows:
            return None
        if first_rank():
            tell_finished(folder)
            known = iter(noted["published"])
            show_rows(rows, folder, (lambda _: next(known)) if noted["published"] else None, noted["headline"])
    return Shown(rows[-1].metrics.get(noted["objective"]), tuple(noted["headline"]))


def tell_finished(folder: Path) -> None:
    """Say why nothing is computed."""
    print(f"finished before (engine.resume=never runs it again): {folder}")
