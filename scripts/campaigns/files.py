"""Files of every kind, damaged at random."""

from __future__ import annotations

import importlib
import random
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from recombine.core.errors import RecombineError

from . import Case

__all__ = ["try_files"]


def kinds_of_files(folder: Path) -> dict[str, tuple[Path, Callable[[], Any]]]:
    """A file of each kind, and how it is read; readers raise, or give back what was written, or None."""
    import torch

    from recombine.core import files, results
    from recombine.core.inputs import Manifest
    from recombine.engine import checkpoint
    from recombine.models import weights
    from recombine.models.serialization import read_artifact, write_artifact

    student = _write_kinds(folder)
    found: dict[str, tuple[Path, Callable[[], Any]]] = {
        "checkpoint": (folder / "last.pt", lambda: checkpoint.load_latest(folder)),
        "row": (folder / "row.json", lambda: results.read_rows(folder / "row.json")),
        "many rows": (folder / "columns" / "rows.parquet", lambda: results.read_rows(folder / "columns" / "row.json")),
        "evaluations": (folder / "evaluations.jsonl", lambda: _all_records(folder / "evaluations.jsonl")),
        "matching": (folder / "matching.json", lambda: files.read_json(folder / "matching.json")),
        "predictions": (
            folder / "predictions.safetensors",
            lambda: files.read_tensors(folder / "predictions.safetensors"),
        ),
        "manifest": (folder / "inputs.json", lambda: None if Manifest(None, {}).changes(folder) else "as it was"),
        "stamps": (folder / "files.json", lambda: files.read_json(folder / "files.json")),
        "student": (student, lambda: weights.read(student)),
    }
    for kind in ("patch", "clone", "offspring"):
        path = write_artifact(folder / f"{kind}.safetensors", kind, {"classes": 3}, {"w": torch.arange(40.0)})
        found[kind] = (path, lambda path=path, kind=kind: tuple(read_artifact(path, kind)))
    return found | _beton(folder) | _inspection(folder)


def _write_kinds(folder: Path) -> Path:
    """Write a file of most kinds; the student's."""
    import torch

    from recombine import models
    from recombine.core import files, results
    from recombine.core.inputs import Manifest, collecting, record_file
    from recombine.core.types import Row
    from recombine.engine import checkpoint
    from recombine.run.directory import note_files

    state = {"step": 3, "net": {"weight": torch.arange(40.0)}}
    checkpoint.save(folder, state)
    rows = [Row(cell={"model": "a"}, metrics={"accuracy": 12.5}, entry="flips", run=f"r{k}") for k in range(3)]
    results.write_rows(folder, rows)
    (folder / "columns").mkdir()
    most, results.MOST_AS_JSON = results.MOST_AS_JSON, 2
    results.write_rows(folder / "columns", rows)
    results.MOST_AS_JSON = most
    files.write_records(folder / "evaluations.jsonl", [{"on": [k], "accuracy": k / 7} for k in range(5)])
    files.write_json(folder / "matching.json", {"pairs": [[1, 2], [3, 4]]})
    files.write_tensors(folder / "predictions.safetensors", {"logits": torch.arange(40.0)}, {})
    with collecting(Manifest(folder, {})):
        record_file("weights", folder / "matching.json")
    note_files(folder, [folder / "row.json"])
    return models.save(models.build("cnn", classes=3, seed=0), folder / "student.safetensors", {"note": "x"})


def _inspection(folder: Path) -> dict[str, tuple[Path, Callable[[], Any]]]:
    """What is remembered of a folder of images; damaged, the folder is looked at again."""
    from PIL import Image

    from recombine.data.inspection import inspect
    from recombine.data.sources import open_source

    for k, label in enumerate("ab" * 6):
        (folder / "pictures" / label).mkdir(parents=True, exist_ok=True)
        Image.new("I;16", (4, 4), 1000 * k).save(folder / "pictures" / label / f"{k}.png")
    source = open_source("folder", ".", folder / "pictures", False)
    inspect(source, folder)
    (file,) = (folder / "inspections").iterdir()
    return {"inspection": (file, lambda: inspect(source, folder))}


def _all_records(path: Path) -> Any:
    from recombine.core.files import read_records

    records, damaged = read_records(path)
    return None if damaged or not records else records  # what is lost is evaluated again


def _beton(folder: Path) -> dict[str, tuple[Path, Callable[[], Any]]]:
    """A converted data set and its manifest; what is wrong with it is told, or None."""
    from recombine import data as datasets

    try:
        write = importlib.import_module("recombine.data.write")
    except (ImportError, OSError):
        return {}  # FFCV is optional
    where = {"data_root": folder, "cache_root": folder, "seed": 0, "device": "cpu"}
    data = datasets.open_data({"name": "digits"}, loader={"kind": "torch", "workers": 0}, **where)
    split = data.split("test")
    path = write.ensure(split)
    read = {"beton": path, "manifest of a beton": path.with_suffix(".manifest.json")}
    return {kind: (file, lambda: "whole" if write.wrong(split, path) is None else None) for kind, file in read.items()}


def damage(content: bytes, number: int, chosen: random.Random) -> bytes:
    """One of several ways in which files break."""
    place = chosen.randrange(len(content))
    flipped = bytearray(content)
    flipped[place] ^= 1 << chosen.randrange(8)
    ways = [b"", content[:place], b"{}", b"\0" * len(content), content + b"x", b"[]", b"null"]
    return ways[number] if number < len(ways) else bytes(flipped)


def try_files(folder: Path, full: bool) -> Iterator[Case]:
    """Damage a file of each kind in 20 ways, and read it."""
    import logging

    logging.disable(logging.WARNING)
    chosen = random.Random(0)
    (folder / "files").mkdir()
    for kind, (path, read) in kinds_of_files(folder / "files").items():
        content, right = path.read_bytes(), repr(read())
        for number in range(20 if full else 9):
            path.write_bytes(damage(content, number, chosen))
            yield Case(kind, f"way {number}", _judge_reading(read, right))
        path.write_bytes(content)
    logging.disable(logging.NOTSET)


def _judge_reading(read: Callable[[], Any], right: str) -> str:
    try:
        found = read()
    except RecombineError:
        return "seen"
    except Exception:
        traceback.print_exc()
        return "traceback"
    return "same" if repr(found) == right else "seen" if found is None else "silent"
