"""Where Hydra finds the groups that one entry alone sees: the methods of a paper are no options of another's."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import ClassVar

from hydra import initialize_config_dir
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.plugins import Plugins
from hydra.plugins.search_path_plugin import SearchPathPlugin

from recombine.cli.entries import ENTRIES
from recombine.core.files import CONFIG_DIR

__all__ = ["initialize_entry", "use_groups"]


class _EntryGroups(SearchPathPlugin):
    """Adds `<config folder>/<groups>` behind the config folder, and ours behind one of somebody's own."""

    groups: ClassVar[str] = ""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Called by Hydra whenever it makes a search path."""
        main = next((source.path for source in search_path.get_path() if source.provider == "main"), None)
        if main is None:
            return
        ours = main.removeprefix("file://") == str(CONFIG_DIR)
        for folder in (main,) if ours else (main, f"file://{CONFIG_DIR}"):
            if folder != main:
                search_path.append("recombine", folder)
            if self.groups:
                search_path.append("recombine", f"{folder}/{self.groups}")


def use_groups(groups: str) -> None:
    """Let configs be composed with the groups below this folder of the config folder; none if it is empty."""
    _EntryGroups.groups = groups
    Plugins.instance().register(_EntryGroups)


@contextmanager
def initialize_entry(name: str) -> Iterator[None]:
    """Like `hydra.initialize`, for the configs of an entry: `compose` works inside, in notebooks and tests.

    with initialize_entry("transfer"):
        cfg = compose("transfer/transfer", ["method=kl_dp"])
    """
    use_groups(ENTRIES[name].groups)
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        yield
