"""What a run read and what it leaves, as a dashboard stores it: networks, patches, clones, data sets, rows and code."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from recombine.core.files import CONFIG_DIR
from recombine.core.inputs import Manifest, file_digest

__all__ = ["RunArtifact", "code_artifact", "list_artifacts"]

TYPES = {"student": "model", "weights": "model", "offspring": "model", "data": "dataset"}
"""Kind of a file -> type of its artifact, where they differ."""
RECORDS = ("row.json", "config.yaml", "inputs.json", "metrics.jsonl")
"""What a run's folder says about it."""
TEMPORARY = ("previous", "fits")


@dataclass(frozen=True)
class RunArtifact:
    """One artifact. Its name comes from its content, so that whoever reads a file meets the run that wrote it."""

    name: str
    type: str
    """model, patch, clone, dataset, run or code."""
    files: Mapping[str, Path]
    """Name inside the artifact -> file; of a data set, where it lies."""
    used: bool = False
    """Whether the run read it; else it wrote it."""
    digest: str = ""
    aliases: tuple[str, ...] = ()
    metadata: Mapping[str, Any] = field(default_factory=dict)


def list_artifacts(folder: Path, manifest: Manifest, others: Iterable[Path] = ()) -> Iterator[RunArtifact]:
    """What a run read by its manifest, what it left in its folder and among `others`, and its records."""
    read = set()
    for entry in manifest.inputs.values():
        path = manifest.place(entry["name"])
        if entry["kind"] == "data":
            yield _dataset(entry, manifest)
        elif entry["kind"] != "code" and path.is_file() and path not in read:
            read.add(path)
            yield _file(path, entry["digest"], used=True)
    made = (path for path in sorted(folder.rglob("*.safetensors")) if not {*path.parts}.intersection(TEMPORARY))
    for path in (*made, *others):
        if path.is_file() and path.absolute() not in read:
            yield _file(path, file_digest(path))
    records = {name: folder / name for name in RECORDS if (folder / name).is_file()}
    yield RunArtifact(f"run-{folder.name}"[-128:], "run", records)


def code_artifact(manifest: Manifest) -> RunArtifact:
    """This package's code and configs, and the modules of others that a config named."""
    package = CONFIG_DIR.parent
    files = {path.relative_to(package).as_posix(): path for path in sorted(package.rglob("*.py"))}
    files |= {f"config/{path.relative_to(CONFIG_DIR).as_posix()}": path for path in sorted(CONFIG_DIR.rglob("*.yaml"))}
    own = [manifest.place(entry["name"]) for entry in manifest.inputs.values() if entry["kind"] == "code"]
    return RunArtifact("code-recombine", "code", files | {f"own/{path.name}": path for path in own if path.is_file()})


def _dataset(entry: Mapping[str, Any], manifest: Manifest) -> RunArtifact:
    settings = entry.get("settings", {})
    place = manifest.roots.get("data_root", Path()) / str(settings.get("folder") or settings.get("name", ""))
    name = _name("data", entry["name"], entry["digest"])
    return RunArtifact(name, "dataset", {entry["name"]: place}, True, entry["digest"], metadata={"settings": settings})


def _file(path: Path, digest: str, *, used: bool = False) -> RunArtifact:
    """A checkpoint; the name it has inside counts, as files are copied and renamed."""
    kind, inner, card = _describe(path)
    files, aliases = {f"{kind}.safetensors" if kind != "weights" else path.name: path}, (path.stem,)
    about: dict[str, Any] = {
        key: card[key] for key in ("metrics", "base", "student", "teacher", "method", "dataset", "data") if key in card
    }
    name = _name(kind, inner or path.stem, digest)
    return RunArtifact(name, TYPES.get(kind, kind), files, used, digest, aliases, about)


def _describe(path: Path) -> tuple[str, str, dict[str, Any]]:
    """Kind, name and card of a file of ours; of any other the kind is weights."""
    try:
        with safe_open(path, "numpy") as file:  # the header alone is read
            metadata = file.metadata() or {}
        kind, card = metadata["kind"], json.loads(metadata["card"])
    except (KeyError, ValueError, OSError, SafetensorError):
        return "weights", "", {}
    names = [one["name"] for one in (card, card.get("model") or {}, *card.get("cards", ())) if "name" in one]
    return kind, "-".join(map(str, names)), card


def _name(kind: str, name: str, digest: str) -> str:
    return f"{re.sub(r'[^A-Za-z0-9._-]+', '-', f'{kind}-{name}')[:110]}-{digest[:12]}"
