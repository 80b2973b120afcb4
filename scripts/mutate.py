"""Mutants of the code that the tests have to notice: `python scripts/mutate.py [--only folder] [--out page.md]`.

Each mutant of tests/mutants/*.yaml is one exact replacement in one file of the package, with the tests that should
fail. They run in a copy of the working tree, one process per mutant that ends at the first failing test. A mutant
whose tests pass survived; so did one that ran out of time. Tests that killed have to pass without any mutant.
Exit code 1 if fewer than 95 % are killed.
"""

from __future__ import annotations

import argparse
import importlib
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import yaml

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from scripts.campaigns.forks import OUT_OF_TIME, fork

ROOT = Path(__file__).resolve().parents[1]
GOAL = 0.95
SECONDS = 240
HEAVY = ["torch", "torchvision", "timm", "scipy.stats", "sklearn.linear_model", "hydra", "pydantic", "pytest"]
"""Imported once; the children that run tests have them already."""
QUICK = ["-x", "-rfE", "-p", "no:cacheprovider", "-W", "ignore::pytest.PytestAssertRewriteWarning"]
FAILED = re.compile(r"^(?:FAILED|ERROR) (\S+)", re.MULTILINE)


class Mutant(NamedTuple):
    """One replacement in `src/recombine/<file>`."""

    folder: str
    name: str
    file: str
    old: str
    new: str
    tests: list[str]


class Result(NamedTuple):
    """What became of a mutant: killed, survived, late or invalid."""

    mutant: Mutant
    state: str
    test: str
    seconds: float


def read_mutants(only: Sequence[str]) -> list[Mutant]:
    """All mutants of tests/mutants, or those whose folder or name is given; ValueError for one that does not fit."""
    mutants = []
    for path in sorted((ROOT / "tests" / "mutants").glob("*.yaml")):
        for entry in yaml.safe_load(path.read_text(encoding="utf-8")):
            tests = shlex.split(entry["tests"])
            mutant = Mutant(path.stem, entry["name"], entry["file"], entry["old"], entry["new"], tests)
            found = (ROOT / "src" / "recombine" / mutant.file).read_text(encoding="utf-8").count(mutant.old)
            if found != 1 or mutant.old == mutant.new:
                raise ValueError(f"mutant '{mutant.name}': its text occurs {found} times in {mutant.file}")
            mutants.append(mutant)
    return [each for each in mutants if not only or {each.folder, each.name} & {*only}]


