"""`recombine`: one command for all experiments and tools, so that its help shows what there is.

recombine transfer model@student=resnet20 ...     an experiment; the same as `python main_transfer.py ...` in a clone
recombine predict --model resnet20 images/        a tool
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib import import_module

from recombine.cli.entries import ENTRIES
from recombine.core.errors import ConfigError, RecombineError, did_you_mean, reader_is_gone

__all__ = ["main"]

TOOLS = {
    "improve": "a folder of images and a network in, a better network out: tries what the experiments have",
    "predict": "classify images with a network, and with patches and clones on it",
    "export": "write a network, with its patches or clones, as a torch.export program or as ONNX",
    "artifacts": "list what files hold; put clones together and take them apart",
    "table": "a table of a paper from the rows of finished runs",
    "report": "everything the rows of finished runs hold, as one page",
    "inspect_data": "look at a folder of images before anything is trained on it",
    "dashboards": "workspaces and reports of wandb, as JSON or saved there",
    "prepare": "find or download datasets and convert them for FFCV",
    "doctor": "what this machine has; part of every bug report",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Start what the first word names, with the others; the exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given[:1] == ["-sc"] and "COMP_LINE" in os.environ:  # the shell asks for completions
        program, _, line = os.environ["COMP_LINE"].partition(" ")
        name, blank, rest = line.partition(" ")
        if not blank:
            print("\n".join(word for word in (*ENTRIES, *TOOLS) if word.startswith(name)))
        if not blank or name not in ENTRIES:
            return 0
        os.environ["COMP_LINE"] = f"{program} {rest}"  # Hydra expects a program, not a command of one
        os.environ["COMP_POINT"] = str(len(os.environ["COMP_LINE"]))
        given = [name, *given]
    if not given or given[0] in ("-h", "--help"):
        print(usage())
        return 0 if given else ConfigError.exit_code
    if given[0] == "--version":
        from recombine.version import __version__

        print(f"recombine {__version__}")
        return 0
    name, sys.argv[1:] = given[0], given[1:]
    try:
        code = start(name)
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        return reader_is_gone()
    except RecombineError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code


def start(name: str) -> int:
    """Run an experiment or a tool with the words in sys.argv."""
    if name in ENTRIES:
        from recombine.cli.main import main as run_entry

        run_entry(name)
        return 0
    if name not in TOOLS:
        raise ConfigError(f"there is no command '{name}'; {did_you_mean(name, [*ENTRIES, *TOOLS], show=99)}")
    sys.argv[0] = f"recombine {name}"  # what usage and mistakes name
    return import_module(f"recombine.cli.{name}").main() or 0


def usage() -> str:
    """What `recombine --help` prints."""
    experiments = [f"  {entry.name:14} {entry.about}" for entry in ENTRIES.values()]
    tools = [f"  {name:14} {about}" for name, about in TOOLS.items()]
    lines = ["usage: recombine <command> ...", "", "experiments (recombine <command> --help lists their settings)"]
    return "\n".join([*lines, *experiments, "", "tools (recombine <command> -h)", *tools])


if __name__ == "__main__":
    sys.exit(main())
