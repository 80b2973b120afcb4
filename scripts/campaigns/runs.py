"""Whole runs of every entry, in forks: killed as a phase begins, or with a disk that fails."""

from __future__ import annotations

import errno
import importlib
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from recombine.cli.entries import ENTRIES
from recombine.core.errors import RecombineError

from . import Case
from .forks import fork

__all__ = ["RUNS", "TINY", "make_networks", "roots", "run_entry", "start", "try_disk", "try_kills", "try_stops"]

TINY = ["loader=torch", "loader.workers=0", "logger=none", "device=cpu", "engine.max_steps=6", "engine.epochs=2"]
TINY += ["engine.save_every_steps=2"]
PAIR = ["model@student=any", "student.name=first", "dataset=digits", "method=kl_dp", "batch_size=256"]
LOW = "{name:low,dataset:digits,class_subset:[5,6,7]}"
CROSS = ["model@a=any", "a.name=first", "model@b=any", "b.name=second", "dataset=digits", "budget=24"]
CROSS += ["search.population=8", "num_saved=1", "matching.max_matches=3"]
RUNS = {
    "pretrain": ["model=cnn", "dataset=digits"],
    "pretrain with FFCV": ["model=cnn", "dataset=digits", "loader=ffcv"],
    "flips": ["dataset=digits", "models=[first,second]"],
    "transfer": [*PAIR, "model@teacher=any", "teacher.name=second"],
    "multi_teacher": [*PAIR, "teachers=[second,third]"],
    "patch": ["model=any", "model.name=first", "dataset=digits", f"tasks=[{LOW}]", "method=fc"],
    "stitch": CROSS,
    "stitch with training": [*CROSS, "method=stitch_distill"],
    "pnc": [
        *("model@target=any", "target.name=high", "model@source=any", "source.name=low", "similarity=null"),
        *("lime.num_fit=40", "method.localize_epochs=1", "method.insert_epochs=1", "method.min_steps=4"),
        "method.positions=[1]",
    ],
    "pnc composing": [
        *("model@target=any", "target.name=high", "model@source=any", "source.name=low", "similarity=null"),
        *("method=compose", "method.mask=taylor", "method.insert_epochs=1", "method.min_steps=4"),
        *("source_data.class_subset=null", "clone=['0','3']", "select_fraction=0.5", "method.networks=[low]"),
    ],
}
"""Small runs of every entry."""
LATE = ("sklearn.datasets", "sklearn.model_selection", "recombine.data.torch", "recombine.data.known", "torch._dynamo")
"""What runs import when they need it."""
PHASES = {
    "training": "recombine.engine.training:Training.update",
    "checkpoint": "recombine.engine.checkpoint:save",
    "evaluation": "recombine.engine.evaluate:evaluating",
    "batches": "recombine.data.loading:BatchLoader.read",
    "rename": "os:replace",
    "rows": "recombine.run.launch:write_rows",
    "search": "recombine.stitch.evaluator:append_records",
    "race": "recombine.stitch.racing:Heat.drop",
    "offer": "recombine.pnc.zoo:find_offers",
    "choice": "recombine.pnc.zoo:choose_offers",
    "clones": "recombine.pnc.recipe:write_clones",
}
"""What a process is about to do when it is killed."""
SHORT = {"pretrain": ("training",), "stitch with training": ("training", "search", "race")}
"""Runs and phases of the short form."""
BREAKS = 2
"""How often a run is killed or stopped in the same phase before it may end."""
IN_TIME = 30
"""Seconds from a signal to the end of a process that saves its state."""


def make_networks(folder: Path) -> None:
    """Small networks in `folder/weights`, which the runs read: random ones, and `low` and `high` that know digits."""
    from recombine import models

    for module in (*(entry.recipe for entry in ENTRIES.values()), *LATE):
        importlib.import_module(module)  # once, and not in each child
    node = {"name": "cnn", "widths": [8, 8, 16], "size": 16, "mean": [0.3] * 3, "std": [0.3] * 3, "weights": None}
    names = {**dict.fromkeys(("first", "second", "third"), "0123456789"), "low": "01234", "high": "56789"}
    for seed, (name, classes) in enumerate(names.items()):
        made = models.build(node, classes=len(classes), seed=seed)
        if len(classes) == 5:
            _train(made, list(classes), folder)
        models.save(made, folder / "weights" / f"{name}.safetensors", {"class_names": list(classes)})


def _train(model: Any, classes: list[str], folder: Path) -> None:
    """So long that what a network offers to compose is more than nothing."""
    import torch

    from recombine import data

    options = {"data_root": "", "cache_root": folder / "cache", "loader": {"kind": "torch", "workers": 0}}
    node = {"name": "digits", "class_subset": [int(name) for name in classes]}
    digits = data.open_data(node, **options, seed=0, device="cpu")
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    for epoch in range(4):
        for batch in digits.loader("train", 32, train=True).epoch(epoch):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model.train()(batch.images), batch.labels).backward()
            optimizer.step()
    model.eval()
    digits.close()


def roots(folder: Path, place: str) -> list[str]:
    """Overrides that keep all that a run writes in `folder/place`."""
    found = {"data": folder, "weights": folder / place, "cache": folder / place / "cache", "output": folder / place}
    return [f"{key}_root={path}" for key, path in found.items()]


def run_entry(name: str, folder: Path, place: str, prepare: Callable[[], None] = lambda: None) -> int:
    """Exit code of a small run in a process of its own (minus the signal that killed it); its words are in a log."""
    return fork(folder / place / "log", lambda: start(name.split()[0], RUNS[name], folder, place, prepare))


