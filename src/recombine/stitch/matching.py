"""Which nodes of two networks are joined: as many pairs as leave the union of both graphs acyclic (section 4).

A set of pairs that is increasing in a topological order of A and in one of B leaves an acyclic quotient graph, and each
acyclic set is increasing in some two such orders. So a longest common subsequence (LCS) of two orders is a matching,
random orders give others, and branch and bound settles what they leave open.
"""

from __future__ import annotations

import time
from heapq import heappop, heappush
from itertools import count
from typing import Any, NamedTuple

import numpy as np
from scipy.optimize import linear_sum_assignment
from scipy.sparse import csr_array
from scipy.sparse.csgraph import maximum_bipartite_matching

from recombine.core.errors import ConfigError
from recombine.stitch.merged_graph import (
    Problem,
    add_edge,
    conflict,
    depths,
    is_acyclic,
    left,
    positions,
    reachability,
    sort,
)

__all__ = ["Matching", "Problem", "is_acyclic", "match"]

METHODS = ("lcs", "greedy_depth")


class Matching(NamedTuple):
    """What `match` found."""

    pairs: np.ndarray
    """int [m, 2], vertex of A then of B: both columns follow one topological order of the quotient graph."""
    bound: int
    """Size of a maximum bipartite matching: no acyclic matching has more."""
    proven: bool
    """Whether no acyclic matching has more pairs than were found, before `max_matches` took some away."""
    seconds: float


def match(
    problem: Problem,
    method: str = "lcs",
    *,
    depth_tiebreak: float = 1e-3,
    restarts: int = 100,
    time_limit: float = 60.0,
    max_matches: int | None = None,
    seed: int = 0,
) -> Matching:
    """A one-to-one matching with an acyclic quotient graph, with as many pairs as could be found.

    `lcs` is our section 4.4: each pair counts 1 - eps (d_a - d_b)^2, with normalised depths d and eps =
    `depth_tiebreak`, taken smaller in graphs so large that depth could outweigh a pair. If the LCS of two plain orders
    stays below the bipartite bound, `restarts` random orders follow, then exact branch and bound on the number of
    pairs, until `time_limit` seconds have passed. The result is a function of the seed unless the limit was reached.
    `greedy_depth` joins what is nearest in depth first and never goes back (a baseline).
    `max_matches` keeps that many pairs, evenly spread in depth; bound and proven stay about the full matching.
    Deviation: the authors branch and bound heuristically, which finds 175 of 335 pairs in their largest problem.
    ConfigError for unknown methods and impossible limits.
    """
    _check(method, depth_tiebreak, restarts, time_limit, max_matches)
    started = time.perf_counter()
    depth_a, depth_b = map(depths, (problem.edges_a, problem.edges_b), problem.compatible.shape)
    apart = abs(depth_a[:, None] - depth_b)
    bound = len(_relaxed(problem.compatible))
    if method == "greedy_depth":
        pairs = _greedy(problem, apart)
        proven = len(pairs) == bound
    else:
        eps = min(depth_tiebreak, 0.5 / min(problem.compatible.shape))
        weights = np.where(problem.compatible, 1 - eps * apart**2, 0)
        search = _Search(problem, weights, bound, started + time_limit, seed)
        search.restart(restarts)
        proven, pairs = search.branch(), search.best
    pairs = sort(problem, pairs)
    if max_matches is not None and max_matches < len(pairs):
        pairs = _thin(pairs, (depth_a[pairs[:, 0]] + depth_b[pairs[:, 1]]) / 2, max_matches)
    return Matching(pairs, bound, proven, time.perf_counter() - started)


def _check(method: Any, depth_tiebreak: Any, restarts: Any, time_limit: Any, max_matches: Any) -> None:
    few = type(max_matches) is int and max_matches >= 1
    eps, limit = type(depth_tiebreak) in (int, float), type(time_limit) in (int, float)
    rules = (
        ("method", method, method in METHODS, f"one of {', '.join(METHODS)}; try", "lcs"),
        ("depth_tiebreak", depth_tiebreak, eps and 0 <= depth_tiebreak < 1, "from 0 to below 1; try", "1e-3"),
        ("restarts", restarts, type(restarts) is int and restarts >= 0, "an integer of at least 0; try", "100"),
        ("time_limit", time_limit, limit and time_limit >= 0, "seconds, at least 0; try", "60"),
        ("max_matches", max_matches, max_matches is None or few, "an integer of at least 1; for all pairs", "null"),
    )
    wrong = [f"matching.{k}={value}: {need} matching.{k}={mend}" for k, value, fits, need, mend in rules if not fits]
    if wrong:
        raise ConfigError(wrong)


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


