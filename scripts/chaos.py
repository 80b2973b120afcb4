"""Kills, full disks, wrong settings and damaged files: `python scripts/chaos.py [--full] [--only kills disk ...]`.

kills      a process is killed as a phase of a run begins; repeated, it ends with rows and weights of an unbroken run
stops      a process is asked to stop (SIGTERM) as a phase begins; it ends in time, its state saved; repeated, as above
disk       a durable write fails; that is told in a sentence, or the file is not needed; repeated, the run ends the same
settings   settings of each entry, as it declares them, get values of a wrong kind or out of bounds, in commands that
           work without: all refused before a run begins
tools      broken commands of the tools: refused, or the sentence of what is wrong with a file
files      every kind of file is damaged at random: seen, or read as it was, or computed again; never something else

Exit code 1 if anything went wrong. Short by default; `--full` is for a night.
"""

from __future__ import annotations

import argparse
import importlib
import os
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from recombine.cli.paths import existing_file
from scripts.campaigns import GOOD, Case

PARTS = {
    "settings": "settings:try_settings",
    "tools": "tools:try_tools",
    "files": "files:try_files",
    "disk": "runs:try_disk",
    "kills": "runs:try_kills",
    "stops": "runs:try_stops",
}
"""Of a campaign, the module below scripts/campaigns and the function; imported as they are needed."""


HEAD = ["| campaign | of | tried | as it should be | not |", "|---|---|---:|---:|---:|"]


def campaign(folder: Path, part: str, **how: Any) -> list[Case]:
    """Everything that was tried, in order, printed as it comes; Ctrl-C ends it early."""
    module, _, name = PARTS[part].partition(":")
    cases = []
    try:
        for case in getattr(importlib.import_module(f"scripts.campaigns.{module}"), name)(folder, **how):
            cases.append(case)
            print(f"{part}: {case.place}: {case.what}: {case.verdict}", flush=True)
    except KeyboardInterrupt:
        print(f"{part}: ended early after {len(cases)}", flush=True)
    return cases


def table(part: str, cases: Sequence[Case]) -> list[str]:
    """Lines of markdown: what was tried, and how much went as it should."""
    lines = []
    for place in dict.fromkeys(case.place for case in cases):
        of = Counter(case.verdict in GOOD for case in cases if case.place == place)
        lines.append(f"| {part} | {place} | {of.total()} | {of[True]} | {of[False]} |")
    of = Counter(case.verdict in GOOD for case in cases)
    return [*lines, f"| {part} | **all** | {of.total()} | {of[True]} | {of[False]} |"]


def main() -> int:
    """Run the campaigns; see the module's text."""
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n")[0])
    parser.add_argument("--full", action="store_true", help="everything, which takes hours")
    parser.add_argument("--most", type=int, help="with --full: so many wrong settings of each entry, drawn by a seed")
    parser.add_argument("--only", nargs="*", choices=PARTS, default=list(PARTS))
    parser.add_argument("--out", type=existing_file, help="markdown page that gets the figures, between its marks")
    options = parser.parse_args()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # in the background it may be ignored
    os.environ |= {"OMP_NUM_THREADS": "1", "NUMBA_DISABLE_JIT": "1"}
    lines: dict[str, list[str]] = {}
    wrong = 0
    for part in options.only:
        with tempfile.TemporaryDirectory(prefix="chaos-") as folder:
            how = {"most": options.most} if part == "settings" else {}
            cases = campaign(Path(folder), part, full=options.full, **how)
        lines[part] = table(part, cases)
        wrong += sum(case.verdict not in GOOD for case in cases)
    print("\n".join([*HEAD, *chain(*lines.values())]))
    if options.out is not None:
        fill(options.out, lines)
    return int(wrong > 0)


def fill(path: Path, lines: dict[str, list[str]]) -> None:
    """Put the table between the marks of a page; campaigns that did not run now keep their lines."""
    before, _, rest = path.read_text(encoding="utf-8").partition("<!-- chaos -->\n")
    old, _, after = rest.partition("<!-- end -->")
    for part in PARTS:
        lines.setdefault(part, [line for line in old.splitlines() if line.startswith(f"| {part} |")])
    text = "\n".join([*HEAD, *chain(*(lines[part] for part in PARTS))])
    path.write_text(f"{before}<!-- chaos -->\n\n{text}\n\n<!-- end -->{after}", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
