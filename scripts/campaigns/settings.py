"""Values that cannot be meant, for every setting of every entry, as its own declaration has them: real commands."""

from __future__ import annotations

import random
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import annotated_types as at
from pydantic.fields import FieldInfo

from recombine.cli import command
from recombine.cli import main as entry_main
from recombine.cli.entries import ENTRIES
from recombine.cli.overrides import compose_all
from recombine.core.files import CONFIG_DIR
from recombine.core.settings import Settings, schema_of, to_dict

from . import Case
from .forks import fork
from .runs import RUNS, TINY, make_networks, roots

__all__ = ["judge", "try_settings"]


def fields(schema: type[Settings], node: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Every setting below a node that its declaration has, those of what it constructs included."""
    for name, field in schema.model_fields.items():
        yield f"{path}{name}", field
        inner, value = _schema(field.annotation), node.get(name)
        if isinstance(value, Mapping):
            inner = inner or schema_of(str(value.get("_target_")))
        if inner is not None and isinstance(value, Mapping):
            yield from fields(inner, value, f"{path}{name}.")


def _schema(annotation: Any) -> type[Settings] | None:
    members = (annotation, *typing.get_args(annotation))
    return next((each for each in members if isinstance(each, type) and issubclass(each, Settings)), None)


def _members(annotation: Any, metadata: tuple[Any, ...] = ()) -> Iterator[tuple[Any, tuple[Any, ...]]]:
    """The kinds of value that an annotation has, each with its bounds."""
    origin, inside = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        rules = [rule for one in inside[1:] for rule in getattr(one, "metadata", [one])]
        yield from _members(inside[0], (*metadata, *rules))
    elif origin is not None and origin is not typing.Literal and not _holds_many(origin):
        for member in inside:
            yield from _members(member, metadata)
    else:
        yield annotation, metadata


def _holds_many(origin: Any) -> bool:
    return isinstance(origin, type) and issubclass(origin, (dict, list, tuple, Mapping))


def _beyond(rules: tuple[Any, ...]) -> Iterator[str]:
    """Numbers on the wrong side of each bound."""
    for rule in rules:
        if isinstance(rule, at.Ge | at.Gt):
            yield str(rule.ge - 1 if isinstance(rule, at.Ge) else rule.gt)
        if isinstance(rule, at.Le | at.Lt):
            yield str(rule.le + 1 if isinstance(rule, at.Le) else rule.lt)


def wrong_values(field: FieldInfo) -> list[str]:
    """Values that cannot be meant, by the kinds and bounds of a setting alone; none where anything may be."""
    members = dict(_members(field.annotation, tuple(field.metadata)))
    kinds = [typing.get_origin(kind) or kind for kind in members]
    if Any in kinds or any(isinstance(kind, type) and issubclass(kind, Mapping | Settings) for kind in kinds):
        return []
    many = any(_holds_many(kind) for kind in kinds)
    values = ["{a: {b: 1}}", *(() if many else ("[[1]]",))]
    if str not in kinds:
        values += ["banana", "'1'"]
        if {int, float} & {*kinds}:
            values += ["nan", "1e400", *(text for rules in members.values() for text in _beyond(rules))]
    return list(dict.fromkeys(values))


def judge(words: list[str], log: Path, named: str = "") -> str:
    """Run a command in a fork, an experiment's up to where its work would begin: what became of it."""

    def work() -> int:
        entry_main._job = lambda *_: None  # an accepted command does nothing
        return command.main(words)

    code = fork(log, work)
    said = log.read_text(encoding="utf-8", errors="replace")
    if "Traceback" in said:
        print(said[-1500:], flush=True)
        return "traceback"
    if code != 2:
        return {0: "accepted", 1: "told"}.get(code, f"exit code {code}")
    return "refused" if named in said else "refused for another reason"


def try_settings(folder: Path, full: bool, most: int | None = None) -> Iterator[Case]:
    """Give each setting of each entry values of a wrong kind and out of its bounds, in a command that works.

    `most`: of an entry's wrong values so many are drawn, the same ones each time.
    """
    make_networks(folder)
    chosen = random.Random(0)
    log = folder / "settings" / "log"
    most = most if full else 2
    for name, entry in ENTRIES.items() if full else [("flips", ENTRIES["flips"])]:
        base = [*roots(folder, "weights"), *TINY, *RUNS[name], f"hydra.run.dir={folder}/hydra"]
        if (verdict := judge([name, *base], log)) != "accepted":
            yield Case(name, "nothing wrong", verdict)
            continue
        found = compose_all(str(CONFIG_DIR), entry.config, base)
        known = fields(resolve_name(entry.settings), to_dict(found.cfg))
        cases = [(path, f"{path}={value}") for path, field in known for value in wrong_values(field)]
        cases += [(f"{path}.nonsense", f"+{path}.nonsense=1") for path in ("engine", "dataset", "loader")]
        drawn = cases if most is None else chosen.sample(cases, min(most, len(cases)))
        place = name if len(drawn) == len(cases) else f"{name}, of {len(cases)}"
        for path, override in drawn:
            yield Case(place, override, judge([name, *base, override], log, path))
    left = [path.name for path in (folder / "weights").iterdir() if path.is_dir()]
    yield Case("what they leave", " ".join(left) or "nothing", "accepted" if left else "refused")
