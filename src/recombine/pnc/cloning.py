"""The settings of a clone (`method` node), and the second stage: insertion at every position (section 5.6)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from recombine.core.errors import ConfigError
from recombine.engine.engine import Fit
from recombine.models.channels import channel_groups
from recombine.pnc.clone.adapters import ADAPTER_INITS, ADAPTERS, LeastSquares
from recombine.pnc.clone.branch import HEADS, Branch, linear_head
from recombine.pnc.clone.candidates import Candidates
from recombine.pnc.clone.masks import MASK_KINDS, SCOPES, one_budget, set_keep
from recombine.pnc.clone.positions import ALIGNMENTS, Position, positions
from recombine.pnc.local.neighbourhood import Neighbourhood
from recombine.pnc.local.surrogates import Local
from recombine.pnc.search import PositionSearch
from recombine.pnc.training import INSERT_LOSSES, Insertion
from recombine.pnc.workbench import Workbench

__all__ = ["Cloning", "candidates", "head_of", "insert"]

MASKS = ("learned", "ones", "random", "magnitude")
SURROGATES = ("lime", "direct")
LAST = "last"
STAGES = ("localize", "insert")
CHOICE = {"mask": MASKS, "mask_kind": tuple(MASK_KINDS), "scope": SCOPES, "surrogate": SURROGATES}
CHOICE |= {"adapter": ADAPTERS, "adapter_init": ADAPTER_INITS, "last_stage": STAGES, "align": ALIGNMENTS}
CHOICE |= {"head": (None, *HEADS), "insert_loss": (None, *INSERT_LOSSES)}
SWITCHES = ("anneal", "per_position", "use_complement", "bn_recalibrate", "joint")
ADAPTER_SAMPLES = 512
"""Images of cloned classes from which a least-squares adapter starts (section 5.3)."""


@dataclass(frozen=True)
class Cloning:
    """What is learned and how; none of these numbers is stated by the paper's text that was at hand (section 5.8)."""

    name: str = "pnc"
    keep_ratio: float = 0.5
    """Share of the filters of each maskable layer that stays."""
    anneal: bool = True
    mask: str = "learned"
    """learned, ones (the whole source), random, or magnitude (L1 norm of the filters); the last three skip stage 1."""
    mask_kind: str = "topk_ste"
    """How a mask is learned, see `MASK_KINDS`; every kind ends as the best filters of the budget."""
    scope: str = "layer"
    """Whether the budget holds for each layer, or (global) for all filters of a module together."""
    per_position: bool = True
    """Whether each position has a first stage of its own; else the largest module is localized and all take its scores.

    Positions are learned in one pass, but for that no position knows of another.
    """
    use_complement: bool = False
    """Whether the first stage looks at the source's other classes too: the second term of eq. (3), on the outputs of
    the cloned classes. Not its sign: the module is to be as silent about other classes as the source (section 4.2)."""
    bn_recalibrate: bool = False
    """Whether the module's BatchNorms get statistics of their own after the first stage, on images of cloned classes
    that came through the source's lower layers; the insertion learns with these."""
    surrogate: str = "lime"
    """lime: local linear models of the source; direct: the source itself."""
    joint: bool = True
    """Whether insertion refines the masks."""
    loc_weight: float = 0.1
    keep_weight: float = 1.0
    """Of T^2 KL to the target on its own samples; only a head of kind full can change its logits."""
    temperature: float = 2.0
    adapter: str = "conv1x1_bn"
    adapter_init: str = "identity"
    insert_loss: str | None = None
    """One of INSERT_LOSSES; null: xe with the target's own images, match without, as cross entropy alone would then
    give every image to the new classes (section 5.5)."""
    match_weight: float = 1.0
    """Of the source's logits where they are matched (lambda_f)."""
    head: str | None = None
    """null: rows, and concat where no images of the target's own classes train the clone (section 5.5)."""
    positions: Sequence[int] | str | None = None
    """Candidates R; last: the last one with filters of the source above it (R = L - 1, no search); null: all but 0,
    the image, which shares nothing."""
    align: str = "scale"
    """Where the source is entered, see `ALIGNMENTS`."""
    search: PositionSearch = field(default_factory=PositionSearch)
    localize_epochs: float = 10
    insert_epochs: float = 10
    min_steps: int = 300
    """Updates of each stage at least, however few images there are."""
    score_lr: float = 0.02
    last_stage: str = "insert"
    """localize: measure the module of every position by itself, and make no clone (section 9.2, T2)."""

    def __post_init__(self) -> None:
        if problems := self.problems(**vars(self)):
            raise ConfigError(problems)

    @staticmethod
    def problems(**options: Any) -> list[str]:
        """What is wrong with the options, one message each."""
        found = [
            f"method.{key}={options[key]}: one of {', '.join('null' if a is None else a for a in allowed)} is needed"
            for key, allowed in CHOICE.items()
            if options.get(key, allowed[0]) not in allowed
        ]
        places = options.get("positions")
        if isinstance(places, str) and places != LAST:
            found.append(f"method.positions={places}: a list such as [3,4], {LAST}, or null for all")
        ratio = options.get("keep_ratio", 0.5)
        if not isinstance(ratio, int | float) or isinstance(ratio, bool) or not 0 < ratio <= 1:
            found.append(f"method.keep_ratio={ratio}: above 0 and at most 1, such as method.keep_ratio=0.5")
        for key in (
            "localize_epochs",
            "insert_epochs",
            "score_lr",
            "loc_weight",
            "keep_weight",
            "match_weight",
            "min_steps",
        ):
            value = options.get(key, 1)
            if not isinstance(value, int | float) or isinstance(value, bool) or value < 0:
                found.append(f"method.{key}={value}: a number of at least 0 is needed")
        for key in SWITCHES:
            if not isinstance(options.get(key, True), bool):
                found.append(f"method.{key}={options[key]}: true or false")
        warm = options.get("temperature", 2.0)
        if not isinstance(warm, int | float) or isinstance(warm, bool) or warm <= 0:
            found.append(f"method.temperature={warm}: a number above 0 is needed, such as method.temperature=2")
        return found + _idle(options)


