"""Processes forked from one that has imported torch: a command starts in milliseconds."""

import multiprocessing
import os
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from subprocess import CompletedProcess

from recombine.cli.command import main
from scripts.campaigns.forks import end_with

processes = multiprocessing.get_context("forkserver")
processes.set_forkserver_preload(["tests.preloaded"])


def call(function: Callable, *arguments, timeout: float = 300) -> CompletedProcess:
    """Call a function in a process of its own; what it printed, and 1 or the code of SystemExit where it raised."""
    with tempfile.TemporaryDirectory() as folder:
        out, err = Path(folder, "out"), Path(folder, "err")
        process = processes.Process(target=_redirected, args=(out, err, function, arguments))
        process.start()
        process.join(timeout)
        if process.is_alive():
            process.kill()
        return CompletedProcess(function.__name__, process.exitcode, out.read_text(), err.read_text())


def run(*words: str, cwd: Path, path: Sequence[Path] = (), environment: Mapping[str, str] | None = None):
    """`recombine <words>` in a folder, with more folders to import from."""
    return call(_command, words, cwd, [str(place) for place in path], dict(environment or {}))


def _command(words, cwd, path, environment):
    os.chdir(cwd)
    os.environ.update(environment)
    sys.path[:0] = path
    sys.argv = ["recombine", *words]
    sys.exit(main())


def _redirected(out, err, function, arguments):
    def work():
        function(*arguments)

    end_with(work, out, err)
