"""A frozen network with the additions of one task: the graph is copied and edited, the network itself never changes."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.fx import Node

from recombine.core.errors import ConfigError
from recombine.models.freeze import freeze_shared, unfreeze_shared
from recombine.models.graph import Traced, frontier, segment
from recombine.models.model import Model, pooled, unwrap

__all__ = ["Edit", "HeadOnly", "Patch", "TaskNetwork", "called_once", "calls", "map_outputs"]

M = TypeVar("M", bound=nn.Module)


class Edit:
    """A copy of a network's graph into which a patch puts calls of its modules."""

    def __init__(self, traced: Traced) -> None:
        self.graph, self._new = traced.copy(prefix="base.")

    def at(self, node: Node) -> Node:
        """The node of the copy that now gives the value of the traced `node`."""
        return self._new[node]

    def call(self, module: str, *inputs: Any, after: Node) -> Node:
        """Call `patch.<module>` on `inputs`, directly after a node of the copy."""
        with self.graph.inserting_after(after):
            return self.graph.call_module(f"patch.{module}", inputs)

    def function(self, function: Any, *arguments: Any, after: Node) -> Node:
        """Call a function, directly after a node of the copy."""
        with self.graph.inserting_after(after):
            return self.graph.call_function(function, arguments)

    def replace(self, node: Node, by: Node) -> None:
        """Let everything that uses the traced `node` use `by` instead (but `by` itself, if it is made from it)."""
        value = self._new[node]
        value.replace_all_uses_with(by, delete_user_cb=lambda user: user is not by)
        # where a value has no activation after it, it stands for several traced nodes (the sum and the output)
        self._new.update({old: by for old, new in self._new.items() if new is value})

    def add(self, node: Node, added: Node) -> None:
        """Let everything that uses the traced `node` use its sum with `added`, which may be made from it."""
        value = self._new[node]
        total = self.function(torch.add, value, added, after=added)
        value.replace_all_uses_with(total, delete_user_cb=lambda user: user not in (total, added))
        self._new[node] = total


class Patch(nn.Module):
    """What one task adds to a network: modules between its layers, and a new classifier.

    With `classes=0` there is no classifier: the patched network gives what the network gives (features, maps, a dict of
    them). A subclass says in `insert` where its modules are called. `options` are the arguments that build it again.
    """

    head: nn.Module | None

    def __init__(self, traced: Traced, classes: int, **options: Any) -> None:
        super().__init__()
        self.traced, self.classes, self.options = traced, classes, options
        self.head, self.head_name = None, traced.head if classes else ""
        old = traced.net.get_submodule(self.head_name) if classes else None
        if isinstance(old, nn.Linear):
            self.head = nn.Linear(old.in_features, classes)
        elif isinstance(old, nn.Conv2d):
            self.head = nn.Conv2d(old.in_channels, classes, old.kernel_size, old.stride, old.padding)  # type: ignore[arg-type]

    def insert(self, edit: Edit) -> None:
        """Put this patch's calls (the classifier left out) into the copied graph."""

    def fold(self, net: nn.Module) -> None:
        """Change the weights of `net`, a copy of the base, so that it computes what this patch adds; see `merge`."""
        raise ConfigError(
            f"{type(self).__name__} is more than weights of the network, and cannot be merged into them; export both "
            f"as one file: recombine export --patch"
        )

    def summary(self) -> str:
        """What of the network is patched, in a line for people."""
        return f"{type(self).__name__}: {self.parameters_without_head():,} parameters beside the classifier"

    def doubts(self) -> list[str]:
        """Why this patch may do less on this network than it does on those of its paper."""
        return []

    def prepare(self, patched: TaskNetwork, images: Callable[[int], Tensor], seed: int) -> None:
        """What a patch learns of its task before any label is used; default: nothing.

        `images(count)` gives at most so many training images in random order, uint8 [N, 3, H, W].
        """

    def parameters_without_head(self) -> int:
        """Trainable parameters as the paper counts them (Table 2): the classifier left out."""
        head = {id(parameter) for parameter in self.head.parameters()} if self.head is not None else set()
        return sum(p.numel() for p in self.parameters() if p.requires_grad and id(p) not in head)


class HeadOnly(Patch):
    """The network as it is with a new classifier: the row `+ FC` of Table 8."""

    def fold(self, net: nn.Module) -> None:
        """Nothing: the classifier alone is new."""


