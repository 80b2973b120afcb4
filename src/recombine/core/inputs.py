"""What a run reads: weight files, data sets and foreign code, each with a digest. A result is as old as its inputs.

Whoever opens a file or a data set calls `record_file` or `record`; a run collects what was recorded into `inputs.json`
of its folder. When the command is repeated, `Manifest.changes` tells what is no longer as it was: without reading a
file whose size, time and inode are the same (`verify_inputs=true` compares contents all the same).
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from recombine.core.errors import DamagedError
from recombine.core.files import read_json, write_json

__all__ = ["Manifest", "collecting", "file_digest", "file_stamp", "record", "record_file", "register_check"]

FILE = "inputs.json"
Check = Callable[[Mapping[str, Any], Mapping[str, Path]], str | None]
"""From what was recorded of an input, and the folders of today, to its digest now; None if it is not there."""
_checks: dict[str, Check] = {}
_manifest: list[Manifest] = []


def register_check(kind: str, check: Check) -> None:
    """Say how inputs of this kind are looked at again."""
    _checks[kind] = check


def file_digest(path: str | Path) -> str:
    """Digest of a file's content, 32 hexadecimal digits."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


class Manifest:
    """The inputs of one run, by kind and name, in its folder."""

    def __init__(self, folder: Path | None, roots: Mapping[str, str | Path]) -> None:
        """`folder` None: nothing is written (other ranks). `roots`: folders by setting, such as weights_root; a file
        below one of them is known by its place there, so that the folder may move."""
        self.folder = folder
        self.roots = {name: Path(os.path.abspath(root)) for name, root in roots.items()}
        self.inputs: dict[str, dict[str, Any]] = {}

    def add(self, kind: str, name: str, digest: str, details: Mapping[str, Any]) -> None:
        """Note an input; the file is written anew if it was not known."""
        entry = {"kind": kind, "name": name, "digest": digest, **details}
        if self.inputs.get(f"{kind} {name}") == entry:
            return
        self.inputs[f"{kind} {name}"] = entry
        if self.folder is not None:
            write_json(self.folder / FILE, {"inputs": list(self.inputs.values())})

    def named(self, path: Path) -> str:
        """A path as it is noted: below a root, `$weights_root/...`; elsewhere as it is."""
        for name, root in self.roots.items():
            if path.is_relative_to(root):
                return f"${name}/{path.relative_to(root).as_posix()}"
        return str(path)

    def place(self, name: str) -> Path:
        """The path that a noted name means today."""
        root, _, rest = name.removeprefix("$").partition("/")
        return self.roots[root] / rest if name.startswith("$") and root in self.roots else Path(name)

    def digests(self) -> dict[str, str]:
        """For the provenance: digest by kind and name."""
        return {key: entry["digest"] for key, entry in self.inputs.items()}

    def changes(self, folder: Path, *, verify: bool = False) -> list[str]:
        """What is no longer as the run in `folder` read it, one sentence each; nothing if it noted nothing.

        A list that is damaged is a change: nobody knows any more what was read.
        """
        if not (folder / FILE).exists():
            return []
        try:
            noted = read_json(folder / FILE)["inputs"]
        except DamagedError as error:
            return [f"what was read is not known any more: {error}"]
        return [text for entry in noted if (text := self._change(entry, verify))]

    def _change(self, entry: Mapping[str, Any], verify: bool) -> str | None:
        kind, name = entry["kind"], entry["name"]
        if "stamp" in entry:
            path = self.place(name)
            if not path.is_file():
                return f"{kind} {path} is not there any more"
            if not verify and entry["stamp"] == file_stamp(path):
                return None
            now: str | None = file_digest(path)
        elif kind in _checks:
            now = _checks[kind](entry, self.roots)
        else:
            return None
        if now == entry["digest"]:
            return None
        return f"{kind} {name} has changed: {_short(entry['digest'])} then, {_short(now)} now"


def _short(digest: str | None) -> str:
    return digest[:12] if digest else "not there"


def file_stamp(path: Path) -> list[int]:
    """Size, time and inode: a file that has the same ones is taken for the same file."""
    status = path.stat()
    return [status.st_size, status.st_mtime_ns, status.st_ino]


def record(kind: str, name: str, digest: str, **details: Any) -> None:
    """Note an input of the run that is in work, if one is; `details` are what its check needs."""
    if _manifest:
        _manifest[-1].add(kind, name, digest, details)


def record_file(kind: str, path: str | Path) -> None:
    """Note a file that was read; a path that does not exist is not noted."""
    path = Path(os.path.abspath(path))
    if _manifest and path.is_file():
        manifest = _manifest[-1]
        name, stamp = manifest.named(path), file_stamp(path)
        known = manifest.inputs.get(f"{kind} {name}")
        if known is None or known.get("stamp") != stamp:
            manifest.add(kind, name, file_digest(path), {"stamp": stamp})


@contextmanager
def collecting(manifest: Manifest) -> Iterator[Manifest]:
    """Note everything that is read inside."""
    _manifest.append(manifest)
    try:
        yield manifest
    finally:
        _manifest.pop()
