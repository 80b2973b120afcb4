"""TensorBoard: event files in the run's folder, read by `tensorboard --logdir outputs`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image
from torch.utils.tensorboard import SummaryWriter

from recombine.run.lineage import RunArtifact

__all__ = ["TensorBoardLogger"]


class TensorBoardLogger:
    """Curves, pictures, and tables as text, under the names that wandb has."""

    def __init__(self, folder: Path, settings: Mapping[str, Any], run: Mapping[str, Any]) -> None:
        self.writer = SummaryWriter(folder / "tensorboard")
        self.writer.add_text("config", f"```yaml\n{yaml.safe_dump(run.get('config', {}), sort_keys=False)}\n```")

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Curves over the optimizer step."""
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)

    def summary(self, values: Mapping[str, Any]) -> None:
        """Final values: numbers as points, the others as text."""
        for name, value in values.items():
            if isinstance(value, int | float):
                self.writer.add_scalar(name, value, 0)
            else:
                self.writer.add_text(name, str(value))

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """A table in Markdown below media/."""
        lines = [columns, ["---"] * len(columns), *rows]
        self.writer.add_text(f"media/{name}", "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines))

    def image(self, name: str, path: Path, caption: str) -> None:
        """A picture below media/, its caption as text."""
        with Image.open(path) as image:
            self.writer.add_image(f"media/{name}", np.asarray(image.convert("RGB")), dataformats="HWC")
        self.writer.add_text(f"media/{name}/caption", caption)

    def artifacts(self, artifacts: Iterable[RunArtifact]) -> None:
        """The names of what was read and written: TensorBoard stores no files."""
        rows = [[each.name, each.type, "read" if each.used else "written"] for each in artifacts]
        self.table("artifacts", ["artifact", "type", "by this run"], rows)

    def alert(self, title: str, text: str) -> None:
        """A text."""
        self.writer.add_text(title, text)

    def finish(self, exit_code: int) -> None:
        """Write everything to disk."""
        self.writer.close()
