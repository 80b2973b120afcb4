"""The settings of a clone (`method` node), and the procedure of section 5.6: localize, insert everywhere, choose."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from src.core.engine import Fit
from src.core.errors import ConfigError
from src.models.channels import channel_groups
from src.pnc.branch import ADAPTERS, HEADS, Branch, Position, linear_head, positions
from src.pnc.candidates import Candidates
from src.pnc.masks import set_keep
from src.pnc.measures import percent
from src.pnc.neighbourhood import Neighbourhood
from src.pnc.surrogates import Surrogates
from src.pnc.training import Insertion, Localization
from src.pnc.workbench import Workbench

__all__ = ["Cloning", "candidates", "choose", "head_of", "insert", "localize"]

MASKS = ("learned", "ones", "random", "magnitude")
SURROGATES = ("lime", "direct")
LAST = "last"
CHOICE = {"mask": MASKS, "surrogate": SURROGATES, "adapter": ADAPTERS, "head": tuple(HEADS)}


@dataclass(frozen=True)
class Cloning:
    """What is learned and how; none of these numbers is stated by the paper's text that was at hand (section 5.8)."""

    name: str = "pnc"
    keep_ratio: float = 0.5
    """Share of the filters of each maskable layer that stays."""
    anneal: bool = True
    mask: str = "learned"
    """learned, ones (the whole source), random, or magnitude (L1 norm of the filters); the last three skip stage 1."""
    surrogate: str = "lime"
    """lime: local linear models of the source; direct: the source itself."""
    joint: bool = True
    """Whether insertion refines the masks."""
    loc_weight: float = 0.1
    keep_weight: float = 1.0
    """Of T^2 KL to the target on its own samples; only a head of kind full can change its logits."""
    temperature: float = 2.0
    adapter: str = "conv1x1_bn"
    head: str | None = None
    """null: rows, and concat where no images of the target's own classes train the clone (section 5.5)."""
    positions: Sequence[int] | str | None = None
    """Candidates R; last: the last one with filters of the source above it (R = L - 1, no search); null: all."""
    localize_epochs: float = 10
    insert_epochs: float = 10
    min_steps: int = 300
    """Updates of each stage at least, however few images there are."""
    score_lr: float = 0.02

    def __post_init__(self) -> None:
        if problems := self.problems(**vars(self)):
            raise ConfigError(problems)

    @staticmethod
    def problems(**options: Any) -> list[str]:
        """What is wrong with the options, one message each."""
        found = [
            f"method.{key}={options[key]}: one of {', '.join(allowed)} is needed"
            for key, allowed in CHOICE.items()
            if options.get(key, allowed[0]) not in allowed and not (key == "head" and options[key] is None)
        ]
        places = options.get("positions")
        if isinstance(places, str) and places != LAST:
            found.append(f"method.positions={places}: a list such as [3,4], {LAST}, or null for all")
        ratio = options.get("keep_ratio", 0.5)
        if not isinstance(ratio, int | float) or isinstance(ratio, bool) or not 0 < ratio <= 1:
            found.append(f"method.keep_ratio={ratio}: above 0 and at most 1, such as method.keep_ratio=0.5")
        for key in ("localize_epochs", "insert_epochs", "score_lr", "loc_weight", "keep_weight", "min_steps"):
            value = options.get(key, 1)
            if not isinstance(value, int | float) or isinstance(value, bool) or value < 0:
                found.append(f"method.{key}={value}: a number of at least 0 is needed")
        warm = options.get("temperature", 2.0)
        if not isinstance(warm, int | float) or isinstance(warm, bool) or warm <= 0:
            found.append(f"method.temperature={warm}: a number above 0 is needed, such as method.temperature=2")
        return found


def head_of(given: str | None, use_original: bool) -> str:
    """The kind of head: the one given, else what suits the data (section 5.5)."""
    return given or ("rows" if use_original else "concat")


