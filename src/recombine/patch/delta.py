"""Delta-networks: all skip connections of a block, each with a weight that depends on the input (arXiv 2303.14772).

    s_i = act( f_i(s_{i-1}) + sum_{j<i} alpha_ij s_j ),    alpha = sigmoid(Delta(block input))        (eq. 4')

One scalar per connection and sample; the residual branches f_i and the projection of the block's input stay as they
are. The order of the weights is i = 1..n, then j = 0..i-1; it is part of the file format.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from recombine.core.distributed import own_rows, shared, world
from recombine.core.errors import ConfigError
from recombine.models.blocks import Block
from recombine.models.graph import Traced
from recombine.patch.method_settings import DeltaSettings
from recombine.patch.patched import Edit, Patch

__all__ = ["Delta", "DeltaModule", "edges", "modules_within"]

Edge = tuple[int, int]


def edges(n: int, skips: str = "all", from_input: bool = True) -> list[Edge]:
    """The pairs (j, i), j < i, of a block of n sub-blocks in canonical order; node 0 is the block's input.

    `skips`: all n(n+1)/2; only the n `existing` ones (i-1, i); only the `new` ones. Without `from_input` the new
    ones that start at the block's input are left out.
    """
    pairs = [(j, i) for i in range(1, n + 1) for j in range(i)]
    if skips != "all":
        pairs = [(j, i) for j, i in pairs if (j == i - 1) == (skips == "existing")]
    return pairs if from_input else [(j, i) for j, i in pairs if j > 0 or i == 1]


class DeltaModule(nn.Module):
    """From a block's input [B, C, H, W] to the weights [B, K] in (0, 1) of its K skip connections.

    Two 3x3 convolutions C -> C/2 -> C/2 with BatchNorm and ReLU, global average, one linear layer, sigmoid. The widths
    are those that give the paper's 16 parameter counts, 27 C^2 / 4 + 2C + K (C/2 + 1); it does not state strides.
    """

    def __init__(self, channels: int, weights: int, strides: Sequence[int] = (2, 2)) -> None:
        super().__init__()
        width = max(1, channels // 2)
        self.features = nn.Sequential(
            nn.Conv2d(channels, width, 3, strides[0], 1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, strides[1], 1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
        )
        self.fc = nn.Linear(width, weights)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, K]."""
        return self.fc(self.features(x).mean((2, 3))).sigmoid()


class Constant(nn.Module):
    """The same weights [K] for every sample: learned, or fixed."""

    def __init__(self, values: Tensor, learned: bool) -> None:
        super().__init__()
        if learned:
            self.values = nn.Parameter(values)
        else:
            self.register_buffer("values", values)

    def forward(self, x: Tensor) -> Tensor:
        """[B, ...] -> [B, K]."""
        return self.values.expand(len(x), -1)


class Random(nn.Module):
    """Weights uniform in (0, 1), drawn for each sample, connection and forward pass, in training and in evaluation."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.count = count

    def forward(self, x: Tensor) -> Tensor:
        """[B, ...] -> [B, K]."""
        drawn = torch.rand(len(x) * (world() if self.training else 1), self.count, device=x.device, dtype=x.dtype)
        return own_rows(shared(drawn)) if self.training else drawn


class BlockPatch(nn.Module):
    """The weights of one block's skip connections and its extra BatchNorm."""

    def __init__(
        self, block: Block, pairs: list[Edge], weights: str, norm: str, strides: Sequence[int], alpha_init: str
    ) -> None:
        super().__init__()
        existing = torch.tensor([1.0 if block.dense or j == i - 1 else 0.0 for j, i in pairs])
        if weights == "delta":
            self.weights: nn.Module = DeltaModule(block.channels, len(pairs), strides)
            if alpha_init == "base":
                self.weights.fc.bias.data = 4 * existing - 2  # sigmoid(2) = 0.88, sigmoid(-2) = 0.12
        elif weights == "random":
            self.weights = Random(len(pairs))
        else:
            drawn = torch.rand(len(pairs)) if weights == "random_fixed" else torch.ones(len(pairs))
            start = existing if weights == "base" or alpha_init == "base" else drawn
            self.weights = Constant(start, learned=weights == "learned")
        each = norm in ("every_subblock", "skip_sum") and not block.dense
        places = 0 if norm == "none" else len(block.parts) if each else 1
        self.norms = nn.ModuleList(nn.BatchNorm2d(block.out_channels) for _ in range(places))


