"""What a config means: which settings exist, what is wrong with them, which run they are, what they construct."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePath
from typing import Any, NamedTuple

from hydra.utils import instantiate
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from recombine.core.builds import load_target, parameters_of
from recombine.core.errors import ConfigError
from recombine.core.labels import OWN_FOLDERS
from recombine.core.settings import VOLATILE, Settings, find_problems, to_dict

__all__ = [
    "VOLATILE",
    "RunId",
    "accepts",
    "build",
    "entry_name",
    "misplaced_roots",
    "register_resolvers",
    "run_folder",
    "run_id",
    "validate",
]


LATER = {"engine.sync_batchnorm": True, "engine.eval_precision": "fp32"}
"""Settings of later versions: where they have this value, a run is called as it was before there were any."""
LATER_OF = {"pretrain": {"method.batchnorm": "adapt"}}
"""The same of one entry."""


class RunId(NamedTuple):
    """The names a config gives its run."""

    run: str
    """Name of the run's directory: readable part, seed and hash of the resolved config."""
    group: str
    """The same without the seed."""
    digest: str
    """Eight hexadecimal digits."""


def entry_name(recipe: str) -> str:
    """`recombine.flips.recipe` is the entry `flips`; `recombine.transfer.multi_teacher` is `multi_teacher`."""
    *_, package, module = f".{recipe}".split(".")
    return package if module == "recipe" and package else module


def register_resolvers() -> None:
    """Make resolvers known.

    `${basename:a,b}`: the last part of the path a/b.
    `${join:...}`: the names of a list of models, joined by hyphens. `${first:a,b}`: the first that is not empty.
    `${either:a,b,c}`: b if a is something, else c.
    """
    OmegaConf.register_new_resolver("first", lambda *values: next(filter(None, values), ""), replace=True)
    OmegaConf.register_new_resolver("either", lambda given, yes, no: yes if given else no, replace=True)
    OmegaConf.register_new_resolver("basename", lambda *parts: Path(*map(str, parts)).absolute().name, replace=True)
    OmegaConf.register_new_resolver("join", _join, replace=True)


def _join(items: Iterable[Any] | str) -> str:
    items = [items] if isinstance(items, str) or not isinstance(items, Iterable | ListConfig) else list(items)
    names = [PurePath(str(item["name"] if isinstance(item, DictConfig | dict) else item)).stem for item in items]
    return "-".join(names[:3]) + (f"-and-{len(names) - 3}-more" if len(names) > 3 else "")


def run_id(cfg: DictConfig, entry: str) -> RunId:
    """Name the run of `cfg`: the same for a single run, a multirun job, `compose()` and every rank."""
    raw: Any = OmegaConf.to_container(cfg, resolve=False)
    for key in VOLATILE:
        *parents, last = key.split(".")
        node = functools.reduce(lambda node, part: node.get(part) or {}, parents, raw)
        if isinstance(node, dict) and not isinstance(node.get(last, {}), dict):
            # A placeholder and not a gap: other settings may be built from it by interpolation.
            node[last] = f"<{key}>"
    for key, value in {**LATER, **LATER_OF.get(entry, {})}.items():
        *parents, last = key.split(".")
        node = functools.reduce(lambda node, part: node.get(part) or {}, parents, raw)
        if node.get(last) == value:
            del node[last]
    stable: DictConfig = OmegaConf.create(raw)
    # Sub-tree by sub-tree, as `name` may use resolvers that only exist inside a Hydra job.
    tree = {str(key): _resolved(stable, str(key)) for key in stable if key not in VOLATILE}
    if _own_images(tree):
        tree["data_root"] = os.path.abspath(str(cfg.data_root))
    readable = re.sub(r"[^a-z0-9._]+", "-", str(cfg.get("name") or entry).lower()).strip("-.")[:80]
    digest = _digest({"entry": entry, **tree})
    unseeded = _digest({"entry": entry, **{key: value for key, value in tree.items() if key != "seed"}})
    return RunId(f"{readable}-s{cfg.seed}-{digest}", f"{readable}-{unseeded}", digest)


