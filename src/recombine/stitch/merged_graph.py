"""The quotient graph of two graphs with joined vertices: its orders, depths and cycles."""

from __future__ import annotations

from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from heapq import heappop, heappush

import numpy as np
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components, dijkstra

__all__ = [
    *("MatchingProblem", "add_edge", "depths", "find_conflict"),
    *("positions", "reachability", "remaining_pairs", "sort"),
]


@dataclass(frozen=True, eq=False)
class MatchingProblem:
    """Two directed acyclic graphs A and B, their vertices numbered in any order, and which vertices may be joined.

    ValueError if an edge leaves its graph or closes a cycle. Omit constants: for depths, a vertex without an
    incoming edge is an input.
    """

    compatible: np.ndarray
    """bool [|A|, |B|]."""
    edges_a: np.ndarray
    """int [E, 2], source then target."""
    edges_b: np.ndarray

    def __post_init__(self) -> None:
        if self.compatible.ndim != 2 or self.compatible.dtype != bool or not self.compatible.size:
            raise ValueError("compatible must be a bool array [|A|, |B|] with at least one vertex on each side")
        for name, edges, size in zip("AB", (self.edges_a, self.edges_b), self.compatible.shape, strict=True):
            if edges.ndim != 2 or edges.shape[1] != 2 or not np.issubdtype(edges.dtype, np.integer):
                raise ValueError(f"the edges of {name} must be integers [E, 2], not {edges.dtype} {edges.shape}")
            if edges.size and not (edges.min() >= 0 and edges.max() < size):
                raise ValueError(f"the edges of {name} name a vertex outside 0 to {size - 1}")
            try:
                _order(edges, np.arange(size))
            except CycleError:
                raise ValueError(f"the edges of {name} close a cycle") from None


def _order(edges: np.ndarray, priority: np.ndarray) -> list[int]:
    """Vertices in topological order, the lowest `priority` [n] first among several; CycleError if cyclic."""
    sorter = TopologicalSorter({vertex: () for vertex in range(len(priority))})
    for source, target in edges.tolist():
        sorter.add(target, source)
    sorter.prepare()
    order: list[int] = []
    ready: list[tuple[int, int]] = []
    rank = priority.tolist()
    while sorter:
        for vertex in sorter.get_ready():
            heappush(ready, (rank[vertex], vertex))
        order.append(heappop(ready)[1])
        sorter.done(order[-1])
    return order


def _union_edges(problem: MatchingProblem) -> np.ndarray:
    """Edges of both graphs, int [E, 2], with B's vertices numbered after A's."""
    return np.concatenate([problem.edges_a, problem.edges_b + len(problem.compatible)])


def positions(problem: MatchingProblem, pairs: np.ndarray, priority: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Positions of A's and B's vertices in a topological order of the quotient graph; CycleError if it has none."""
    count = len(problem.compatible)
    name = np.arange(len(priority))
    name[count + pairs[:, 1]] = pairs[:, 0]
    order = _order(name[_union_edges(problem)], priority)
    position = np.argsort(order)[name]
    return position[:count], position[count:]


def sort(problem: MatchingProblem, pairs: np.ndarray) -> np.ndarray:
    """Acyclic `pairs` in a topological order of the quotient graph, by A's numbering where there is a choice."""
    position, _ = positions(problem, pairs, np.arange(sum(problem.compatible.shape)))
    return pairs[np.argsort(position[pairs[:, 0]])]


def depths(edges: np.ndarray, size: int) -> np.ndarray:
    """d_in / (d_in + d_out) in [0, 1] by shortest distances from any source and to any sink, float64 [size]."""
    graph = csr_array((np.ones(len(edges)), edges.T), shape=(size, size))
    ends = [np.setdiff1d(np.arange(size), edges[:, column]) for column in (1, 0)]
    d_in, d_out = (
        dijkstra(g, indices=end, unweighted=True, min_only=True) for g, end in zip((graph, graph.T), ends, strict=True)
    )
    return d_in / np.maximum(1, d_in + d_out)


def reachability(problem: MatchingProblem) -> np.ndarray:
    """Whether a path of zero or more edges leads from the first vertex to the second, bool [n, n], B after A."""
    edges, size = _union_edges(problem), sum(problem.compatible.shape)
    reach = np.eye(size, dtype=bool)
    position = np.argsort(_order(edges, np.arange(size)))
    for source, target in edges[np.argsort(-position[edges[:, 0]])]:
        reach[source] |= reach[target]
    return reach


def add_edge(reach: np.ndarray, source: int, target: int) -> None:
    """Add an edge to the graph that `reach` describes, in place."""
    reach[reach[:, source] & ~reach[:, target]] |= reach[target]


def remaining_pairs(problem: MatchingProblem, reach: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pairs [m, 2] joined in `reach` (each reaches the other), and which pairs may be joined too, bool [|A|, |B|]."""
    size = len(problem.compatible)
    before, after = reach[:size, size:], reach[size:, :size].T
    joined, allowed = np.argwhere(before & after), problem.compatible & ~(before | after)
    allowed[joined[:, 0]] = allowed[:, joined[:, 1]] = False
    return joined, allowed


def find_conflict(reach: np.ndarray, pairs: np.ndarray, size: int) -> tuple[int, int] | None:
    """A vertex of A and one of B, in no order yet, on a cycle through possible `pairs`; None if there is no cycle."""
    a, b = pairs[:, 0], size + pairs[:, 1]
    before = np.logical_or.reduce([reach[np.ix_(x, y)] for x in (a, b) for y in (a, b)])
    np.fill_diagonal(before, False)
    crossed = (before & before.T).sum(1)
    if crossed.any():  # two pairs that cross: an order of x and y excludes one of them, and all that cross it alike
        first = crossed.argmax()
        second = np.where(before[first] & before[:, first], crossed, 0).argmax()
        x, y = a[first], b[second]
        return (x, b[first]) if reach[x, y] or reach[y, x] else (x, y)
    _, part = connected_components(csr_array(before), connection="strong")
    cyclic = np.flatnonzero(np.bincount(part)[part] > 1)
    return (a[cyclic[0]], b[cyclic[0]]) if len(cyclic) else None
