"""Graphs without effects in place: what changes a value is replaced by what gives a new one."""

from __future__ import annotations

import operator
from collections.abc import Callable

from torch import fx, nn
from torch.fx import Node

__all__ = ["without_effects"]

IN_PLACE: dict[Callable, Callable] = {
    getattr(operator, f"i{name}"): getattr(operator, name) for name in ("add", "sub", "mul", "truediv")
}


def without_effects(net: nn.Module, graph: fx.Graph) -> None:
    """Rewrite the graph of `net`, and clear `inplace` of its layers: both compute what they did.

    Changes through views are not followed.
    """
    changing = {name for name, module in net.named_modules() if getattr(module, "inplace", False) is True}
    for name in changing:
        net.get_submodule(name).inplace = False  # type: ignore[assignment]
    order = {node: place for place, node in enumerate(graph.nodes)}
    for node in graph.nodes:
        if _made_pure(node) or (node.op == "call_module" and node.target in changing):
            # whoever reads the changed value afterwards sees the change
            later = {user for user in node.all_input_nodes[0].users if order[user] > order[node]}
            node.all_input_nodes[0].replace_all_uses_with(node, delete_user_cb=later.__contains__)
    graph.lint()


def _made_pure(node: Node) -> bool:
    """Replace an operation in place by its pure form; whether it was one."""
    if node.op == "call_function" and node.target in IN_PLACE:
        node.target = IN_PLACE[node.target]
    elif node.op == "call_function" and node.kwargs.get("inplace") is True:
        node.kwargs = {**node.kwargs, "inplace": False}
    elif node.op == "call_method" and (name := str(node.target)).endswith("_") and not name.endswith("__"):
        node.target = name.removesuffix("_")
    else:
        return False
    return True
