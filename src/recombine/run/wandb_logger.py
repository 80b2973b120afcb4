"""wandb: curves, pictures, tables, and artifacts that say which run made what of what."""

from __future__ import annotations

import json
import netrc
import os
import secrets
import socket
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlparse
from urllib.request import getproxies, proxy_bypass

import wandb
from wandb.sdk.artifacts.artifact_manifest_entry import ArtifactManifestEntry

from recombine.run.lineage import RunArtifact

__all__ = ["WandbLogger", "effective_mode"]

SECONDS = 30.0
"""How long a server that answers may take to open a run."""
SMALLER_IS_BETTER = ("loss", "error", "ece", "cost", "negative", "nll")
"""Words in the names of metrics whose summary is the minimum."""


class WandbLogger:
    """A run of wandb. Sections are train, val, test, time and media; what a row holds is `final/` in the summary."""

    def __init__(self, folder: Path, settings: Mapping[str, Any], run: Mapping[str, Any]) -> None:
        mode = effective_mode(settings.get("mode", "auto"))
        if mode == "online" and not _reachable():
            mode = "offline"
        if mode == "offline":
            print(f"wandb is offline; upload later by: wandb sync {folder}/wandb/latest-run", file=sys.stderr)
        self.limit = settings.get("artifact_mib", 100) * 2**20
        self.alerts = settings.get("alerts", False)
        self.defined: set[str] = set()
        self.run = wandb.init(
            project=settings.get("project"),
            entity=settings.get("entity"),
            mode=mode,  # type: ignore[arg-type]
            id=_identifier(folder),
            dir=str(folder),
            resume="allow",
            reinit="finish_previous",
            settings=wandb.Settings(console="off", silent=mode == "offline", init_timeout=SECONDS),
            **run,
        )
        self.run.define_metric("step", hidden=True)
        self.run.define_metric("*", step_metric="step")
        if mode == "offline":
            self._repeat(folder / "metrics.jsonl")

    def _repeat(self, earlier: Path) -> None:
        """Log what earlier sessions did: when synced, this one takes the place of theirs, which has the same id."""
        for line in earlier.read_text(encoding="utf-8").splitlines():
            values = json.loads(line) if line.endswith("}") else {}
            if "step" in values:
                self.log(values, values.pop("step"))

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Curves over the optimizer step; wandb's own step only grows, which it does not after a resume."""
        for name in values.keys() - self.defined:
            self.defined.add(name)
            if name.startswith(("val/", "test/", "search/")):
                best = "min" if any(word in name.rpartition("/")[2] for word in SMALLER_IS_BETTER) else "max"
                self.run.define_metric(name, step_metric="step", summary=f"last,{best}")
        self.run.log({"step": step, **values})

    def summary(self, values: Mapping[str, Any]) -> None:
        """Final values."""
        self.run.summary.update(dict(values))

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """A table below media/."""
        self.run.log({f"media/{name}": wandb.Table(columns=list(columns), data=[list(row) for row in rows])})

    def image(self, name: str, path: Path, caption: str) -> None:
        """A picture below media/."""
        self.run.log({f"media/{name}": wandb.Image(str(path), caption=caption)})

    def artifacts(self, artifacts: Iterable[RunArtifact]) -> None:
        """Store what the run read and wrote; same content is the same artifact, so that runs are linked by it."""
        for each in artifacts:
            artifact = wandb.Artifact(each.name, each.type, metadata={**each.metadata, "digest": each.digest})
            for name, path in each.files.items():
                if each.type == "dataset":
                    # wandb would hash all images; our digest of the content is there, and the same on every machine
                    entry = ArtifactManifestEntry(path=name, ref=path.absolute().as_uri(), digest=each.digest, size=0)
                    artifact.manifest.add_entry(entry)
                elif path.stat().st_size > self.limit:
                    artifact.add_reference(path.absolute().as_uri(), name=name)
                else:
                    artifact.add_file(str(path.absolute()), name=name, policy="immutable")
            # use_artifact refuses to work offline; this is what it does with an artifact that is not stored yet
            names = ["latest", *each.aliases]
            self.run._log_artifact(artifact, aliases=names, is_user_created=True, use_after_commit=each.used)

    def alert(self, title: str, text: str) -> None:
        """A message to the user, if logger.alerts."""
        if self.alerts:
            self.run.alert(title, text, level="ERROR")

    def finish(self, exit_code: int) -> None:
        """wandb shows the run as failed unless `exit_code` is 0."""
        self.run.finish(exit_code=exit_code)


def effective_mode(mode: str) -> str:
    """What `logger.mode` means here: `auto` is online where wandb knows a key; WANDB_MODE goes before."""
    mode = os.environ.get("WANDB_MODE") or mode
    return mode if mode != "auto" else "online" if _logged_in() else "offline"


def _logged_in() -> bool:
    """Whether wandb knows a key, without a prompt and without a network: it keeps it under today's host of its own."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    settings = wandb.Settings()
    settings.update_from_env_vars(dict(os.environ))
    hosts = [urlparse(settings.base_url).netloc]
    if settings.base_url == wandb.Settings.model_fields["base_url"].default:
        hosts.append("api.wandb.ai")  # where logins of earlier versions were kept
    try:
        kept = netrc.netrc(os.environ.get("NETRC"))
    except (OSError, netrc.NetrcParseError):
        kept = None
    return bool(settings.api_key) or (kept is not None and any(map(kept.authenticators, hosts)))


def _reachable() -> bool:
    """Whether wandb's server answers; of one behind a proxy nothing is known before it is asked."""
    settings = wandb.Settings()
    settings.update_from_env_vars(dict(os.environ))
    url = urlparse(settings.base_url)
    if proxy_bypass(url.hostname or "") or url.scheme not in getproxies():
        try:
            socket.create_connection((url.hostname or "", url.port or 443), timeout=5).close()
        except OSError as error:
            print(f"wandb: {url.hostname} does not answer ({error})", file=sys.stderr)
            return False
    return True


def _identifier(folder: Path) -> str:
    """An id that lives and dies with the run's folder: resumed runs have the same, equal runs elsewhere another one.

    The agent of a sweep of wandb's has chosen one already.
    """
    if "WANDB_SWEEP_ID" in os.environ and "WANDB_RUN_ID" in os.environ:
        return os.environ["WANDB_RUN_ID"]
    path = folder / "wandb_id"
    if not path.exists():
        path.write_text(f"{folder.name[-8:]}-{secrets.token_hex(3)}\n", encoding="utf-8")
    return path.read_text(encoding="utf-8").strip()
