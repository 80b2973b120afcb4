"""What can be tried, each as the command that anybody can repeat, and its result on the validation images."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from torch import nn

from recombine.attachments import attach, load
from recombine.core.errors import ConfigError
from recombine.core.results import read_rows
from recombine.models.graph import traced

__all__ = ["Outcome", "Trial", "choose_patch", "list_trials", "run_trial"]

DATA = ("dataset=folder", "dataset.folder=.", "data_root=data/choose", "weights_root=weights", "cache_root=cache")
QUIET = ("logger=none", "hydra.job_logging.root.level=WARNING")
TUNED = (
    *("optimizer=adamw", "optimizer.weight_decay=0.01", "method.batchnorm=keep", "engine.grad_clip_norm=1"),
    *("schedule=cosine", "schedule.warmup=0.1"),
)
"""How whole networks train, with a teacher and without: gently, from the classifier that was fitted to them."""
RATES = (0.0003, 0.0001)
"""Learning rates of fine-tuning; the teachers' is the last."""
TASK = "things"
"""The patch's name."""
Measure = Callable[[nn.Module, str | None], np.ndarray]
"""Network and task -> which validation images it gets right, bool [n]."""


@dataclass(frozen=True)
class Trial:
    """One way to improve the network: an experiment with its settings, which lack the number of epochs alone."""

    name: str
    method: str
    """finetune, transfer, patch or stitch."""
    entry: str
    overrides: tuple[str, ...]
    artifact: str
    """Glob, below the run's folder, of the file it leaves; several files are several candidates."""
    trains: bool = True
    """Whether more epochs may do better."""


@dataclass
class Outcome:
    """What a trial gave."""

    name: str
    method: str
    command: str
    epochs: int | None
    seconds: float
    file: Path | None = None
    """Of the student, offspring or patch; None if there is no result."""
    correct: np.ndarray | None = field(default=None, repr=False)
    """Which validation images it gets right, bool [n]."""
    measured: int = 1
    """Networks of which this is the best on the validation images."""
    problem: str = ""
    """Why there is no result."""

    @property
    def accuracy(self) -> float:
        """On the validation images, percent; below all others without a result."""
        return -1.0 if self.correct is None else 100 * float(self.correct.mean())


PATCHES = {"delta": "delta patch", "lora": "low-rank patch"}
"""Methods of patching, and how they are called."""


def choose_patch(model: nn.Module) -> str:
    """delta where the network has blocks to mix, lora for every other one."""
    try:
        return "delta" if traced(model).blocks else "lora"
    except ConfigError:  # a network that is no graph
        return "lora"


def list_trials(
    teachers: list[str],
    batch_size: int,
    patch: str = "delta",
    pixels: Sequence[str] = (),
    augment: str = "crop_resize",
) -> list[Trial]:
    """What is tried for the network `start`, with the best teachers first.

    `patch`: the method of patching; `pixels`: overrides that let b see the pixels that `start` sees; `augment`: of the
    training images of whole networks.
    """
    start = ("model=any", "model.name=start")
    batches = f"batch_size={batch_size}"
    tuned = (*TUNED, f"dataset.augment={augment}", batches)
    trials = [
        Trial(f"fine-tune, lr {rate}", "finetune", "pretrain", (*start, *tuned, f"optimizer.lr={rate}"), "")
        for rate in RATES
    ]
    patched = (*start, f"tasks=[{{name: {TASK}, dataset: folder, folder: .}}]", f"method={patch}", batches)
    trials.append(Trial(PATCHES[patch], "patch", "patch", patched, "patches/*.safetensors"))
    for teacher in teachers[:2]:
        pair = ("model@student=any", "student.name=start", "model@teacher=any", f"teacher.name={teacher}")
        words = (
            *pair,
            "method=kl_dp",
            *tuned,
            f"optimizer.lr={RATES[-1]}",
            "lr_scaling=none",
            "controls=[]",
            "dataset.val_fraction=0",
        )
        trials.append(Trial(f"transfer from {teacher}", "transfer", "transfer", words, "student.safetensors"))
    for teacher in teachers[:1]:
        parents = ("model@a=any", "a.name=start", "model@b=any", f"b.name={teacher}", *pixels)
        parents += ("search=single_stitch_sweep",)
        files = "offspring/*.safetensors"
        trials.append(Trial(f"stitch with {teacher}", "stitch", "stitch", parents, files, trains=False))
    return trials


def run_trial(trial: Trial, epochs: int, work: Path, measure: Measure, timeout: float) -> Outcome:
    """Run a trial's command in `work` and measure what it left; a failure is an outcome without a result."""
    name = "".join(c if c.isalnum() else "_" for c in trial.name) + (f"-{epochs}" if trial.trains else "")
    words = [trial.entry, *trial.overrides, *DATA, *QUIET, f"output_root=runs/{name}"]
    words += [f"engine.epochs={epochs}"] if trial.trains else []
    words += [f"save_as={name}"] if trial.method == "finetune" else []
    outcome = Outcome(trial.name, trial.method, shlex.join(["recombine", *words]), epochs if trial.trains else None, 0)
    started = time.monotonic()
    log = work / "logs" / f"{name}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w", encoding="utf-8") as stream:
        command = [sys.executable, "-m", "recombine.cli.command", *words]
        try:
            code = subprocess.run(command, cwd=work, stdout=stream, stderr=stream, timeout=timeout).returncode
        except subprocess.TimeoutExpired:
            code, outcome.problem = -1, "no time left"
    outcome.seconds = time.monotonic() - started
    if code:
        outcome.problem = outcome.problem or _last_message(log)
    else:
        _measure_files(outcome, _files(trial, work, name), measure, work)
    return outcome


def _files(trial: Trial, work: Path, name: str) -> list[Path]:
    """What the run left."""
    if trial.method == "finetune":
        return [work / "weights" / f"{name}.safetensors"]
    rows = sorted((work / "runs" / name).rglob("row.json"))
    return [file for row in rows if read_rows(row) for file in sorted(row.parent.glob(trial.artifact))]


def _measure_files(outcome: Outcome, files: list[Path], measure: Measure, work: Path) -> None:
    """Keep the best of the files; the first of equals."""
    if not files:
        outcome.problem = "it left no network"
    outcome.measured = len(files)
    for file in files:
        try:
            network, task = open_result(file, work)
        except ConfigError as error:
            outcome.problem = str(error)
            continue
        correct = measure(network, task)
        if outcome.correct is None or correct.mean() > outcome.correct.mean():
            outcome.file, outcome.correct, outcome.problem = file, correct, ""


def open_result(file: Path, work: Path) -> tuple[nn.Module, str | None]:
    """The network of an outcome, and its task where it is a patch of `start`."""
    if file.parent.name == "patches":
        return attach(load(work / "weights" / "start.safetensors"), file, TASK), TASK
    return load(file), None


def _last_message(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    told = [line for line in lines if not line.startswith(("wandb", "Traceback", "File "))]
    return json.dumps(told[-1].removeprefix("- "))[1:-1] if told else "it failed without a word"