def _relaxed(allowed: np.ndarray) -> np.ndarray:
    """A largest one-to-one matching of bool [|A|, |B|] whether or not it is acyclic, int [m, 2]."""
    partner = maximum_bipartite_matching(csr_array(allowed), perm_type="column")
    return np.stack([np.flatnonzero(partner >= 0), partner[partner >= 0]], 1)


def _thin(pairs: np.ndarray, depth: np.ndarray, count: int) -> np.ndarray:
    """The `count` pairs that are together nearest to evenly spaced depths, in their order."""
    wanted = depth.min() + np.ptp(depth) * (np.arange(count) + 0.5) / count
    _, chosen = linear_sum_assignment((wanted[:, None] - depth) ** 2)
    return pairs[np.sort(chosen)]


def _greedy(problem: Problem, apart: np.ndarray) -> np.ndarray:
    """The nearest pair in depth that is still possible, again and again, int [m, 2]."""
    reach = reachability(problem)
    joined, allowed = left(problem, reach)
    while allowed.any():
        a, b = np.unravel_index(np.where(allowed, apart, np.inf).argmin(), allowed.shape)
        add_edge(reach, a, len(allowed) + b)
        add_edge(reach, len(allowed) + b, a)
        joined, allowed = left(problem, reach)
    return joined


def _children(undecided: tuple[int, int], allowed: np.ndarray) -> list[tuple[tuple[int, int], ...]]:
    """The edges that put x before y, y before x and, if that is possible, both into one vertex."""
    x, y = undecided
    both = [((x, y), (y, x))] if allowed[x, y - len(allowed)] else []
    return [((x, y),), ((y, x),), *both]


class _Search:
    """The best matching so far, and two ways to better it until `bound` pairs are found or the deadline is over."""

    def __init__(self, problem: Problem, weights: np.ndarray, bound: int, deadline: float, seed: int) -> None:
        self.problem, self.weights, self.bound, self.deadline = problem, weights, bound, deadline
        self.random = np.random.default_rng(seed)
        self.best = self.extend(np.empty((0, 2), int), np.arange(sum(weights.shape)))

    def extend(self, pairs: np.ndarray, priority: np.ndarray | None = None) -> np.ndarray:
        """The LCS of two orders, else random, that leave acyclic `pairs` possible: it weighs no less than they do."""
        priority = self.random.permutation(sum(self.weights.shape)) if priority is None else priority
        return _lcs(self.weights, *map(np.argsort, positions(self.problem, pairs, priority)))

    def keep(self, pairs: np.ndarray) -> None:
        if self.weights[*pairs.T].sum() >= self.weights[*self.best.T].sum():
            self.best = pairs

    def late(self) -> bool:
        return time.perf_counter() > self.deadline

    def restart(self, restarts: int) -> None:
        """LCS of random orders: any, and such that the best so far stays possible, in turn."""
        for number in range(restarts):
            if len(self.best) == self.bound or self.late():
                return
            self.keep(self.extend(self.best[: len(self.best) * (number % 2)]))

    def branch(self) -> bool:
        """Exact branch and bound (section 4.4, step 4); whether no matching is now known to have more pairs.

        The relaxation is a bipartite matching. Where that has a cycle, a vertex of A comes before one of B, after it,
        or is joined with it: each order of a quotient graph is in exactly one of these branches. Ours: an order
        excludes all pairs that cross it, so this closes gaps that forbidding one pair of the cycle each time does not.
        """
        root, serial, nodes = reachability(self.problem), count(), [(-self.bound, 0, ())]
        while nodes and -nodes[0][0] > len(self.best):
            if self.late():
                return False
            edges = heappop(nodes)[-1]
            reach = root.copy()
            for edge in edges:
                add_edge(reach, *edge)
            joined, allowed = left(self.problem, reach)
            relaxed = _relaxed(allowed)
            bound = len(joined) + len(relaxed)
            if bound <= len(self.best):
                continue
            undecided = conflict(reach, relaxed, len(allowed))
            self.keep(self.extend(joined if undecided else np.concatenate([joined, relaxed])))
            for child in _children(undecided, allowed) if undecided else ():
                heappush(nodes, (-bound, -next(serial), (*edges, *child)))
        return True
