"""Files that outlive their run: safetensors with a card. Students, patches, clones and offspring are all of this form.

The metadata holds `kind`, `format` and `card` (JSON). What a card must say is declared by whoever writes that kind.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from safetensors import SafetensorError, safe_open

from recombine.core.errors import ConfigError, DamagedError
from recombine.core.files import read_tensors, write_tensors
from recombine.core.inputs import record_file

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "DAMAGE",
    "Artifact",
    "describe_damage",
    "is_kind",
    "kind_of",
    "plain_damage",
    "read_artifact",
    "read_card",
    "tensor_bytes",
    "write_artifact",
]

WRITERS = {
    "student": "main_pretrain.py and main_transfer.py write them",
    "patch": "main_patch.py writes them",
    "clone": "main_pnc.py writes them",
    "offspring": "main_stitch.py writes them",
}
"""Every kind, and who writes it."""
OLD_KEYS = {"recombine": "student", "patch": "patch", "clones": "clone", "offspring": "offspring"}
"""Where version 0.1 kept the cards."""
DAMAGE = (
    *(TypeError, ValueError, KeyError, IndexError, AttributeError, RuntimeError, OSError),
    *(SafetensorError, ConfigError),
)
"""What building a network from a file raises if the file is not as it was written."""


class Artifact(NamedTuple):
    """A file as it was read."""

    kind: str
    """student, patch, clone or offspring."""
    format: int
    card: dict[str, Any]
    tensors: dict[str, Tensor]


def write_artifact(
    path: str | Path, kind: str, card: Mapping[str, Any], tensors: Mapping[str, Tensor], *, version: int = 1
) -> Path:
    """Write tensors with their card; the file appears whole or not at all."""
    path = Path(path)
    state = {key: value.detach().to("cpu", copy=True) for key, value in tensors.items()}  # of two names each its own
    write_tensors(path, state, {"kind": kind, "format": str(version), "card": json.dumps(card)})
    return path


def kind_of(path: str | Path) -> str | None:
    """What a file is; None if there is no such file or it is something else."""
    if Path(path).suffix != ".safetensors" or not Path(path).is_file():
        return None
    try:
        return _kind(_metadata(path))
    except ConfigError:
        return None


def is_kind(path: str | Path, kind: str) -> bool:
    """Whether a safetensors file is of this kind; ConfigError if it cannot be read."""
    return _kind(_metadata(path)) == kind


def read_card(path: str | Path, kind: str, needed: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The card of a file of this kind; ConfigError if it is none, or does not say what is `needed` (key -> type)."""
    return _checked(path, _metadata(path), kind, needed or {})[1]


def read_artifact(path: str | Path, kind: str, needed: Mapping[str, Any] | None = None) -> Artifact:
    """A file of this kind; ConfigError if it is none, is damaged, or does not say what is `needed` (key -> type)."""
    version, card = _checked(path, _metadata(path), kind, needed or {})
    record_file(kind, path)
    try:
        tensors, _ = read_tensors(Path(path), needs_digest=False)
    except DamagedError as error:
        raise ConfigError(str(error)) from error
    return Artifact(kind, version, card, tensors)


def tensor_bytes(path: str | Path) -> int:
    """Bytes of the tensors in a safetensors file; what its card says, paths and times among it, does not count."""
    with open(path, "rb") as file:
        return Path(path).stat().st_size - 8 - int.from_bytes(file.read(8), "little")


def plain_damage(path: str | Path) -> str:
    """Why something that is no checkpoint at all cannot be read as one; empty for anything else."""
    if Path(path).is_dir():
        return "cannot be read: it is a folder"
    if not Path(path).is_file():
        return ""
    with open(path, "rb") as file:
        head = file.read(200)
    if not head:
        return "cannot be read: it is empty"
    if head.startswith(b"version https://git-lfs"):
        return "cannot be read: it is a pointer of Git LFS, not the weights: git lfs pull"
    return "cannot be read: it is a web page, not a checkpoint: fetch it again" if head.lstrip()[:1] == b"<" else ""


def describe_damage(path: str | Path, error: str) -> str:
    """Why a file cannot be read as a checkpoint."""
    if plain := plain_damage(path):
        return plain
    if not Path(path).is_file():
        return f"cannot be read: {error}"
    with open(path, "rb") as file:
        head = file.read(200)
    if found := re.search(r"GLOBAL (\S+)", error):
        return (
            f"cannot be read: it holds an object of {found[1]}, whose code reading it would run; store the "
            f"state_dict alone, with torch.save(model.state_dict(), ...) or as safetensors"
        )
    if "TorchScript" in error:
        return "cannot be read: it is a TorchScript program; store its state_dict() as safetensors and name that file"
    as_safetensors = head[8:9] == b"{" and Path(path).suffix != ".safetensors"
    as_torch = (head[:2] == b"PK" or head[:1] == b"\x80") and Path(path).suffix == ".safetensors"
    if as_safetensors or as_torch:
        return f"cannot be read: it is a {'safetensors' if as_safetensors else 'torch'} file by its content: rename it"
    return f"cannot be read: it is damaged, or no checkpoint ({error.strip().partition(chr(10))[0][:200]})"


def _metadata(path: str | Path) -> dict[str, str]:
    try:
        with safe_open(path, "numpy") as file:  # the header alone is read, without torch
            return file.metadata() or {}
    except (OSError, SafetensorError) as error:
        raise ConfigError(f"{path} {describe_damage(path, str(error))}") from error


def _kind(metadata: Mapping[str, str]) -> str | None:
    old = (kind for key, kind in OLD_KEYS.items() if key in metadata)
    return metadata.get("kind") or next(old, None)


def _checked(
    path: str | Path, metadata: Mapping[str, str], kind: str, needed: Mapping[str, Any]
) -> tuple[int, dict[str, Any]]:
    found = _kind(metadata)
    if found != kind:
        what = f"a {found} file" if found else "no file of ours"
        raise ConfigError(f"{path} is {what}; a {kind} file is needed: {WRITERS[kind]}")
    try:
        version, card = _card(metadata, kind)
        wrong = [key for key, expected in needed.items() if not isinstance(card.get(key), expected)]
    except (ValueError, AttributeError, TypeError, KeyError) as error:
        raise ConfigError(f"{path} is damaged: its card cannot be read ({error})") from error
    if wrong:
        raise ConfigError(f"{path} is damaged or of another version: its card does not say {', '.join(wrong)}")
    return version, card


def _card(metadata: Mapping[str, str], kind: str) -> tuple[int, dict[str, Any]]:
    """Format and card, also of files of version 0.1, whose format is 0 here."""
    if "kind" in metadata:
        return int(metadata["format"]), json.loads(metadata["card"])
    key = next(key for key, old in OLD_KEYS.items() if old == kind)
    card = json.loads(metadata[key])
    if kind == "student":
        return 0, {"model": card, **json.loads(metadata.get("card", "{}"))}
    return 0, card
