"""For mkdocstrings: the API page has introductions of its own; docstrings of modules hold examples as plain text."""

from __future__ import annotations

from typing import Any

from griffe import Extension, Module

__all__ = ["HideModuleDocstrings"]


class HideModuleDocstrings(Extension):
    """Leaves out the docstrings of modules."""

    def on_module(self, *, mod: Module, **_: Any) -> None:
        """Called by griffe for each module it has read."""
        mod.docstring = None
