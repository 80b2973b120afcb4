"""Config nodes that construct something: a class or function by `_target_`, with its arguments."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from recombine.core.errors import ConfigError, did_you_mean
from recombine.core.inputs import record_file
from recombine.core.settings import NodeRule, Settings, find_problems, given_settings, schema_of

__all__ = ["Builds", "Node", "load_target", "parameters_of"]

OWN = ("recombine.", "torch.", "torchvision.", "timm.", "builtins")
"""Packages whose version is in the provenance; of code elsewhere the file is noted."""
Node = dict[str, Any]
"""A config node that constructs something: `_target_` and its arguments."""


@dataclass(frozen=True)
class Builds(NodeRule):
    """What the node of a field must construct: `method: Annotated[Node, Builds(...)]`.

    Targets of this package declare their settings in a subclass of `schema`; a class of somebody's own must be derived
    from `base`, and a function of somebody's own must take `parameters`.
    """

    what: str
    """In words: a transfer method."""
    example: str
    """An override that gives one: method=kl_dp."""
    schema: type[Settings] = Settings
    base: str = ""
    """package.module.Class."""
    parameters: tuple[str, ...] = ()
    late: tuple[str, ...] = ()
    """Arguments that no config can hold; the entry hands them over."""

    def problems(self, node: Mapping[str, Any], path: str) -> list[str]:
        """Everything wrong with the node at `path`."""
        target = str(node.get("_target_"))
        declared = schema_of(target)
        if declared is not None:
            if not issubclass(declared, self.schema):
                return [f"{path}._target_={target} is not {self.what}; {self.example} is one"]
            return find_problems(declared, node, path)
        try:
            made = load_target(path, target)
        except ConfigError as error:
            return error.problems
        if not self._fits(made):
            return [f"{path}._target_={target} is not {self.what}; {self.example} is one"]
        known, gaps = parameters_of(made), self._gaps(made, node)
        if gaps:
            told = f"{path}._target_={target} needs {', '.join(gaps)}, which nothing gives it here"
            return [f"{told}; set it as {path}.{gaps[0]}=..., or choose {self.example}"]
        return [
            f"unknown setting {path}.{key}: {target} does not take it; {did_you_mean(key, known - set(self.late))}"
            for key in given_settings(node)
            if known is not None and key not in known
        ]

    def _gaps(self, made: Any, node: Mapping[str, Any]) -> list[str]:
        """Arguments without a default that neither the node nor the entry gives."""
        if not self.late:
            return []
        there = {*given_settings(node), *self.late, *self.parameters}
        needed = (
            parameter.name
            for parameter in inspect.signature(made).parameters.values()
            if parameter.default is parameter.empty
            and parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
        )
        return [name for name in needed if name not in there]

    def _fits(self, made: Any) -> bool:
        if inspect.isclass(made):
            return bool(self.base) and issubclass(made, load_target("", self.base))
        known = parameters_of(made) if callable(made) and self.parameters else set()
        return bool(self.parameters) and (known is None or {*self.parameters} <= known)


def parameters_of(made: Callable[..., Any]) -> set[str] | None:
    """Names that a constructor or function takes; None if it takes any.

    A class whose constructor ends with `**options` hands them on to its base, so it takes those of its base too.
    """
    known: set[str] = set()
    for each in getattr(made, "__mro__", (made, object))[:-1]:
        parameters = inspect.signature(each).parameters.values()
        known |= {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
        if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
            return known
    return None


def load_target(path: str, name: str) -> Callable[..., Any]:
    """The class or function that `_target_` at `path` names; ConfigError if there is none."""
    module, _, attribute = str(name).rpartition(".")
    if not module:
        raise ConfigError(f"{path}._target_={name}: package.module.Class is needed")
    try:
        found = getattr(import_module(module), attribute)
        if not module.startswith(OWN):
            record_file("code", inspect.getsourcefile(import_module(module)) or "")
        return found
    except ImportError as error:
        raise ConfigError(f"{path}._target_={name}: {error}") from error
    except AttributeError as error:
        near = did_you_mean(attribute, [known for known in dir(import_module(module)) if not known.startswith("_")])
        raise ConfigError(f"{path}._target_={name}: {module} has no {attribute}; {near}") from error
