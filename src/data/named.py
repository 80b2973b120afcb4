"""The data sets that have a config of their own, for entries that name several of them in one list."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any

import yaml

from src.core.errors import ConfigError

__all__ = ["names", "node"]

FOLDER = Path(__file__).resolve().parents[2] / "config" / "dataset"


def names() -> list[str]:
    """Every name that `dataset=` takes."""
    return sorted(path.stem for path in FOLDER.glob("[!_]*.yaml"))


def node(name: str) -> dict[str, Any]:
    """The dataset node of config/dataset/<name>.yaml, without the defaults that `DataSettings` has; ConfigError."""
    if name not in names():
        near = " or ".join(f"'{other}'" for other in difflib.get_close_matches(name, names(), 3))
        known = f"did you mean {near}?" if near else f"known are: {', '.join(names())}"
        raise ConfigError(f"there is no dataset '{name}'; {known}")
    own = yaml.safe_load((FOLDER / f"{name}.yaml").read_text(encoding="utf-8"))
    del own["defaults"]
    return {"source": own["name"], "folder": own["name"], **own}
