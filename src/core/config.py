"""What a config means: which settings exist, what is wrong with them, which run they are, what they construct."""

from __future__ import annotations

import difflib
import functools
import hashlib
import inspect
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from importlib import import_module
from pathlib import PurePath
from typing import Any, NamedTuple

from hydra.utils import instantiate
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from src.core.errors import ConfigError
from src.core.help import groups

__all__ = [
    "VOLATILE",
    "Identity",
    "accepts",
    "build",
    "did_you_mean",
    "identify",
    "plain",
    "register_resolvers",
    "validate",
]

BUILDABLE = ("src.", "torch.optim.", "torch.nn.")
"""Only these can be named by `_target_`, so that a config file cannot run anything else."""

VOLATILE = (
    *("output_root", "cache_root", "data_root", "weights_root", "device", "name", "wandb", "loader.workers"),
    *("engine.resume", "engine.log_every", "engine.save_every_minutes", "engine.save_every_steps"),
)
"""Settings that may differ between two executions of the same run: where files lie, what the machine is, what is
logged and saved how often. Everything else is part of the run's identity (the data and weights themselves are
identified by digests in its provenance, so two users with other folders get the same run name). Somebody's own images
(dataset=folder) have no other name than their place, which then counts too."""


@dataclass
class Shared:
    """The settings every entry has, with the types they must have."""

    name: str
    data_root: str
    weights_root: str
    cache_root: str
    output_root: str
    seed: int
    device: str
    batch_size: int
    eval_batch_size: int


class Identity(NamedTuple):
    """The names a config gives its run."""

    run: str
    """Name of the run's directory: readable part, seed and hash of the resolved config."""
    group: str
    """The same without the seed."""
    digest: str
    """Eight hexadecimal digits."""


def register_resolvers() -> None:
    """Make resolvers known.

    `${join:...}`: the names of a list of models, joined by hyphens. `${first:a,b}`: the first that is not empty.
    `${groups:}`: for --help.
    """
    OmegaConf.register_new_resolver("first", lambda *values: next(filter(None, values), ""), replace=True)
    OmegaConf.register_new_resolver("join", _join, replace=True)
    OmegaConf.register_new_resolver("groups", groups, replace=True)


def _join(items: Iterable[Any] | str) -> str:
    items = [items] if isinstance(items, str) or not isinstance(items, Iterable | ListConfig) else list(items)
    names = [PurePath(str(item["name"] if isinstance(item, DictConfig | dict) else item)).stem for item in items]
    return "-".join(names[:3]) + (f"-and-{len(names) - 3}-more" if len(names) > 3 else "")


def plain(cfg: DictConfig) -> dict[str, Any]:
    """The resolved config as plain dictionaries and lists."""
    return OmegaConf.to_container(cfg, resolve=True)


def did_you_mean(given: str, known: Iterable[str], *, show: int = 12) -> str:
    """The end of a message about an unknown name: the nearest known ones, or the list of all if none is near."""
    known = sorted(known)
    near = difflib.get_close_matches(given, known, n=3, cutoff=0.6)
    if near:
        return "did you mean " + " or ".join(f"'{name}'" for name in near) + "?"
    more = f", ... ({len(known)} in all)" if len(known) > show else ""
    return f"known are: {', '.join(known[:show])}{more}" if known else "there are none"


def identify(cfg: DictConfig, entry: str) -> Identity:
    """Name the run of `cfg`: the same for a single run, a multirun job, `compose()` and every rank."""
    raw = OmegaConf.to_container(cfg, resolve=False)
    for key in VOLATILE:
        *parents, last = key.split(".")
        node = functools.reduce(lambda node, part: node.get(part) or {}, parents, raw)
        if isinstance(node, dict) and not isinstance(node.get(last, {}), dict):
            # A placeholder and not a gap: other settings may be built from it by interpolation.
            node[last] = f"<{key}>"
    stable = OmegaConf.create(raw)
    # Sub-tree by sub-tree, as `name` may use resolvers that only exist inside a Hydra job.
    tree = {str(key): _resolved(stable, str(key)) for key in stable if key not in VOLATILE}
    if _own_images(tree):
        tree["data_root"] = os.path.abspath(str(cfg.data_root))
    readable = re.sub(r"[^a-z0-9._]+", "-", str(cfg.get("name") or entry).lower()).strip("-.")[:80]
    digest = _digest({"entry": entry, **tree})
    unseeded = _digest({"entry": entry, **{key: value for key, value in tree.items() if key != "seed"}})
    return Identity(f"{readable}-s{cfg.seed}-{digest}", f"{readable}-{unseeded}", digest)


def _own_images(tree: Mapping[str, Any]) -> bool:
    """Whether a data set is somebody's own folder, which nothing tells from another one but its place."""
    nodes = [tree.get("dataset"), tree.get("source_data"), *(tree.get("tasks") or []), *(tree.get("sources") or [])]
    named = [node if isinstance(node, Mapping) else {"name": node} for node in nodes]
    return any("folder" in (node.get("source"), node.get("dataset"), node.get("name")) for node in named)


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