def candidates(bench: Workbench, method: Cloning) -> Candidates:
    """A branch at each candidate position, drawn from the run's seed."""
    target, source = bench.traced
    there = positions(target, source)
    if method.positions == LAST:
        there = [position for position in there if channel_groups(source, after=position.source.node)][-1:] or there
    elif method.positions is not None:
        known = {position.number: position for position in there}
        if wrong := sorted(set(method.positions) - set(known)):
            raise ConfigError(f"method.positions={list(method.positions)}: {wrong} are none; there are {sorted(known)}")
        there = tuple(known[number] for number in sorted(set(method.positions)))
    own = linear_head(target)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(bench.run.seed)
        made = [_branch(bench, method, position, own) for position in there]
    return Candidates(bench.target, bench.source, bench.traced, made).to(bench.run.device)


def _branch(bench: Workbench, method: Cloning, position: Position, own: nn.Linear) -> Branch:
    head = head_of(method.head, bench.cfg.use_original)
    branch = Branch(position, bench.traced[1], bench.outputs, own, adapter=method.adapter, head=head)
    for group, gate in zip(branch.groups, branch.gates, strict=True):
        if method.mask == "random":
            gate.scores.data.uniform_()
        if method.mask == "magnitude":
            gate.scores.data.copy_(bench.source.net.get_submodule(group.name).weight.detach().flatten(1).abs().mean(1))
    set_keep(branch.gates, 1.0 if method.mask in ("learned", "ones") else method.keep_ratio)
    return branch


def localize(bench: Workbench, method: Cloning, net: Candidates, near: Neighbourhood) -> Surrogates | None:
    """Stage 1: learn the masks of all positions at once (eq. 6); the local models, for the second stage."""
    surrogates = None
    if method.surrogate == "lime" and (method.mask == "learned"):
        every = bench.clone_loader(bench.cfg.eval_batch_size, train=False)
        precision = bench.cfg.engine.precision
        surrogates = Surrogates.fit(bench.source, every, bench.outputs, near, bench.run.seed, precision=precision)
    if method.mask != "learned" or not any(len(branch.gates) for branch in net.branches):
        return surrogates
    loader = bench.clone_loader(bench.cfg.batch_size)
    loader = bench.long_enough(loader, method.localize_epochs, method.min_steps)
    steps = math.ceil(method.localize_epochs * len(loader))
    options = {"seed": bench.run.seed, "score_lr": method.score_lr, "steps": steps}
    options |= {"keep_ratio": method.keep_ratio, "anneal": method.anneal}
    bench.fit(Localization(net, near, surrogates, **options), loader, "localize", method.localize_epochs)
    set_keep([gate for branch in net.branches for gate in branch.gates], method.keep_ratio)
    return surrogates


def insert(
    bench: Workbench, method: Cloning, net: Candidates, near: Neighbourhood, surrogates: Surrogates | None
) -> Fit:
    """Stage 2: learn adapters and heads of all positions, refining the masks if they were learned (eq. 9)."""
    loader, originals = bench.joint_loader(bench.cfg.batch_size)
    loader = bench.long_enough(loader, method.insert_epochs, method.min_steps)
    weight = method.loc_weight if method.joint and method.mask == "learned" else 0.0
    options = {"seed": bench.run.seed, "score_lr": method.score_lr, "originals": originals, "loc_weight": weight}
    options |= {"keep_weight": method.keep_weight, "temperature": method.temperature}
    return bench.fit(Insertion(net, near, surrogates, **options), loader, "insert", method.insert_epochs)


class _Flat(nn.Module):
    """Logits [B, P, C] of all candidates as [B, P C], one pass for all."""

    def __init__(self, net: Candidates) -> None:
        super().__init__()
        self.net = net

    def forward(self, images: Tensor) -> Tensor:
        return self.net(images).flatten(1)


def choose(bench: Workbench, net: Candidates) -> tuple[int, dict[str, list[float]]]:
    """Which branch is best by the mean of old and new accuracy on images kept for choices (eq. 8); all their scores."""
    said = bench.said(_Flat(net), "select")
    own, new = (each._replace(logits=each.logits.unflatten(1, (len(net.branches), -1))) for each in said)
    curve: dict[str, list[float]] = {"position": [branch.position.number for branch in net.branches]}
    for name, said in (("original", own), ("cloned", new)):
        right = said.logits.argmax(2) == said.labels[:, None]
        curve[name] = [percent(column) for column in right.unbind(1)]
    curve["average"] = [(a + b) / 2 for a, b in zip(curve["original"], curve["cloned"], strict=True)]
    return max(range(len(net.branches)), key=lambda k: (curve["average"][k], k)), curve
