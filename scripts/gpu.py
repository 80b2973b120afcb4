"""What `scripts/gpu.sh` does: tests, speeds, every entry for a few steps, a real run of each, and a summary of it all.

Each step is a process of its own with a log; a step that fails, or takes too long, does not stop the next one.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from recombine.cli.paths import new_folder

ROOT = Path(__file__).parents[1]
DIGITS = ["dataset=digits", "logger=none"]
REAL = [
    ["pretrain", "-m", "model=cnn,lenet5,resnet8", *DIGITS, "engine.epochs=3"],
    ["pretrain", "-m", "model=cnn", "dataset=digits_high", "logger=none", "engine.epochs=3"],
    ["pretrain", "-m", "model=cnn", "dataset=digits_low", "seed=1000", "logger=none", "engine.epochs=3"],
    ["flips", *DIGITS],
    ["transfer", *DIGITS, "engine.epochs=2"],
    ["multi_teacher", *DIGITS, "engine.epochs=2"],
    ["patch", *DIGITS, "engine.epochs=2"],
    ["stitch", *DIGITS, "budget=200"],
    ["pnc", "logger=none", "method=pnc_direct", "similarity=null"],
]
"""A run of each entry on scikit-learn's digits, in the order in which they need each other."""


PATIENCE = 4
"""Times as long a step may take on the simulated accelerator, which is a CPU that others use too."""


class Step(NamedTuple):
    """One thing to do, in at most so many seconds."""

    name: str
    words: list[str]
    seconds: int
    fine: tuple[int, ...] = (0,)
    """Exit codes."""


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=new_folder, default=Path("gpu"), help="folder for logs, rows and summary.md")
    parser.add_argument("--fake", action="store_true", help="on the simulated accelerator")
    parser.add_argument("--minutes", type=float, help="time for all; what does not fit is left out; 30, or 120 if fake")
    parser.add_argument("--steps", nargs="+", help="only these, by the beginnings of their names")
    parser.add_argument("--entries", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.minutes = options.minutes or (120 if options.fake else 30)
    return options


def steps(out: Path, fake: bool) -> Iterator[Step]:
    """All steps; speeds and real runs of `fake` use the CPU, since a simulation has no speed."""
    python, rows = sys.executable, ["--rows", str(out / "rows")]
    command = [python, "-m", "recombine.cli.command"]
    yield Step("machine", [*command, "doctor"], 300, (0, 1))  # 1: something optional is missing
    tests = ["tests/accelerator"] if fake else ["-m", "gpu", "tests"]
    yield Step("tests", [python, "-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider", *tests], 600)
    yield Step("entries", [python, __file__, "--entries", "--out", str(out), *(["--fake"] if fake else [])], 600)
    for section in ("engine", "accelerator"):
        yield Step(f"speed of {section}", [python, "scripts/bench.py", section, *rows], 300)
    device = ["device=cpu", "loader=torch", "loader.workers=0"] if fake else ["device=cuda"]
    places = [f"output_root={out / 'rows'}", f"weights_root={out / 'weights'}", f"cache_root={out / 'cache'}", *device]
    for words in REAL:
        sweep = [f"hydra.sweep.dir={out / 'multirun'}"] if "-m" in words else []
        name = " ".join([word for word in words if word != "-m"][:2])
        yield Step(f"run of {name}", [*command, *words, *places, *sweep], 300)


def main() -> None:
    """Do the steps and write the summary; exit code 1 if one failed."""
    options = arguments()
    out = options.out.resolve()
    (out / "logs").mkdir(parents=True, exist_ok=True)
    if options.entries:
        sys.exit(run_entries(out, options.fake))
    deadline = time.monotonic() + 60 * options.minutes
    chosen = [
        step for step in steps(out, options.fake) if not options.steps or step.name.startswith(tuple(options.steps))
    ]
    results = []
    for number, step in enumerate(chosen):
        log = out / "logs" / f"{number:02}-{step.name.replace(' ', '-').replace('=', '-')[:40]}.log"
        started = time.monotonic()
        limit = step.seconds * (PATIENCE if options.fake else 1)
        result = run_step(step, log, min(limit, deadline - started))
        results.append((step.name, result, time.monotonic() - started, log))
        print(f"{result:8} {results[-1][2]:6.0f} s  {step.name}", flush=True)
    write_summary(out, results, options.fake)
    print(f"summary: {out / 'summary.md'}")
    sys.exit(any(result != "ok" for _, result, *_ in results))


def run_step(step: Step, log: Path, left: float) -> str:
    """ok, failed, too long (of `left` seconds) or left out."""
    if left < 10:
        return "left out"
    with log.open("w", encoding="utf-8") as stream:
        try:
            done = subprocess.run(step.words, cwd=ROOT, stdout=stream, stderr=subprocess.STDOUT, timeout=left)
        except subprocess.TimeoutExpired:
            return "too long"
    broken = done.returncode and "Traceback (most recent call last)" in log.read_text("utf-8", "replace")
    return "failed" if broken or done.returncode not in step.fine else "ok"


def run_entries(out: Path, fake: bool) -> int:
    """A few steps of every entry in each precision, in this process; 1 if one failed."""
    from contextlib import nullcontext

    from scripts.campaigns.runs import RUNS, make_networks
    from scripts.simulated import simulated

    failed = 0
    with tempfile.TemporaryDirectory() as folder:
        make_networks(Path(folder))
        for precision in ("fp32",) if fake else ("fp32", "bf16"):  # the simulation has no autocast
            for entry, words in RUNS.items():
                if entry == "flips" and precision != "fp32":
                    continue
                with simulated() if fake else nullcontext() as waits:
                    try:
                        run_entry(entry.split()[0], [*words, f"engine.precision={precision}"], Path(folder), fake)
                        print(f"ok      {entry}, {precision}")
                    except Exception:
                        failed = 1
                        print(f"FAILED  {entry}, {precision}\n{traceback.format_exc()}")
                if waits is not None and waits.counts:
                    failed = 1
                    print(f"FAILED  waits inside training steps of {entry}, {precision}:\n{waits.report()}")
    return failed


def run_entry(entry: str, words: list[str], folder: Path, fake: bool) -> None:
    """A few steps of an entry with networks that `make_networks` made."""
    from hydra import compose

    from recombine.cli.entries import ENTRIES
    from recombine.cli.search_path import initialize_entry
    from recombine.run.launch import launch

    places = [f"{key}_root={folder / key}" for key in ("data", "weights", "cache", "output")]
    small = ["logger=none", "loader=torch", "loader.workers=0", "engine.max_steps=3", "engine.epochs=2"]
    given = [*places, *small, "engine.log_every=1000", f"device={'auto' if fake else 'cuda'}", *words]
    with initialize_entry(entry):
        cfg = compose(ENTRIES[entry].config, given)
    launch(ENTRIES[entry].recipe, cfg)


def write_summary(out: Path, results: list[tuple[str, str, float, Path]], fake: bool) -> None:
    """One page: how each step ended, the end of each log that matters, and the rows."""
    lines = [f"# {'Simulated accelerator' if fake else 'GPU'}", "", "| step | result | seconds |", "|---|---|---:|"]
    lines += [f"| {name} | {result} | {seconds:.0f} |" for name, result, seconds, _ in results]
    for name, result, _, log in results:
        if not log.exists():
            continue
        kept = log.read_text(encoding="utf-8", errors="replace").rstrip().splitlines()
        shown = kept[-60:] if result != "ok" else kept[-25:]
        lines += ["", f"## {name}", "", "```text", *shown, "```"]
    (out / "summary.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    os.chdir(ROOT)
    main()
