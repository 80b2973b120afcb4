"""Which nodes of two networks are joined: as many pairs as leave the union of both graphs acyclic.

A set of pairs that is increasing in a topological order of A and in one of B leaves an acyclic quotient graph, and each
acyclic set is increasing in two such orders. So a longest common subsequence (LCS) of two orders is a matching,
random orders give others, and exact branch and bound decides where they do not reach the upper bound.
"""

from __future__ import annotations

import time
from heapq import heappop, heappush
from itertools import count
from typing import NamedTuple

import numpy as np
from scipy.optimize import linear_sum_assignment
from scipy.sparse import csr_array
from scipy.sparse.csgraph import maximum_bipartite_matching

from recombine.stitch.merged_graph import (
    MatchingProblem,
    add_edge,
    depths,
    find_conflict,
    positions,
    reachability,
    remaining_pairs,
    sort,
)
from recombine.stitch.settings import MatchingSettings

__all__ = ["Matching", "MatchingProblem", "match"]


class Matching(NamedTuple):
    """What `match` found."""

    pairs: np.ndarray
    """int [m, 2], vertex of A then of B: both columns follow one topological order of the quotient graph."""
    bound: int
    """Size of a maximum bipartite matching: no acyclic matching has more."""
    proven: bool
    """Whether no acyclic matching has more pairs than were found, before `max_matches` removed pairs."""


def match(problem: MatchingProblem, settings: MatchingSettings | None = None, *, seed: int = 0) -> Matching:
    """A one-to-one matching with an acyclic quotient graph, with as many pairs as could be found.

    Each pair counts 1 - eps (d_a - d_b)^2, with normalised depths d and eps = `depth_tiebreak`, taken smaller in graphs
    so large that depth could outweigh a pair. If the LCS of two topological orders stays below the bipartite bound,
    `restarts` random orders follow, then exact branch and bound on the number of pairs, until `time_limit` seconds have
    passed. The result is a function of the seed unless the limit was reached.
    `max_matches` keeps that many pairs, evenly spread in depth; bound and proven describe the full matching.
    Deviation: the authors branch and bound heuristically, which finds 175 of 335 pairs in their largest problem.
    """
    settings = settings or MatchingSettings()
    deadline = time.perf_counter() + settings.time_limit
    depth_a, depth_b = map(depths, (problem.edges_a, problem.edges_b), problem.compatible.shape)
    bound = len(_bipartite_matching(problem.compatible))
    eps = min(settings.depth_tiebreak, 0.5 / min(problem.compatible.shape))
    weights = np.where(problem.compatible, 1 - eps * (depth_a[:, None] - depth_b) ** 2, 0)
    search = _BranchAndBound(problem, weights, bound, deadline, seed)
    search.restart(settings.restarts)
    proven = search.branch()
    pairs = sort(problem, search.best)
    if settings.max_matches is not None and settings.max_matches < len(pairs):
        pairs = _thin(pairs, (depth_a[pairs[:, 0]] + depth_b[pairs[:, 1]]) / 2, settings.max_matches)
    return Matching(pairs, bound, proven)


def _lcs(weights: np.ndarray, order_a: np.ndarray, order_b: np.ndarray) -> np.ndarray:
    """Pairs [m, 2], increasing in both orders, with the largest sum of `weights` [|A|, |B|], where 0 is no pair."""
    best = np.zeros((len(order_a) + 1, len(order_b) + 1))
    for i, gain in enumerate(weights[np.ix_(order_a, order_b)]):
        np.maximum.accumulate(np.maximum(best[i, 1:], best[i, :-1] + gain), out=best[i + 1, 1:])
    pairs, (i, j) = [], weights.shape
    while best[i, j] > 0:
        if best[i, j] == best[i - 1, j]:
            i -= 1
        elif best[i, j] == best[i, j - 1]:
            j -= 1
        else:
            i, j = i - 1, j - 1
            pairs.append((order_a[i], order_b[j]))
    return np.array(pairs[::-1], int).reshape(-1, 2)


