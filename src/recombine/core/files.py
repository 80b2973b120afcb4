"""Files that are whole or absent, whatever fails or is killed while they are written."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib import resources
from pathlib import Path

__all__ = ["CONFIG_DIR", "config_files", "replacing", "sync_folder", "use_config_dirs", "write_atomically"]

CONFIG_DIR = Path(str(resources.files("recombine"))) / "config"
"""The config groups that ship with the package."""
_config_dirs = [CONFIG_DIR]


def use_config_dirs(folders: Iterable[Path]) -> None:
    """Look for configs that are given by name in lists, such as tasks=[mnist], in these folders too."""
    _config_dirs[:] = dict.fromkeys([*folders, CONFIG_DIR])


def config_files(group: str) -> dict[str, Path]:
    """The options of a config group by name; of two with the same name, the one Hydra takes."""
    found = {path.stem: path for folder in reversed(_config_dirs) for path in (folder / group).glob("[!_]*.yaml")}
    return dict(sorted(found.items()))


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`: what the block leaves there is synced and takes the place of `path`.

    If the block raises, the temporary file is removed and `path` stays as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        temporary.touch()
        mode = temporary.stat().st_mode  # by the umask; some writers make files that only their owner can read
        yield temporary
        temporary.chmod(mode)
        with open(temporary, "rb") as stream:
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(path.parent)


def write_atomically(path: Path, content: str | bytes) -> None:
    """Replace the file `path` by `content`: a reader sees the old content or the new one, also after a power cut."""
    with replacing(path) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)


def sync_folder(folder: Path) -> None:
    """Make renames in `folder` survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
