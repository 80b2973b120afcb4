"""What happens during a run: always as JSON lines in its folder, and on wandb if the config says so."""

from __future__ import annotations

import json
import netrc
import os
import secrets
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO
from urllib.parse import urlparse

import torch
from torch import Tensor

__all__ = ["Tracker", "effective_mode"]


class Tracker:
    """Records values, tables and pictures of one run.

    `metrics.jsonl` is the source of truth. Trouble of wandb, network or disk is reported once and then ignored: it
    never stops or changes a run.
    """

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self.lines: TextIO | None = None
        self.wandb: Any = None
        self.reported: set[str] = set()
        if folder is not None:
            self._guard("metrics.jsonl", self._open_lines)

    @classmethod
    def silent(cls) -> Tracker:
        """A tracker that records nothing: for the ranks beside the first."""
        return cls(None)

    @classmethod
    def open(cls, folder: Path, settings: Mapping[str, Any], **run: Any) -> Tracker:
        """A tracker writing into `folder`; `settings` is the wandb group of the config.

        `run` is handed to `wandb.init` (name, group, job_type, tags, config).
        """
        tracker = cls(folder)
        mode = effective_mode(settings.get("mode", "disabled"))
        if mode != "disabled":
            tracker._guard("wandb", lambda: tracker._open_wandb(mode, settings, run))
        return tracker

    def log(self, values: Mapping[str, float | Tensor], step: int, prefix: str = "") -> None:
        """Record 0-d tensors and numbers at optimizer step `step`; tensors come to the host in one copy."""
        if self.folder is None:
            return
        numbers = {f"{prefix}{name}": value for name, value in _on_host(values).items()}
        self._guard("metrics.jsonl", lambda: self._write_line({"step": step, **numbers}))
        # wandb drops what arrives with a smaller step than before, as after every resume: the step is a value of ours.
        self._guard("wandb", lambda: self.wandb and self.wandb.log({"step": step, **numbers}))

    def summary(self, values: Mapping[str, Any]) -> None:
        """Record final numbers, under `final/`."""
        final = {f"final/{name}": value for name, value in values.items()}
        self._guard("metrics.jsonl", lambda: self._write_line(final))
        self._guard("wandb", lambda: self.wandb and self.wandb.summary.update(final))

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Show a table on wandb."""

        def send() -> None:
            if self.wandb is None:
                return
            import wandb

            self.wandb.log({name: wandb.Table(columns=list(columns), data=[list(row) for row in rows])})

        self._guard("wandb", send)

    def image(self, name: str, path: Path) -> None:
        """Show the picture file `path` on wandb."""

        def send() -> None:
            if self.wandb is None:
                return
            import wandb

            self.wandb.log({name: wandb.Image(str(path))})

        self._guard("wandb", send)

    def finish(self, exit_code: int = 0) -> None:
        """Close everything; wandb shows the run as failed unless `exit_code` is 0. May be called twice."""
        self._guard("wandb", lambda: self.wandb and self.wandb.finish(exit_code=exit_code))
        self.wandb = None
        self._guard("metrics.jsonl", lambda: self.lines and self.lines.close())
        self.lines = None

    def _guard(self, what: str, action: Callable[[], Any]) -> None:
        try:
            action()
        except Exception as error:
            # Whatever a logging service raises, the run is worth more than its log.
            if what not in self.reported:
                print(f"{what}: {type(error).__name__}: {error}; the run goes on without it", file=sys.stderr)
            self.reported.add(what)

    def _open_lines(self) -> None:
        assert self.folder is not None
        path = self.folder / "metrics.jsonl"
        torn = path.exists() and path.stat().st_size > 0 and not path.read_bytes().endswith(b"\n")
        self.lines = lines = path.open("a", encoding="utf-8", buffering=1)
        if torn:
            lines.write("\n")

    def _write_line(self, values: dict[str, Any]) -> None:
        if self.lines is not None:
            self.lines.write(json.dumps(values, default=str) + "\n")

    def _open_wandb(self, mode: Any, settings: Mapping[str, Any], run: dict[str, Any]) -> None:
        import wandb

        assert self.folder is not None
        if mode == "offline":
            print(f"wandb is offline; upload later by: wandb sync {self.folder}/wandb/offline-run-*", file=sys.stderr)
        self.wandb = wandb.init(
            project=settings.get("project"),
            entity=settings.get("entity"),
            mode=mode,
            id=_identifier(self.folder),
            dir=str(self.folder),
            resume="allow",
            reinit="finish_previous",
            settings=wandb.Settings(console="off", silent=mode == "offline"),
            **run,
        )
        self.wandb.define_metric("step", hidden=True)
        self.wandb.define_metric("*", step_metric="step")


def _on_host(values: Mapping[str, float | Tensor]) -> dict[str, float]:
    tensors = {name: value for name, value in values.items() if isinstance(value, Tensor)}
    numbers = {name: value for name, value in values.items() if not isinstance(value, Tensor)}
    if tensors:
        stacked = torch.stack([value.detach().double().reshape(()) for value in tensors.values()])
        numbers.update(zip(tensors, stacked.tolist(), strict=True))
    return {name: numbers[name] for name in values}


def effective_mode(mode: str) -> str:
    """What `wandb.mode` means here: `auto` is online where wandb knows a key; WANDB_MODE goes before, except off."""
    if mode == "disabled":
        return mode
    mode = os.environ.get("WANDB_MODE") or mode
    return mode if mode != "auto" else "online" if _logged_in() else "offline"


def _logged_in() -> bool:
    """Whether wandb knows a key, without a prompt and without a network."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlparse(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
    try:
        return netrc.netrc(os.environ.get("NETRC")).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False


def _identifier(folder: Path) -> str:
    """An id that lives and dies with the run's folder: resumed runs have the same, equal runs elsewhere another one."""
    path = folder / "wandb_id"
    if not path.exists():
        path.write_text(f"{folder.name[-8:]}-{secrets.token_hex(3)}\n", encoding="utf-8")
    return path.read_text(encoding="utf-8").strip()