def _idle(options: dict[str, Any]) -> list[str]:
    """Options that would do nothing beside the others."""
    found = []
    if options.get("mask", "learned") != "learned":
        changed = {"mask_kind": "topk_ste", "per_position": True, "use_complement": False}
        found += [
            f"method.{key}={options[key]} needs method.mask=learned, but it is {options['mask']}"
            for key, usual in changed.items()
            if options.get(key, usual) != usual
        ]
    if options.get("adapter_init") == "lstsq" and options.get("adapter") == "none":
        found.append("method.adapter_init=lstsq: there is nothing to start with method.adapter=none")
    return found


def head_of(given: str | None, use_target_data: bool) -> str:
    """The kind of head: the one given, else what suits the data (section 5.5)."""
    return given or ("rows" if use_target_data else "concat")


def candidates(bench: Workbench, method: Cloning) -> Candidates:
    """A branch at each candidate position, drawn from the run's seed."""
    target, source = bench.traced
    there = positions(target, source, method.align)
    if method.positions == LAST:
        there = [position for position in there if channel_groups(source, after=position.source.node)][-1:] or there[1:]
    else:
        known = sorted({position.number for position in there})
        wanted = known[1:] if method.positions is None else method.positions
        if wrong := sorted(set(wanted) - set(known)):
            raise ConfigError(f"method.positions={list(wanted)}: {wrong} are none; there are {known}")
        there = [position for position in there if position.number in wanted]
    own = linear_head(target)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(bench.run.seed)
        made = [_branch(bench, method, position, own) for position in there]
    return Candidates(bench.target, bench.source, bench.traced, made).to(bench.run.device)


def _branch(bench: Workbench, method: Cloning, position: Position, own: nn.Linear) -> Branch:
    kinds = {"adapter": method.adapter, "head": head_of(method.head, bench.cfg.use_target_data)}
    branch = Branch(position, bench.traced[1], bench.outputs, own, **kinds, recalibrated=method.bn_recalibrate)
    if method.scope == "global":
        one_budget(branch.gates)
    for gate in branch.gates:
        gate.start(method.mask_kind)
    for group, gate in zip(branch.groups, branch.gates, strict=True):
        if method.mask == "random":
            gate.scores.data.uniform_()
        if method.mask == "magnitude":
            gate.scores.data.copy_(bench.source.net.get_submodule(group.name).weight.detach().flatten(1).abs().mean(1))
    set_keep(branch.gates, 1.0 if method.mask in ("learned", "ones") else method.keep_ratio)
    return branch


def start_adapters(bench: Workbench, net: Candidates) -> None:
    """Start every adapter as the best linear map from the target's features to the source's (adapter_init=lstsq)."""
    fits = [LeastSquares(branch.adapter) for branch in net.branches]
    share = math.ceil(ADAPTER_SAMPLES / bench.run.world)
    loader = bench.clone_loader(bench.cfg.eval_batch_size, train=False, canvas=bench.target.canvas)
    seen = 0
    with closing(loader.epoch(0)) as batches:
        for batch in batches:
            images = batch.images[: share - seen]
            values, _, _ = net.of_target(bench.target.preprocess(images))
            wanted, _ = net.of_source(bench.source.preprocess(images))
            for fit, value, goal in zip(fits, values, wanted, strict=True):
                fit.add(value, goal)
            seen += len(images)
            if seen == share:
                break
    for fit in fits:
        fit.solve()


def insert(bench: Workbench, method: Cloning, net: Candidates, near: Neighbourhood, local: Local | None) -> Fit:
    """Stage 2: learn adapters and heads of all positions, refining the masks if they were learned (eq. 9)."""
    if method.adapter_init == "lstsq":
        start_adapters(bench, net)
    loader, originals = bench.joint_loader(bench.cfg.batch_size)
    loader = bench.long_enough(loader, method.insert_epochs, method.min_steps)
    weight = method.loc_weight if method.joint and method.mask == "learned" else 0.0
    options = {"seed": bench.run.seed, "score_lr": method.score_lr, "originals": originals, "loc_weight": weight}
    options |= {"keep_weight": method.keep_weight, "temperature": method.temperature}
    options |= {"loss": method.insert_loss or ("xe" if originals else "match"), "match_weight": method.match_weight}
    return bench.fit(Insertion(net, near, local, **options), loader, "insert", method.insert_epochs)
