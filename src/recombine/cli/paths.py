"""Files and folders of a command line, as types of argparse: what cannot be meant is told before any work.

add("--out", type=new_file)
"""

from __future__ import annotations

import os
from argparse import ArgumentParser, ArgumentTypeError
from pathlib import Path

from recombine.core.errors import ConfigError
from recombine.core.files import check_writable

__all__ = [
    "add_rows",
    "existing_file",
    "existing_folder",
    "file",
    "filled",
    "folder",
    "new_file",
    "new_folder",
    "place",
]


def add_rows(parser: ArgumentParser, help: str = "where rows are; first wins") -> None:
    """The option --rows: files or folders of rows."""
    parser.add_argument("--rows", nargs="+", type=filled, default=["outputs", "results"], metavar="DIR", help=help)


def filled(text: str) -> str:
    """A name: not an empty text, which as a path is the folder one is in."""
    if not text:
        raise ArgumentTypeError("it is empty; . is the folder where you are")
    return text


def place(text: str) -> Path:
    """A file or a folder, there or not."""
    return Path(filled(text))


def file(text: str) -> Path:
    """A file, there or not."""
    if os.path.isdir(place(text)):
        raise ArgumentTypeError(f"a file is needed, and this is a folder: {text}")
    return place(text)


def folder(text: str) -> Path:
    """A folder, there or not."""
    if os.path.exists(place(text)) and not os.path.isdir(text):
        raise ArgumentTypeError(f"a folder is needed, and this is a file: {text}")
    return place(text)


def existing_file(text: str) -> Path:
    """A file that is there."""
    if not os.path.exists(file(text)):
        raise ArgumentTypeError(f"there is no such file: {text}")
    return place(text)


def existing_folder(text: str) -> Path:
    """A folder that is there."""
    if not os.path.exists(folder(text)):
        raise ArgumentTypeError(f"there is no such folder: {text}")
    return place(text)


def new_file(text: str) -> Path:
    """A file that can be written, or written anew."""
    return _writable(file(text), file(text).parent)


def new_folder(text: str) -> Path:
    """A folder in which files can be made."""
    return _writable(folder(text), folder(text))


def _writable(path: Path, within: Path) -> Path:
    try:
        check_writable(within)
    except ConfigError as error:
        raise ArgumentTypeError(str(error)) from error
    return path
