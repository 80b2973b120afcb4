"""Checkpoint files: read without running code, loaded strictly, and written so that they describe themselves."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from recombine.core.errors import ConfigError, DamagedError
from recombine.core.files import read_tensors
from recombine.core.inputs import record_file
from recombine.models.artifact import write_artifact
from recombine.models.model import Model

__all__ = ["load", "read", "save"]

WRAPPERS = ("state_dict", "model", "model_state_dict", "net")
PREFIXES = ("module.", "_orig_mod.", "model.", "net.")


def read(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors or torch file by name, on the CPU; ConfigError if it is unreadable or runs code."""
    record_file("weights", path)
    try:
        if path.suffix == ".safetensors":
            return read_tensors(path, needs_digest=False)[0]
        state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ConfigError(
            f"{path} is no torch file of tensors (it is damaged, or holds Python objects, which would run its code); "
            f"store its state_dict as safetensors and name that file"
        ) from error
    except (OSError, RuntimeError, EOFError, DamagedError) as error:
        raise ConfigError(f"{path} cannot be read as a checkpoint: {error}") from error
    while isinstance(state, dict) and (key := next((k for k in WRAPPERS if isinstance(state.get(k), dict)), None)):
        state = state[key]
    tensors = {k: v for k, v in state.items() if isinstance(v, Tensor)} if isinstance(state, dict) else {}
    if not tensors:
        raise ConfigError(
            f"{path} holds no tensors by name; expected a state_dict, alone or under {', '.join(WRAPPERS)}"
        )
    return tensors


def load(net: nn.Module, path: Path) -> None:
    """Copy a checkpoint's tensors into `net`, in place; ConfigError names every kind of disagreement."""
    state, expected = read(path), net.state_dict()
    while prefix := next((p for p in PREFIXES if all(k.startswith(p) for k in state)), None):
        if all(k.startswith(prefix) for k in expected):
            break
        state = {k.removeprefix(prefix): v for k, v in state.items()}
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
        raise ConfigError(
            f"{path} does not fit the network {type(net).__name__}: {'; '.join(report)}. "
            f"Check model.architecture, its options and model.classes"
        )
    net.load_state_dict(state, strict=True)


def save(model: Model, path: str | Path, card: dict[str, Any]) -> Path:
    """Write `model` as safetensors, keys as in its bare network, with its description and `card` as JSON metadata.

    `build(path)` restores it; plain timm or torchvision reads it with `net.load_state_dict(load_file(path))`.
    The file appears whole or not at all.
    """
    about = {"model": model.description(), **card}
    return write_artifact(path, "student", about, model.net.state_dict())
