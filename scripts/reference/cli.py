"""The page of all commands, from the parsers of the tools."""

from __future__ import annotations

import argparse
import inspect
from collections.abc import Iterable
from importlib import import_module
from typing import Any

from recombine.cli.command import TOOLS, usage
from reference.text import GENERATED, escape

__all__ = ["cli_page"]


def cli_page() -> str:
    """Commands, their options, and what the experiments share."""
    parts = [GENERATED, CLI_INTRO, "```text", usage(), "```", CLI_EXPERIMENTS]
    for name in TOOLS:
        module = import_module(f"recombine.cli.{name}")
        parser = parser_of(module)
        parts += ["", f"### recombine {name}", "", *intro_text(parser.description if parser else None, module)]
        parts += parser_text(parser) if parser else []
    return "\n".join(parts).rstrip() + "\n"


CLI_INTRO = """
# Command line

`recombine <command>` works wherever the package is installed. In a clone, `python main_<entry>.py` is the same as
`recombine <entry>`, and `python scripts/<tool>.py` is the same as `recombine <tool>`.
"""
CLI_EXPERIMENTS = """
## Experiments

Experiments take Hydra overrides and Hydra's flags. [Hydra](../hydra.md) shows how to use them, and
[Settings](settings.md) lists every setting.

| Flag | Meaning |
|---|---|
| `--help` | groups, their options and the config of the entry |
| `-m`, `--multirun` | one job for each combination of comma-separated values |
| `--cfg job` | print the config and run nothing; `--resolve` fills in interpolations |
| `--info defaults` | where each part of the config comes from |
| `--config-dir DIR` | one more folder with config groups of your own |
| `--config-path DIR`, `--config-name NAME` | another primary config |
| `-sc install=bash` | print the code for tab completion |

[Exit codes](../runs.md#exit-codes) are the same for all.

## Tools
"""


class _Found(Exception):
    """Carries a parser out of the function that would have used it."""


def parser_of(module: Any) -> argparse.ArgumentParser | None:
    """The parser of a tool; None if it takes Hydra's overrides."""

    def found(parser: argparse.ArgumentParser, *_: Any) -> None:
        raise _Found(parser)

    parse = getattr(module, "parse_arguments", None) or getattr(module, "arguments", None)
    if parse is None:
        return None
    original, argparse.ArgumentParser.parse_args = argparse.ArgumentParser.parse_args, found
    try:
        parse()
    except _Found as error:
        return error.args[0]
    finally:
        argparse.ArgumentParser.parse_args = original
    return None


def intro_text(description: str | None, module: Any) -> list[str]:
    """What a tool does, in words and examples."""
    first, _, rest = (description or inspect.getdoc(module) or "").strip().partition("\n\n")
    return [escape(" ".join(first.split())), "", *(["```text", rest.strip(), "```", ""] if rest.strip() else [])]


def parser_text(parser: argparse.ArgumentParser) -> list[str]:
    """Examples and options of a parser; sub-commands follow."""
    lines = ["```text", parser.epilog.strip(), "```", ""] if parser.epilog else []
    lines += options_table(parser._actions)
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            texts = {each.dest: each.help for each in action._choices_actions}
            for name, inner in action.choices.items():
                lines += ["", f"`{name}`: {texts.get(name) or ''}.", "", *options_table(inner._actions)]
    return lines


def options_table(actions: Iterable[argparse.Action]) -> list[str]:
    """Options and arguments with their help."""
    rows = []
    for action in actions:
        if isinstance(action, argparse._HelpAction | argparse._SubParsersAction):
            continue
        value = "" if action.nargs == 0 or not action.option_strings else f" {action.metavar or action.dest.upper()}"
        name = ", ".join(action.option_strings) or str(action.metavar or action.dest)
        shown = action.default not in (None, False, [], argparse.SUPPRESS) and "default" not in (action.help or "")
        start = f"; default: `{shell(action.default)}`" if shown else ""
        name = (name + value).replace("|", "\\|")
        text = escape((action.help or "").replace("%%", "%"))
        text = text or (f"one of {', '.join(action.choices)}" if action.choices else action.dest)
        rows.append(f"| `{name}` | {text}{start} |")
    return ["| Option | Meaning |", "|---|---|", *rows] if rows else []


def shell(value: Any) -> str:
    """A default as it would be typed."""
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)