def _bipartite_matching(allowed: np.ndarray) -> np.ndarray:
    """A largest one-to-one matching of bool [|A|, |B|] whether or not it is acyclic, int [m, 2]."""
    partner = maximum_bipartite_matching(csr_array(allowed), perm_type="column")
    return np.stack([np.flatnonzero(partner >= 0), partner[partner >= 0]], 1)


def _thin(pairs: np.ndarray, depth: np.ndarray, count: int) -> np.ndarray:
    """The `count` pairs that are together nearest to evenly spaced depths, in their order."""
    targets = depth.min() + np.ptp(depth) * (np.arange(count) + 0.5) / count
    _, chosen = linear_sum_assignment((targets[:, None] - depth) ** 2)
    return pairs[np.sort(chosen)]


def _children(undecided: tuple[int, int], allowed: np.ndarray) -> list[tuple[tuple[int, int], ...]]:
    """The edges that put x before y, y before x and, if that is possible, both into one vertex."""
    x, y = undecided
    both = [((x, y), (y, x))] if allowed[x, y - len(allowed)] else []
    return [((x, y),), ((y, x),), *both]


class _BranchAndBound:
    """The best matching so far, and two ways to improve it until `bound` pairs are found or the deadline has passed."""

    def __init__(self, problem: MatchingProblem, weights: np.ndarray, bound: int, deadline: float, seed: int) -> None:
        self.problem, self.weights, self.bound, self.deadline = problem, weights, bound, deadline
        self.random = np.random.default_rng(seed)
        self.best = self.extend(np.empty((0, 2), int), np.arange(sum(weights.shape)))

    def extend(self, pairs: np.ndarray, priority: np.ndarray | None = None) -> np.ndarray:
        """The LCS of two orders, random but for keeping acyclic `pairs` possible: it weighs no less than they do."""
        priority = self.random.permutation(sum(self.weights.shape)) if priority is None else priority
        return _lcs(self.weights, *map(np.argsort, positions(self.problem, pairs, priority)))

    def keep(self, pairs: np.ndarray) -> None:
        if self.weights[*pairs.T].sum() >= self.weights[*self.best.T].sum():
            self.best = pairs

    def timed_out(self) -> bool:
        return time.perf_counter() > self.deadline

    def restart(self, restarts: int) -> None:
        """LCS of random orders, alternately of any and of those that keep the best so far possible."""
        for number in range(restarts):
            if len(self.best) == self.bound or self.timed_out():
                return
            self.keep(self.extend(self.best[: len(self.best) * (number % 2)]))

    def branch(self) -> bool:
        """Exact branch and bound; whether no matching is now known to have more pairs.

        The relaxation is a bipartite matching. Where that has a cycle, a vertex of A comes before one of B, after it,
        or is joined with it: each order of a quotient graph is in exactly one of these branches. An order
        excludes all pairs that cross it, so this closes gaps that forbidding one pair of the cycle each time does not.
        """
        root, serial = reachability(self.problem), count()
        nodes: list[tuple[int, int, tuple[tuple[int, int], ...]]] = [(-self.bound, 0, ())]
        while nodes and -nodes[0][0] > len(self.best):
            if self.timed_out():
                return False
            edges = heappop(nodes)[-1]
            reach = root.copy()
            for edge in edges:
                add_edge(reach, *edge)
            joined, allowed = remaining_pairs(self.problem, reach)
            relaxed = _bipartite_matching(allowed)
            bound = len(joined) + len(relaxed)
            if bound <= len(self.best):
                continue
            undecided = find_conflict(reach, relaxed, len(allowed))
            self.keep(self.extend(joined if undecided else np.concatenate([joined, relaxed])))
            for child in _children(undecided, allowed) if undecided else ():
                heappush(nodes, (-bound, -next(serial), (*edges, *child)))
        return True
