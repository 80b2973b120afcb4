"""Kills, full disks, wrong settings and damaged files: `python scripts/chaos.py [--full] [--only kills disk ...]`.

kills      a process is killed as a phase of a run begins; repeated, it ends with rows and weights of an unbroken run
disk       a durable write fails; that is told in a sentence, or the file is not needed; repeated, the run ends the same
settings   settings of each entry, as it declares them, get values of a wrong kind: all refused before a run begins
files      every kind of file is damaged at random: seen, or read as it was, or computed again; never something else

Exit code 1 if anything went wrong. Short by default; `--full` is for a night.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from scripts.campaigns import GOOD, Case

PARTS = {
    "settings": "settings:try_settings",
    "files": "files:try_files",
    "disk": "runs:try_disk",
    "kills": "runs:try_kills",
}
"""Of a campaign, the module below scripts/campaigns and the function; imported as they are needed."""


def campaign(folder: Path, part: str, *, full: bool = False) -> list[Case]:
    """Everything that was tried, in order; what went wrong is printed as it comes."""
    module, _, name = PARTS[part].partition(":")
    cases = []
    for case in getattr(importlib.import_module(f"scripts.campaigns.{module}"), name)(folder, full):
        cases.append(case)
        if case.verdict not in GOOD:
            print(f"{part}: {case.place}: {case.what}: {case.verdict}", flush=True)
    return cases


def table(part: str, cases: Sequence[Case]) -> list[str]:
    """Lines of markdown: what was tried, and how much went as it should."""
    lines = []
    for place in dict.fromkeys(case.place for case in cases):
        of = Counter(case.verdict in GOOD for case in cases if case.place == place)
        lines.append(f"| {part} | {place} | {of.total()} | {of[True]} | {of[False]} |")
    return lines


def main() -> int:
    """Run the campaigns; see the module's text."""
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n")[0])
    parser.add_argument("--full", action="store_true", help="everything, which takes hours")
    parser.add_argument("--only", nargs="*", choices=PARTS, default=list(PARTS))
    options = parser.parse_args()
    os.environ |= {"OMP_NUM_THREADS": "1", "NUMBA_DISABLE_JIT": "1"}
    lines = ["| campaign | of | tried | as it should be | not |", "|---|---|---:|---:|---:|"]
    wrong = 0
    for part in options.only:
        with tempfile.TemporaryDirectory(prefix="chaos-") as folder:
            cases = campaign(Path(folder), part, full=options.full)
        lines += table(part, cases)
        wrong += sum(case.verdict not in GOOD for case in cases)
    print("\n".join(lines))
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
