"""Checkpoint files: read without running code, loaded strictly, and written so that they describe themselves."""

from __future__ import annotations

import argparse
import logging
import pickle
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path, PosixPath
from typing import Any

import numpy as np
import torch
from numpy._core import multiarray
from torch import Tensor, nn

from recombine.core.errors import ConfigError, DamagedError
from recombine.core.files import read_tensors
from recombine.core.inputs import record_file
from recombine.models.model import Model, find_head
from recombine.models.serialization import describe_damage, write_artifact

__all__ = ["choose", "load", "read", "save", "stored_classes"]

log = logging.getLogger(__name__)

HARMLESS: list[Any] = [argparse.Namespace, PosixPath, np.dtype, np.ndarray, multiarray.scalar, multiarray._reconstruct]
HARMLESS += [type(np.dtype(code)) for code in "?bhilqBHILQefd"]
HARMLESS += [(each, f"numpy.core.multiarray.{each.__name__}") for each in (multiarray.scalar, multiarray._reconstruct)]
"""What trainers put beside weights and what cannot do harm when it is read: settings, numbers of NumPy."""
AVERAGED = re.compile(r"(^|[._])(ema|averaged?)([._]|$)")
"""Names of an average of weights over the training."""


def read(path: Path) -> dict[str, Tensor]:
    """All tensors of a safetensors or torch file on the CPU; of nested ones, names joined by dots.

    ConfigError if it is unreadable or would run code.
    """
    record_file("weights", path)
    try:
        if path.suffix == ".safetensors":
            return read_tensors(path, needs_digest=False)[0]
        with torch.serialization.safe_globals(HARMLESS):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, OSError, RuntimeError, EOFError, DamagedError) as error:
        raise ConfigError(f"{path} {describe_damage(path, str(error))}") from error
    tensors = dict(_tensors(content, ""))
    if not tensors:
        raise ConfigError(f"{path} holds no tensors by name; expected a state_dict, alone or beside other things")
    return tensors


def _tensors(content: Any, prefix: str) -> Iterator[tuple[str, Tensor]]:
    for key, value in content.items() if isinstance(content, Mapping) else ():
        if isinstance(value, Tensor):
            yield f"{prefix}{key}", value
        else:
            yield from _tensors(value, f"{prefix}{key}.")


def choose(state: Mapping[str, Tensor], net: nn.Module, use_ema: bool | None = None) -> tuple[str, dict[str, Tensor]]:
    """The prefix behind which a network's tensors stand in a file, and these tensors by their own names.

    Of weights and their average over the training, the average, unless `use_ema` is false. ConfigError if there are
    several of either, or no average where `use_ema` is true.
    """
    expected = {key for key in net.state_dict() if not key.endswith("num_batches_tracked")}
    counts = Counter(key.removesuffix(name) for key in state for name in _endings(key) if name in expected)
    best = max([len(expected) // 2 + 1, *counts.values()])  # less than half of the tensors are no network of this form
    whole = sorted(prefix for prefix, count in counts.items() if count == best)
    averaged = [prefix for prefix in whole if AVERAGED.search(prefix)]
    plain = [prefix for prefix in whole if prefix not in averaged]
    if use_ema and not averaged:
        raise ConfigError("holds no average of weights: model.use_ema=null takes the weights it has")
    chosen = averaged if averaged and use_ema is not False else plain or averaged
    if len(chosen) > 1 and "" not in chosen:
        names = ", ".join(prefix.rstrip(".") for prefix in chosen)
        raise ConfigError(f"holds {len(chosen)} networks of this form ({names}); store the one that is meant alone")
    prefix = "" if "" in chosen or not chosen else chosen[0]
    return prefix, {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}


def _choose(
    state: Mapping[str, Tensor], net: nn.Module, path: Path, use_ema: bool | None = None
) -> tuple[str, dict[str, Tensor]]:
    try:
        return choose(state, net, use_ema)
    except ConfigError as error:
        raise ConfigError(f"{path} {error}") from error


def _endings(key: str) -> Iterator[str]:
    """`a.b.c`, `b.c`, `c`."""
    parts = key.split(".")
    return (".".join(parts[first:]) for first in range(len(parts)))


def load(net: nn.Module, path: Path, use_ema: bool | None = None) -> str:
    """Copy a checkpoint's tensors into `net`, in place; says which of its weights, if it holds several.

    ConfigError names every kind of disagreement, and weights that are no numbers.
    """
    left_out = getattr(net, "left_out", ())
    everything = {key: value for key, value in read(path).items() if not key.startswith(left_out)}
    expected = net.state_dict()
    prefix, state = _choose(everything, net, path, use_ema)
    missing = [k for k in expected if k not in state and not k.endswith("num_batches_tracked")]
    unexpected = [k for k in state if k not in expected]
    shapes = [
        f"{k} (file {tuple(state[k].shape)}, network {tuple(expected[k].shape)})"
        for k in expected
        if k in state and state[k].shape != expected[k].shape
    ]
    lists = {"missing in the file": missing, "unexpected in the file": unexpected, "of another shape": shapes}
    report = [f"{len(v)} {what}: {', '.join(v[:5])}{', ...' if len(v) > 5 else ''}" for what, v in lists.items() if v]
    if report:
        behind = f" (what stands behind '{prefix}' was compared)" if prefix else ""
        raise ConfigError(
            f"{path} does not fit the network {type(net).__name__}{behind}: {'; '.join(report)}. "
            f"Check model.architecture, its options and model.classes"
        )
    odd = [k for k, v in state.items() if v.is_floating_point() and not torch.isfinite(v).all()]
    if odd:
        more = ", ..." if len(odd) > 5 else ""
        raise ConfigError(f"{path} holds values that are no numbers (NaN or infinite) in {', '.join(odd[:5])}{more}")
    net.load_state_dict(state, strict=True)
    if len(everything) == len(state):
        return ""
    log.info("%s: the weights behind '%s' are taken", path.name, prefix)
    return "ema" if AVERAGED.search(prefix) else ""


def stored_classes(net: nn.Module, classes: int, path: Path) -> int:
    """Outputs of the classifier in a file, for a network built like it with `classes` outputs."""
    _, state = _choose(read(path), net, path)
    weight = state.get(f"{find_head(net, classes)}.weight")
    return classes if weight is None else len(weight)


def save(model: Model, path: str | Path, card: dict[str, Any]) -> Path:
    """Write `model` as safetensors, keys as in its bare network, with its description and `card` as JSON metadata.

    `build(path)` restores it; plain timm or torchvision reads it with `net.load_state_dict(load_file(path))`.
    The file appears whole or not at all.
    """
    about = {"model": model.description(), **card}
    return write_artifact(path, "student", about, model.net.state_dict())