class TaskNetwork(nn.Module):
    """The network `base` with one patch: images (or cached prefix values) in, logits of the patch's task out.

    `base` may be a classifier, or with a patch of `classes=0` any network of feature maps: a headless one, the backbone
    of a detector. Wrappers of torch.compile and DataParallel are taken off.

    What lies before the first patched place runs without gradients; `prefix` gives its values for keeping. A frozen
    base is in eval mode without gradients, whatever trains around it, until `restore`.
    """

    def __init__(self, model: nn.Module, patch: Patch, *, frozen: bool = True) -> None:
        """`model`: a `Model` (uint8 images) or any network (floats as it wants them); `frozen`: it does not train."""
        super().__init__()
        model = unwrap(model)
        self._given = (model,)  # in a tuple: it is no module of this one
        self.base = unwrap(model.net) if isinstance(model, Model) else model
        self.preprocess = model.preprocess if isinstance(model, Model) else nn.Identity()
        self.patch, self.frozen = patch, frozen
        edit = Edit(patch.traced)
        patch.insert(edit)
        if patch.head is not None:
            _replace_head(edit, patch)
        self._graph = edit.graph
        self._cut()
        self._before = freeze_shared(self.base, self) if frozen else None

    def train(self, mode: bool = True) -> TaskNetwork:
        """Train the patch; a frozen base stays in eval mode, or its BatchNorms would change."""
        super().train(mode)
        if self.frozen:
            self.base.eval()
        return self

    def restore(self) -> nn.Module:
        """The network that was given; the patch is not used afterwards.

        It gets its modes and gradient flags back, unless another patch is on it.
        """
        if self._before is not None:
            unfreeze_shared(self.base, self, self._before)
            self._before = None
        return self._given[0]

    def _cut(self) -> None:
        """Cut the edited graph where the first patched places are."""
        graph = self._graph
        images = next(node for node in graph.nodes if node.op == "placeholder")
        live: set[Node] = set()
        for node in graph.nodes:
            added = node.op == "call_module" and str(node.target).startswith("patch.")
            if added or live.intersection(node.all_input_nodes):
                live.add(node)
        if not live:
            raise ConfigError(f"{type(self.patch).__name__} adds nothing to a network that keeps its own head")
        result: Any = next(node for node in graph.nodes if node.op == "output").args[0]
        if self.patch.head is not None:
            head = next(node for node in graph.nodes if node.target == "patch.head")
            result = [result, head.args[0]]
        border = frontier(graph, live)
        self.border = tuple(node.name for node in border)
        """Names of the values that `prefix` gives."""
        self._sizes = [node.name for node in border if "shape" not in node.meta]
        self._shapes = [tuple(node.meta["shape"][1:]) for node in border if "shape" in node.meta]
        # in a tuple: the segments use the same modules of `base` and `patch`, which must be registered only once
        self._segments = segment(self, graph, [images], border), segment(self, graph, border, result)

    def __deepcopy__(self, memo: dict) -> TaskNetwork:
        """A copy with its own base and patch. Graphs are shared: nothing edits them, and their chains of nodes are too
        long to be followed.
        """
        traced = self.patch.traced
        memo |= {id(value): value for value in (traced, self._graph, *traced.graph.nodes)}
        memo[id(self)] = twin = type(self).__new__(type(self))
        twin.__dict__.update(copy.deepcopy({k: v for k, v in self.__dict__.items() if k != "_segments"}, memo))
        twin._cut()
        if self.frozen:
            freeze_shared(twin.base, twin)
        return twin

    def _apply(self, function, recurse: bool = True):
        moved = super()._apply(function, recurse)
        self._cut()  # constants of the graph are copied references, which a move to another device can replace
        return moved

    @property
    def prefix_floats(self) -> float:
        """Numbers per image that `prefix` gives; infinite where what is needed from before it is no tensor."""
        return math.inf if self._sizes else sum(torch.Size(shape).numel() for shape in self._shapes)

    @torch.no_grad()
    def prefix(self, images: Tensor) -> Tensor:
        """The values before the first patched places: [B, prefix_floats], to be given to `forward` later.

        Raises ConfigError where the rest of the network needs more than tensors, such as the size of the images.
        """
        if self._sizes:
            raise ConfigError(f"{type(self.base).__name__}: {', '.join(self._sizes)} is no tensor, and cannot be kept")
        return torch.cat([value.flatten(1) for value in self._segments[0](self.preprocess(images))], 1)

    def forward(self, images: Tensor) -> Any:
        """Logits [B, classes] float32 of images [B, C, H, W], or of what `prefix` gave for them [B, prefix_floats].

        Of a patch without a classifier: what the base gives, with its additions.
        """
        return self.finish(self.start(images))

    def start(self, images: Tensor) -> Sequence[Any]:
        """The values before the first patched places, for `finish`; of images, or of what `prefix` gave for them."""
        if images.ndim == 2:
            parts = images.split([torch.Size(shape).numel() for shape in self._shapes], 1)
            return [part.unflatten(1, shape) for part, shape in zip(parts, self._shapes, strict=True)]
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            return self._segments[0](self.preprocess(images))

    def finish(self, values: Sequence[Any]) -> Any:
        """What `forward` gives, from the values of `start`."""
        result = self._segments[1](*values)
        return result[0].float() if self.patch.head is not None else result

    def features_and_logits(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """What enters the patch's classifier, float32 [B, D], averaged over positions; and the logits."""
        assert self.patch.head is not None, "features are what enters the patch's classifier"
        logits, features = self._segments[1](*self.start(images))
        return pooled(features, self.patch.head), logits.float()


def map_outputs(layer: Any, matrix: Tensor, shift: Tensor) -> None:
    """Let a convolution or linear layer, in place, give `matrix` times what it gave, plus `shift`; float64."""
    if layer.bias is not None:
        shift = shift + matrix @ layer.bias.double()
    layer.weight.copy_(torch.tensordot(matrix, layer.weight.double(), 1))
    layer.bias = nn.Parameter(shift.to(layer.weight))


def called_once(found: Sequence[tuple[Node, M]]) -> list[str]:
    """Paths of the modules of these calls; ConfigError if one is called twice, and so has two additions."""
    paths = [str(node.target) for node, _ in found]
    if twice := {path for path in paths if paths.count(path) > 1}:
        raise ConfigError(
            f"the network calls {', '.join(sorted(twice))} more than once: its additions cannot be merged"
        )
    return paths


def calls(traced: Traced, kind: type[M]) -> list[tuple[Node, M]]:
    """The calls of all modules of a kind, each with its module."""
    nodes = (node for node in traced.graph.nodes if node.op == "call_module")
    found = ((node, traced.net.get_submodule(str(node.target))) for node in nodes)
    return [(node, module) for node, module in found if isinstance(module, kind)]


def _replace_head(edit: Edit, patch: Patch) -> None:
    old = patch.traced.node(patch.head_name)
    place = edit.at(old)
    new = edit.call("head", place.args[0], after=place)
    edit.replace(old, new)
    for node in reversed(edit.graph.nodes):
        if not node.users and node.op not in ("output", "placeholder"):
            edit.graph.erase_node(node)