def start(entry: str, words: list[str], folder: Path, place: str, prepare: Callable[[], None] = lambda: None) -> int:
    """Exit code of a small run in this process; `prepare` is called when its config is there."""
    from hydra import compose

    from recombine.cli.search_path import initialize_entry
    from recombine.core.errors import exit_code_of
    from recombine.run.launch import launch

    for file in (folder / "weights").iterdir():
        with suppress(FileExistsError):
            os.link(file, folder / place / file.name)
    with initialize_entry(entry):
        cfg = compose(ENTRIES[entry].config, [*roots(folder, place), *TINY, *words])
    prepare()
    try:
        launch(ENTRIES[entry].recipe, cfg)
    except RecombineError as error:
        print(f"told: {error}")
        return exit_code_of(error)
    return 0


def outcome(folder: Path) -> dict[str, Any]:
    """What a run left: metrics and series of its rows without times, and every weight it wrote."""
    from recombine.core.files import read_tensors
    from recombine.core.results import read_rows

    found: dict[str, Any] = {}
    for row in read_rows(folder):
        metrics = {key: value for key, value in row.metrics.items() if "seconds" not in key}
        found[str(sorted((k, str(v)) for k, v in row.cell.items()))] = (row.status, metrics, row.series)
    for file in folder.rglob("*.safetensors"):
        if "cache" not in file.parts and not file.is_symlink() and "previous" not in file.parts:
            tensors = read_tensors(file, needs_digest=False)[0]
            found[file.name] = {key: value.numpy().tobytes() for key, value in tensors.items()}
    return found


def _same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return repr(one) == repr(other)  # nan is nan


def hook(target: str, count: int, act: Callable[[], None]) -> None:
    """Call `act` as the function `target` is called for the `count`-th time."""
    module, _, path = target.partition(":")
    owner: Any = importlib.import_module(module)
    *parents, last = path.split(".")
    for part in parents:
        owner = getattr(owner, part)
    original, seen = getattr(owner, last), [0]

    def hooked(*arguments: Any, **options: Any) -> Any:
        seen[0] += 1
        if seen[0] == count:
            act()
        return original(*arguments, **options)

    setattr(owner, last, hooked)


def try_kills(folder: Path, full: bool) -> Iterator[Case]:
    """Kill each run as each phase begins, for the first and a later time, once more when it is repeated; let it end."""
    yield from _break_off(folder, full, signal.SIGKILL, -signal.SIGKILL)


def try_stops(folder: Path, full: bool) -> Iterator[Case]:
    """Ask each run to stop as each phase begins: its state is saved in time; repeated, it is stopped once more."""
    yield from _break_off(folder, full, signal.SIGTERM, 128 + signal.SIGTERM)


def _break_off(folder: Path, full: bool, number: signal.Signals, code: int) -> Iterator[Case]:
    make_networks(folder)
    for name in RUNS if full else SHORT:
        if run_entry(name, folder, f"{name} whole"):
            yield Case(name, "unbroken", "traceback")
            continue
        whole = outcome(folder / f"{name} whole")
        for phase in PHASES if full else SHORT[name]:
            for count in (1, 2, 5) if full else (2,):
                place = f"{name} {phase} {count}"
                ends = [_signalled(name, folder, place, (phase, count), number)]
                if ends[0][1] is None:
                    break  # the phase does not come so often
                while ends[-1][0] == code and len(ends) < BREAKS:
                    ends.append(_signalled(name, folder, place, (phase, count), number))
                again = run_entry(name, folder, place) if ends[-1][0] in (0, code) else 1
                verdict = "same" if _same(outcome(folder / place), whole) else "different"
                verdict = "late" if any((seconds or 0) > IN_TIME for _, seconds in ends) else verdict
                yield Case(name, f"{phase} {count}", "traceback" if again else verdict)


def _signalled(
    name: str, folder: Path, place: str, when: tuple[str, int], number: signal.Signals
) -> tuple[int, float | None]:
    """Exit code of a run that gets a signal as a phase begins, and seconds from it to the end; None: no such phase."""
    phase, count = when
    sent = folder / place / "sent"
    sent.unlink(missing_ok=True)

    def send() -> None:
        sent.touch()
        os.kill(os.getpid(), number)

    code = run_entry(name, folder, place, lambda: hook(PHASES[phase], count, send))
    return code, time.time() - sent.stat().st_mtime if sent.exists() else None


def try_disk(folder: Path, full: bool) -> Iterator[Case]:
    """Let one durable write after the other fail."""
    make_networks(folder)
    for name in RUNS if full else ["pretrain"]:
        run_entry(name, folder, f"{name} on a disk")
        whole = outcome(folder / f"{name} on a disk")
        for number in (errno.ENOSPC, errno.EIO) if full else (errno.ENOSPC,):
            for count in range(1, 40) if full else (1, 4):
                place = f"{name} {errno.errorcode[number]} {count}"

                def fail(number: int = number) -> None:
                    raise OSError(number, os.strerror(number))

                code = run_entry(name, folder, place, lambda c=count: hook("os:fsync", c, fail))
                log = (folder / place / "log").read_text(encoding="utf-8", errors="replace")
                fault = "traceback" if "Traceback" in log or code not in (0, 1) else ""
                fault = fault or ("" if code == 0 or "told: cannot write" in log else "silent")
                fault = fault or ("" if not run_entry(name, folder, place) else "traceback")
                fault = fault or ("" if _same(outcome(folder / place), whole) else "different")
                yield Case(name, f"{errno.errorcode[number]} at write {count}", fault or "told")
                if code == 0 and "not kept" not in log:
                    break  # there are no more writes