class Delta(Patch):
    """Delta-network with `modules` modules, one for each of the last blocks, and the ablations of Table 8."""

    def __init__(
        self,
        traced: Traced,
        classes: int,
        *,
        modules: int | str | Sequence[str] = "all",
        budget: int | None = None,
        weights: str = "delta",
        skips: str = "all",
        norm: str = "last_post_act",
        strides: Sequence[int] = (2, 2),
        alpha_init: str = "default",
        input_projection: str = "reuse_frozen",
    ) -> None:
        """The options are those of `DeltaSettings`; ConfigError for wrong ones, and for what the network lacks."""
        settings = {"weights": weights, "skips": skips, "norm": norm, "strides": list(strides)}
        settings |= {"alpha_init": alpha_init, "input_projection": input_projection}
        DeltaSettings.of({"modules": modules, "budget": budget, **settings}, "method")
        if budget is not None:
            modules = modules_within(traced, budget, **settings)
        found = len(traced.last_blocks())
        if isinstance(modules, int) and modules > found:
            raise ConfigError(f"method.modules={modules}: {type(traced.net).__name__} has {found} blocks; or all")
        if isinstance(modules, int | str):
            self._blocks = traced.last_blocks(modules if isinstance(modules, int) else None)
        else:
            self._blocks = traced.blocks_named(modules)
        kept = len(self._blocks) if isinstance(modules, int | str) else self.block_names
        super().__init__(traced, classes, modules=kept, **settings)
        self.pairs = [self._edges(block) for block in self._blocks]
        self.blocks = nn.ModuleList(
            BlockPatch(block, pairs, weights, norm, strides, alpha_init)
            for block, pairs in zip(self._blocks, self.pairs, strict=True)
        )

    def _edges(self, block: Block) -> list[Edge]:
        first = block.parts[0]
        usable = not first.projected or self.options["input_projection"] == "reuse_frozen"
        pairs = edges(len(block.parts), "all" if block.dense else self.options["skips"], usable)
        if not pairs:
            raise ConfigError(f"block {block.name} of {len(block.parts)} sub-block has no new skip: method.skips=all")
        return pairs

    @property
    def block_names(self) -> list[str]:
        """Of the patched blocks."""
        return [block.name for block in self._blocks]

    def summary(self) -> str:
        """The patched blocks, each with its sub-blocks and weighted skips."""
        parts = zip(self._blocks, self.pairs, strict=True)
        each = [f"{block.name} ({len(block.parts)} sub-blocks, {len(pairs)} skips)" for block, pairs in parts]
        return f"{super().summary()}; blocks {', '.join(each)}"

    def doubts(self) -> list[str]:
        """Blocks that have nothing to mix, and layers that come after the last patched one."""
        single = [block.name for block in self._blocks if len(block.parts) == 1]
        found = []
        if single:
            named = ", ".join(single) if len(single) < 5 else f"{single[0]} to {single[-1]}"
            found.append(
                f"{len(single)} of {len(self._blocks)} patched blocks ({named}) have one sub-block, and so no skips to "
                f"mix but the one that the network has"
            )
        last = self._blocks[-1]
        if (share := self.traced.share_behind(last.output)) > 0.5:
            found.append(f"{share:.0%} of the weights come after {last.name}, the last patched block")
        return found

    def insert(self, edit: Edit) -> None:
        """Weight the skips of each patched block; see eq. 4'."""
        for number, (block, pairs) in enumerate(zip(self._blocks, self.pairs, strict=True)):
            insert = self._insert_dense if block.dense else self._insert_residual
            insert(edit, block, pairs, f"blocks.{number}")

    def _insert_residual(self, edit: Edit, block: Block, pairs: list[Edge], path: str) -> None:
        norm = self.options["norm"]
        alpha = edit.call(f"{path}.weights", edit.at(block.input), after=edit.at(block.input))
        sources = [edit.at(block.parts[0].shortcut)]
        for i, part in enumerate(block.parts, start=1):
            columns = [c for c, (_, to) in enumerate(pairs) if to == i]
            chosen = [sources[pairs[c][0]] for c in columns]
            place = edit.at(part.join)
            start = edit.at(part.branch) if (i - 1, i) in pairs else place
            if norm == "skip_sum":
                skips = edit.function(weighted_sum, None, alpha, columns, chosen, after=place)
                skips = edit.call(f"{path}.norms.{i - 1}", skips, after=skips)
                total = edit.function(torch.add, start, skips, after=skips)
            else:
                total = edit.function(weighted_sum, start, alpha, columns, chosen, after=place)
            edit.replace(part.join, total)
            last = i == len(block.parts)
            if norm == "last_pre_act" and last:
                edit.replace(part.join, edit.call(f"{path}.norms.0", total, after=total))
            if norm == "every_subblock" or (norm == "last_post_act" and last):
                value = edit.at(part.output)
                which = i - 1 if norm == "every_subblock" else 0
                edit.replace(part.output, edit.call(f"{path}.norms.{which}", value, after=value))
            sources.append(edit.at(part.output))

    def _insert_dense(self, edit: Edit, block: Block, pairs: list[Edge], path: str) -> None:
        alpha = edit.call(f"{path}.weights", edit.at(block.input), after=edit.at(block.input))
        sources = [edit.at(block.input)]
        for i, part in enumerate(block.parts, start=1):
            columns = [c for c, (_, to) in enumerate(pairs) if to == i]
            place = edit.at(part.join)
            edit.replace(part.join, edit.function(weighted_cat, alpha, columns, list(sources), after=place))
            sources.append(edit.at(part.output))
        if self.options["norm"] != "none":
            value = edit.at(block.output)
            edit.replace(block.output, edit.call(f"{path}.norms.0", value, after=value))


def weighted_sum(start: Tensor | None, alpha: Tensor, columns: list[int], sources: list[Tensor]) -> Tensor | None:
    """start + sum_k alpha[:, columns[k]] sources[k]; [B, C, H, W]."""
    for column, source in zip(columns, sources, strict=True):
        weight = alpha[:, column, None, None, None]
        start = weight * source if start is None else torch.addcmul(start, weight, source)
    return start


def weighted_cat(alpha: Tensor, columns: list[int], sources: list[Tensor]) -> Tensor:
    """The sources, each times its weight, as channels of one map."""
    pairs = zip(columns, sources, strict=True)
    return torch.cat([alpha[:, column, None, None, None] * source for column, source in pairs], 1)


def modules_within(traced: Traced, budget: int, **settings) -> int:
    """The largest number of modules whose trainable parameters (classifier left out) stay within `budget`."""
    counts = {}
    for modules in range(1, len(traced.last_blocks()) + 1):
        with torch.device("meta"):
            counts[modules] = Delta(traced, 1, modules=modules, **settings).parameters_without_head()
    within = [modules for modules, count in counts.items() if count <= budget]
    if not within:
        raise ConfigError(f"method.budget={budget}: one module already has {counts[1]:,} parameters")
    return max(within)