def run_folder(entry: str, cfg: DictConfig) -> Path:
    """Where the run of `cfg` is."""
    return Path(cfg.output_root) / entry / run_id(cfg, entry).run


def _own_images(tree: Mapping[str, Any]) -> bool:
    """Whether a data set is a folder of images, which only its place distinguishes from another one."""
    nodes = [tree.get("dataset"), tree.get("source_data"), *(tree.get("tasks") or []), *(tree.get("sources") or [])]
    named = [node if isinstance(node, Mapping) else {"name": node} for node in nodes]
    keys = ("source", "dataset", "name")
    return any(node.get(key) in OWN_FOLDERS for node in named for key in keys)


def _resolved(cfg: DictConfig, key: str) -> Any:
    value = cfg[key]
    return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value


def _digest(tree: Any) -> str:
    def canonical(value: Any) -> Any:
        if isinstance(value, dict):
            return {str(key): canonical(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [canonical(item) for item in value]
        return int(value) if isinstance(value, float) and value.is_integer() else value

    text = json.dumps(canonical(tree), sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def unresolved(cfg: DictConfig) -> list[str]:
    """Settings of a config that have no value: none was given, or an interpolation leads nowhere."""
    problems = []

    def visit(node: Any, prefix: str) -> None:
        keys: Iterable[Any] = node if isinstance(node, DictConfig) else range(len(node))
        for key in keys:
            path = f"{prefix}{key!s}"
            if OmegaConf.is_missing(node, key):
                problems.append(f"{path}: a value is needed; give {path}=...")
                continue
            try:
                value = node[key]
            except OmegaConfBaseException as error:
                problems.append(f"{path}: cannot be resolved ({str(error).splitlines()[0]})")
            else:
                if OmegaConf.is_config(value) and not OmegaConf.is_interpolation(node, key):
                    visit(value, f"{path}.")

    visit(cfg, "")
    return problems


def validate(cfg: DictConfig, schema: type[Settings], *, rules: bool = True) -> list[str]:
    """Everything wrong with a config: gaps, unknown settings, wrong values, by `rules` what does not fit."""
    problems = unresolved(cfg)
    if problems:
        return problems
    node = {key: value for key, value in to_dict(cfg).items() if key != "hydra"}
    return find_problems(schema, node, rules=rules) + misplaced_roots(node)


def misplaced_roots(node: Mapping[str, Any]) -> list[str]:
    """Folders that cannot be folders, as something else has their name; one message each."""
    roots = {
        key: Path(str(node[key])) for key in ("data_root", "weights_root", "cache_root", "output_root") if key in node
    }
    home = [
        f"{key}={path}: ~ means your home in a command only; give {key}={path.expanduser()}"
        for key, path in roots.items()
        if path.parts[:1] == ("~",)
    ]
    empty = [f"{key}=: a folder is needed; {key}=. is the one where you are" for key in roots if node[key] == ""]
    odd = [
        f"{key}={path}: a folder is needed, and {place} is a file; give {key}=<folder>"
        for key, path in roots.items()
        for place in (path, *path.parents)
        if os.path.exists(place) and not os.path.isdir(place)
    ]
    return home + empty + odd


def accepts(node: DictConfig, name: str) -> bool:
    """Whether the constructor that `node` names takes an argument `name`."""
    try:
        known = parameters_of(load_target("", node.get("_target_", "")))
    except ConfigError:
        return False
    return known is None or name in known


def build(node: DictConfig | dict, **late: Any) -> Any:
    """Construct what `node` names by `_target_`, with its settings and the `late` arguments that no file can hold.

    A node with `_partial_: true` gives a callable that waits for its remaining arguments.
    Raises ConfigError for a target that does not exist and for settings that it does not take.
    """
    node = node if isinstance(node, DictConfig) else OmegaConf.create(node)
    load_target("config", node["_target_"])
    # Late arguments stay outside Hydra, which would copy tensors and modules into its own containers.
    construct = instantiate(node, _partial_=True, _convert_="all")
    return functools.partial(construct, **late) if node.get("_partial_") else construct(**late)


register_resolvers()
