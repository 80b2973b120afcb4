"""What is wrong with a transfer's config, all of it at once and before any network is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from recombine import models as zoo
from recombine.core.errors import ConfigError
from recombine.models import Model
from recombine.models.libraries import library_classes
from recombine.models.model import Preprocess
from recombine.models.registry import training_hint
from recombine.models.resolve import locate
from recombine.run.config import accepts
from recombine.transfer.contrastive import ContrastiveSamples
from recombine.transfer.method import Transfer
from recombine.transfer.training import LR_SCALING, make_method

if TYPE_CHECKING:
    from omegaconf import DictConfig

__all__ = ["list_problems", "method_problems", "name_of", "network_problems", "option_problems", "same"]

CHOICES = {"lr_scaling": tuple(LR_SCALING), "teacher_preprocessing": ("own", "student")}
NUMBERS = {"lr_factor": 1.0, "cache_limit_gib": 4.0}
FLAGS = ("fit_heads", "cache_teacher_logits", "legacy_class_count")


def name_of(node: Any) -> str:
    """The name of a network that a config gives by name or as a node."""
    return node if isinstance(node, str) else node["name"]


def same(student: str, teacher: str) -> str:
    """The message for a teacher that is its student."""
    return (
        f"teacher and student are the same network ({teacher} and {student}): nothing can be transferred; choose "
        f"another teacher, or method=self_dist, in which the student teaches itself"
    )


def option_problems(cfg: DictConfig) -> list[str]:
    """Wrong values of the options that all transfer entries have."""
    problems = [f"{k}={cfg[k]}: one of {', '.join(v)} is needed" for k, v in CHOICES.items() if cfg[k] not in v]
    problems += [f"{key}={cfg[key]}: true or false is needed" for key in FLAGS if not isinstance(cfg[key], bool)]
    for key, example in NUMBERS.items():
        if type(cfg[key]) not in (int, float) or not cfg[key] >= 0:
            problems.append(f"{key}={cfg[key]}: a number of at least 0 is needed, such as {key}={example}")
    return problems


def method_problems(cfg: DictConfig, teachers: int = 1, *, frozen: bool = False) -> list[str]:
    """What keeps the method from working with so many teachers at once.

    `frozen`: it must learn from teachers that stay as they are. Its constructor is asked, with networks of one layer.
    """
    if not accepts(cfg.method, "net") or not accepts(cfg.method, "name"):
        return [f"method._target_={cfg.method.get('_target_')} is no transfer method; method=kl_dp is one"]
    try:
        method = _rehearsed(cfg, teachers)
    except (ConfigError, TypeError) as error:
        return error.problems if isinstance(error, ConfigError) else [f"method cannot be built: {error}"]
    if frozen and not hasattr(method, "teachers"):
        return [
            f"method={cfg.method.name} learns from no frozen teachers, so several cannot be combined; choose one that "
            "does, such as method=kl_dp, or main_transfer.py"
        ]
    return []


def _rehearsed(cfg: DictConfig, teachers: int) -> Transfer:
    """The method around networks of one layer and two samples; random numbers stay as they were."""

    def tiny() -> Model:
        net = nn.Sequential(nn.Flatten(), nn.Linear(3, 2))
        return Model(net, Preprocess(1, [0.0] * 3, [1.0] * 3), name="tiny", classes=2, architecture="")

    with torch.random.fork_rng(devices=[]):
        return make_method(
            cfg, tiny(), [tiny() for _ in range(teachers)], lambda: ContrastiveSamples(*[torch.arange(2)] * 2)
        )


def list_problems(option: str, given: Any, least: int) -> list[str]:
    """What is wrong with a setting that lists networks by name or node, each once."""
    known = not isinstance(given, str) and isinstance(given, Sequence)
    named = known and all(isinstance(node, str) or (hasattr(node, "get") and node.get("name")) for node in given)
    if not named or len(given) < least:
        many = "networks" if least == 1 else f"at least {('no', 'one', 'two')[least]} networks"
        return [f"{option}={given}: a list of {many} is needed, such as '{option}=[resnet32,resnet56]'"]
    names = [name_of(node) for node in given]
    twice = [name for name in dict.fromkeys(names) if names.count(name) > 1]
    return [f"{option}: {name} is named twice; name each network once" for name in twice]


def network_problems(cfg: DictConfig, nodes: dict[str, Any]) -> list[str]:
    """What is wrong with the networks by role, and whether their numbers of classes differ, as far as names tell."""
    problems, counts = [], {}
    for role, node in nodes.items():
        found = zoo.check(node, weights_root=cfg.weights_root, frozen=True)
        hint = training_hint(str(name_of(node)), cfg.weights_root)
        problems += [f"{role}: {text.replace('model.', f'{role}.')}{hint}" for text in found]
        if not found:
            spec, _ = locate(node, Path(cfg.weights_root))
            counts[role] = spec.classes or library_classes(spec.architecture)
    known = {role: count for role, count in counts.items() if count}
    if len(set(known.values())) > 1 and not cfg.fit_heads:
        listed = ", ".join(f"{role} {count}" for role, count in known.items())
        problems.append(
            f"the networks have different numbers of classes: {listed}; choose networks of the same "
            "classes, or let new classifiers be fitted to the data first with fit_heads=true"
        )
    return problems