def validate(cfg: DictConfig) -> list[str]:
    """Everything wrong with a resolvable config that can be told without opening data or weights."""
    problems = _ill_typed({key: cfg[key] for key in cfg if key in Shared.__dataclass_fields__})
    for key in ("batch_size", "eval_batch_size"):
        if isinstance(cfg.get(key), int) and cfg[key] < 1:
            problems.append(f"{key}={cfg[key]}: at least 1 is needed")
    device = str(cfg.get("device", "auto"))
    if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", device):
        problems.append(f"device={device}: one of auto, cpu, cuda, cuda:<number>, mps is needed")
    if OmegaConf.is_dict(cfg.get("engine")):
        problems += _ill_engine(cfg.engine)
    return problems + [problem for path, node in _targets(cfg) for problem in _misfits(path, node)]


def unresolved(cfg: DictConfig) -> list[str]:
    """Settings of a config that have no value: none was given, or an interpolation leads nowhere."""
    problems = []

    def visit(node: DictConfig | ListConfig, prefix: str) -> None:
        for key in node if isinstance(node, DictConfig) else range(len(node)):
            path = f"{prefix}{key}"
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


def _ill_typed(given: dict[str, Any]) -> list[str]:
    problems = []
    for key in given:
        try:
            OmegaConf.merge(OmegaConf.structured(Shared), {key: given[key]})
        except OmegaConfBaseException:
            problems.append(f"{key}={given[key]}: {Shared.__annotations__[key]} is needed")
    return problems


def _ill_engine(given: DictConfig) -> list[str]:
    # Imported here, as torch takes a second that a look at --help should not cost.
    schema = import_module("src.core.engine").EngineConfig
    known = [field.name for field in fields(schema)]
    problems = [f"unknown setting engine.{key}: {did_you_mean(str(key), known)}" for key in given if key not in known]
    try:
        schema(**{key: value for key, value in plain(given).items() if key in known})
    except ConfigError as error:
        problems += error.problems
    return problems


def _targets(cfg: Any, prefix: str = "") -> Iterator[tuple[str, DictConfig]]:
    if isinstance(cfg, DictConfig):
        if "_target_" in cfg:
            yield prefix, cfg
        for key in cfg:
            yield from _targets(cfg[key], f"{prefix}.{key}" if prefix else str(key))
    elif isinstance(cfg, ListConfig):
        for position, item in enumerate(cfg):
            yield from _targets(item, f"{prefix}.{position}")


def _constructor(path: str, target: str) -> Callable[..., Any]:
    if not str(target).startswith(BUILDABLE):
        raise ConfigError(f"{path}._target_={target}: only names below {', '.join(BUILDABLE)} can be constructed")
    # Hydra's get_object prints a traceback before it raises, and its message names no neighbours.
    module, _, name = str(target).rpartition(".")
    try:
        return getattr(import_module(module), name)
    except ImportError as error:
        raise ConfigError(f"{path}._target_={target}: {error}") from error
    except AttributeError as error:
        near = did_you_mean(name, [known for known in dir(import_module(module)) if not known.startswith("_")])
        raise ConfigError(f"{path}._target_={target}: {module} has no {name}; {near}") from error


def _parameters(path: str, node: DictConfig) -> set[str] | None:
    """Names that the constructor of `node` takes; None if it takes any.

    A class whose constructor ends with `**options` hands them on to its base, so it takes those of its base too.
    """
    constructor = _constructor(path, node["_target_"])
    known: set[str] = set()
    for each in getattr(constructor, "__mro__", (constructor, object))[:-1]:
        parameters = inspect.signature(each).parameters.values()
        known |= {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
        if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
            return known
    return None


def accepts(node: DictConfig, name: str) -> bool:
    """Whether the constructor that `node` names takes an argument `name`."""
    try:
        return "_target_" in node and name in (_parameters("", node) or ())
    except ConfigError:
        return False


def _misfits(path: str, node: DictConfig) -> list[str]:
    try:
        known = _parameters(path, node)
    except ConfigError as error:
        return error.problems
    given = [str(key) for key in node if not (str(key).startswith("_") and str(key).endswith("_"))]
    return [
        f"unknown setting {path}.{key}: {node['_target_']} does not take it; {did_you_mean(key, known)}"
        for key in given
        if known is not None and key not in known
    ]


def build(node: DictConfig | dict, **late: Any) -> Any:
    """Construct what `node` names by `_target_`, with its settings and the `late` arguments that no file can hold.

    A node with `_partial_: true` gives a callable that waits for its remaining arguments.
    Raises ConfigError for a target outside `src.`, `torch.optim.` and `torch.nn.`.
    """
    node = node if isinstance(node, DictConfig) else OmegaConf.create(node)
    for path, inner in _targets(node):
        _constructor(path or "config", inner["_target_"])
    # Late arguments stay outside Hydra, which would copy tensors and modules into its own containers.
    construct = instantiate(node, _partial_=True, _convert_="all")
    return functools.partial(construct, **late) if node.get("_partial_") else construct(**late)
