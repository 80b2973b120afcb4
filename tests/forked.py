"""Processes forked from one that has imported torch: a command starts in milliseconds."""

import multiprocessing
import os
import sys
import tempfile
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from subprocess import CompletedProcess

from recombine.cli.command import main

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
    for file, number in ((out, 1), (err, 2)):
        opened = os.open(file, os.O_CREAT | os.O_WRONLY)
        os.dup2(opened, number)
    sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)  # noqa: SIM115 (until the end)
    code = 0
    try:
        function(*arguments)
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