def copy_tree(target: Path) -> None:
    """The working tree without what git ignores, as a repository of its own."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        check=True,
    )
    for name in filter(None, listed.stdout.decode().split("\0")):
        if (ROOT / name).exists():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target / name, follow_symlinks=False)
    who = ["-c", "user.name=mutants", "-c", "user.email=mutants@localhost"]
    for words in (["init", "-q"], ["add", "-A"], [*who, "commit", "-q", "--no-verify", "-m", "a copy"]):
        subprocess.run(["git", *words], cwd=target, check=True)  # rows name the commit of the code


def run_tests(tree: Path, tests: Sequence[str]) -> tuple[int, str]:
    """Exit code of pytest on the copy and what it printed."""

    def work() -> int:
        os.chdir(tree)
        import pytest

        return int(pytest.main([*QUICK, f"--basetemp={tree / 'basetemp'}", *tests]))

    log = tree / "pytest.log"
    return fork(log, work, SECONDS), log.read_text(encoding="utf-8", errors="replace")


def try_mutant(tree: Path, mutant: Mutant) -> Result:
    """Put the mutant into the copy, run its tests, and put the text of before back."""
    path = tree / "src" / "recombine" / mutant.file
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace(mutant.old, mutant.new), encoding="utf-8")
    start = time.monotonic()
    try:
        code, output = run_tests(tree, mutant.tests)
    finally:
        path.write_text(text, encoding="utf-8")
    failed = FAILED.findall(output)
    state = {OUT_OF_TIME: "late", 0: "survived", 1: "killed"}.get(code, "invalid")
    if state == "invalid" or (state == "killed" and not failed):
        print(output[-3000:], file=sys.stderr)
    return Result(mutant, state, failed[0] if failed else "", time.monotonic() - start)


def control(tree: Path, results: Sequence[Result]) -> list[str]:
    """The tests that killed a mutant and fail without one too."""
    killers = sorted({result.test for result in results if result.state == "killed"})
    missing = []
    for start in range(0, len(killers), 20):
        _, output = run_tests(tree, ["--maxfail=1000", *killers[start : start + 20]])
        missing += FAILED.findall(output)
    return missing


def as_lines(results: Sequence[Result]) -> dict[str, str]:
    """A line of a markdown table for each mutant, by its folder and name."""
    lines = {}
    for mutant, state, test, _ in results:
        says = f"`{test.removeprefix('tests/')}`" if state == "killed" else state
        lines[f"{mutant.folder}: {mutant.name}"] = f"| {mutant.folder} | {mutant.name} | {mutant.file} | {says} |"
    return lines


def figures(lines: dict[str, str]) -> str:
    """How many mutants of each folder were killed, as markdown."""
    table = ["| folder | mutants | killed | not | share killed |", "|---|---:|---:|---:|---:|"]
    cells = [line.split(" | ") for line in lines.values()]
    for folder in [*dict.fromkeys(cell[0][2:] for cell in cells), "all"]:
        of = Counter("`" in cell[3] for cell in cells if folder in (cell[0][2:], "all"))
        total = of.total()
        table.append(f"| {folder} | {total} | {of[True]} | {of[False]} | {100 * of[True] / total:.0f} % |")
    return "\n".join(table)


def fill(path: Path, lines: dict[str, str]) -> None:
    """Put lines and figures between the marks of a page; lines of mutants that did not run now stay."""
    before, _, rest = path.read_text(encoding="utf-8").partition("<!-- mutants -->\n")
    old, _, after = rest.partition("<!-- end -->")
    known = {f"{m.folder}: {m.name}": m.folder for m in read_mutants([])}
    kept = {": ".join(line[2:].split(" | ")[:2]): line for line in old.splitlines() if line.count(" | ") == 3}
    merged = {name: line for name in known if (line := (kept | lines).get(name))}
    text = "\n".join(
        [figures(merged), "", "| folder | mutant | file | killed by |", "|---|---|---|---|", *merged.values()]
    )
    path.write_text(f"{before}<!-- mutants -->\n\n{text}\n\n<!-- end -->{after}", encoding="utf-8")


def main() -> int:
    """Run the mutants; see the module's text."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", nargs="*", default=[], help="folders (core, data, ...) or names of mutants")
    parser.add_argument("--out", type=Path, help="markdown page that gets the results, between its marks")
    options = parser.parse_args()
    if options.out is not None and not options.out.is_file():
        parser.error(f"--out {options.out}: there is no such page")
    mutants = read_mutants(options.only)
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        tree = Path(folder) / "tree"
        copy_tree(tree)
        _prepare(tree)
        results = []
        for number, mutant in enumerate(mutants, 1):
            results.append(try_mutant(tree, mutant))
            _, state, test, seconds = results[-1]
            print(
                f"{number:3}/{len(mutants)} {mutant.folder:9} {state:8} {seconds:5.1f} s  {mutant.name}  {test}",
                flush=True,
            )
        failing = control(tree, results)
    results = [each._replace(state="invalid") if each.test in failing else each for each in results]
    lines = as_lines(results)
    print(figures(lines))
    print("\n".join(f"fails without a mutant: {test}" for test in failing))
    if options.out is not None:
        fill(options.out, lines)
    killed = sum(result.state == "killed" for result in results)
    return int(killed < GOAL * len(results))


def _prepare(tree: Path) -> None:
    """Make this process import the copy, and its children quick."""
    os.environ |= {"PYTHONPATH": str(tree / "src"), "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
    os.environ |= {"NUMBA_DISABLE_JIT": "1", "HF_HUB_OFFLINE": "1", "WANDB_MODE": "offline", "MPLBACKEND": "Agg"}
    sys.dont_write_bytecode = True  # a mutant of the same length and second would be taken for the text of before
    sys.path[:] = [
        str(tree),
        str(tree / "src"),
        *(p for p in sys.path if p not in (str(ROOT), str(ROOT / "src"), str(ROOT / "scripts"))),
    ]
    for name in HEAVY:
        importlib.import_module(name)


if __name__ == "__main__":
    sys.exit(main())
