"""Matching against plain subsequences, all subsets of pairs, the standard library's sorter and two real problems."""

import time
from functools import cache
from graphlib import CycleError, TopologicalSorter
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recombine.stitch import matching
from recombine.stitch.matching import MatchingProblem
from recombine.stitch.merged_graph import depths
from recombine.stitch.settings import MatchingSettings

FIXTURES = {"voc": 62, "imagenet_a": 335}
"""Total pairs, input and output included."""


def match(problem, *, seed=0, **options):
    return matching.match(problem, MatchingSettings(**options), seed=seed)


def edges(*pairs):
    return np.array(pairs, int).reshape(-1, 2)


def chain(size):
    return edges(*pairwise(range(size)))


def everything(a, b, edges_a, edges_b):
    return MatchingProblem(np.ones((a, b), bool), edges_a, edges_b)


def sorts(edges_a, edges_b, pairs):
    """Whether the standard library can sort the graph in which each pair is one vertex."""
    joined = {("b", int(b)): ("a", int(a)) for a, b in pairs}
    sorter = TopologicalSorter()
    for side, arcs in (("a", edges_a), ("b", edges_b)):
        for source, target in arcs.tolist():
            sorter.add(joined.get((side, target), (side, target)), joined.get((side, source), (side, source)))
    try:
        return sorter.prepare() is None
    except CycleError:
        return False


def acyclic(problem, pairs):
    return sorts(problem.edges_a, problem.edges_b, pairs)


def in_order(problem, pairs):
    """Whether the quotient stays acyclic if each pair must also come before the next."""
    after_a, after_b = (edges(*pairwise(column)) for column in pairs.T.tolist())
    return sorts(np.concatenate([problem.edges_a, after_a]), np.concatenate([problem.edges_b, after_b]), pairs)


def most_pairs(problem):
    """The size of a largest acyclic matching, by trying all subsets of compatible pairs."""
    pairs = [tuple(pair) for pair in np.argwhere(problem.compatible).tolist()]

    def best(start, chosen):
        sizes = [len(chosen)]
        for i in range(start, len(pairs)):
            free = all(pairs[i][0] != a and pairs[i][1] != b for a, b in chosen)
            if free and acyclic(problem, [*chosen, pairs[i]]):
                sizes.append(best(i + 1, [*chosen, pairs[i]]))
        return max(sizes)

    return best(0, [])


def random_problem(random, low, high, density, compatible):
    """Two random acyclic graphs with shuffled numbers."""
    sizes, arcs = random.integers(low, high + 1, 2), []
    for size in sizes:
        upper = np.argwhere(np.triu(random.random((size, size)) < density, 1))
        arcs.append(random.permutation(size)[upper].reshape(-1, 2))
    return MatchingProblem(random.random(tuple(sizes)) < compatible, *arcs)


def check(problem, result):
    """What holds of every result."""
    pairs = result.pairs
    assert problem.compatible[*pairs.T].all()
    assert all(len(set(column)) == len(pairs) for column in pairs.T.tolist())
    assert acyclic(problem, pairs) and in_order(problem, pairs)
    assert len(pairs) <= result.bound


@pytest.fixture(params=FIXTURES)
def real(request, data_root):
    path = data_root / "matching" / f"{request.param}.npz"
    if not path.exists():
        pytest.skip(f"no {path.name}")
    with np.load(path) as arrays:
        return MatchingProblem(**arrays), FIXTURES[request.param]


@given(st.lists(st.integers(0, 3), min_size=1, max_size=12), st.lists(st.integers(0, 3), min_size=1, max_size=12))
@settings(deadline=None, max_examples=60, derandomize=True)
def test_two_chains_are_a_longest_common_subsequence(a, b):
    @cache
    def longest(i, j):
        if i == len(a) or j == len(b):
            return 0
        same = 1 + longest(i + 1, j + 1) if a[i] == b[j] else 0
        return max(same, longest(i + 1, j), longest(i, j + 1))

    problem = MatchingProblem(np.array(a)[:, None] == np.array(b), chain(len(a)), chain(len(b)))
    result = match(problem)
    check(problem, result)
    assert result.proven and len(result.pairs) == longest(0, 0)
    assert (np.diff(result.pairs, axis=0) > 0).all()


def test_two_diamonds_are_joined_whole():
    diamond = edges((0, 1), (0, 2), (1, 3), (2, 3))
    problem = everything(4, 4, diamond, diamond)
    result = match(problem)
    check(problem, result)
    assert result.proven and len(result.pairs) == result.bound == 4
    assert result.pairs[[0, -1]].tolist() == [[0, 0], [3, 3]]


def test_a_diamond_and_a_chain_with_names_turned_round():
    problem = MatchingProblem(
        np.eye(4, dtype=bool), edges((0, 1), (0, 2), (1, 3), (2, 3)), edges((0, 2), (2, 1), (1, 3))
    )
    result = match(problem, restarts=0)
    check(problem, result)
    assert result.pairs.tolist() == [[0, 0], [2, 2], [1, 1], [3, 3]]  # B says which branch of A comes first


def test_pairs_that_cross_are_not_both_chosen():
    problem = MatchingProblem(np.eye(2, dtype=bool)[::-1].copy(), chain(2), chain(2))
    result = match(problem)
    assert len(result.pairs) == 1 and result.bound == 2 and result.proven


def test_a_cycle_through_four_pairs_of_which_no_two_cross():
    problem = MatchingProblem(np.eye(4, dtype=bool), edges((0, 1), (2, 3)), edges((1, 2), (3, 0)))
    all_four = np.stack([np.arange(4)] * 2, 1)
    assert not acyclic(problem, all_four)
    assert all(acyclic(problem, np.delete(all_four, left, 0)) for left in range(4))
    for restarts in (0, 100):
        result = match(problem, restarts=restarts)
        check(problem, result)
        assert len(result.pairs) == 3 and result.bound == 4 and result.proven


@pytest.mark.parametrize("restarts", [0, 100])
def test_random_graphs_reach_the_optimum_of_all_subsets(restarts):
    random = np.random.default_rng(restarts)
    short = below = 0
    for _ in range(60):
        problem = random_problem(random, 3, 6, 0.4, 0.4)
        most, result = most_pairs(problem), match(problem, restarts=restarts)
        check(problem, result)
        assert result.proven and len(result.pairs) == most
        below += most < result.bound
        short += len(match(problem, restarts=0, time_limit=0).pairs) < most
    assert short > 5 and below > 5  # the first LCS and the bound alone would not have sufficed


@pytest.mark.parametrize("seed", [15, 19])
def test_branches_that_join_are_needed(seed):
    """Graphs in which neither the first LCS nor the orders alone lead to the optimum."""
    problem = random_problem(np.random.default_rng(seed), 8, 8, 0.3, 0.4)
    result = match(problem, restarts=0)
    check(problem, result)
    assert result.proven and len(result.pairs) == most_pairs(problem)


@pytest.mark.parametrize("seed", [15, 38])
def test_pairs_that_cross_only_through_what_was_joined(seed):
    problem = random_problem(np.random.default_rng(seed), 15, 15, 4 / 15, 0.3)
    results = [match(problem, restarts=restarts, seed=restarts) for restarts in (0, 100)]
    for result in results:
        check(problem, result)
        assert result.proven
    assert len(results[0].pairs) == len(results[1].pairs)


def test_larger_random_graphs():
    random = np.random.default_rng(3)
    for _ in range(8):
        problem = random_problem(random, 15, 25, 0.15, 0.25)
        result, other = match(problem), match(problem, restarts=0, seed=1)
        check(problem, result)
        assert result.proven and other.proven and len(result.pairs) == len(other.pairs)


def test_the_same_seed_gives_the_same_matching():
    problem = random_problem(np.random.default_rng(7), 20, 20, 0.2, 0.3)
    first, second = match(problem, seed=4), match(problem, seed=4)
    assert first.pairs.tolist() == second.pairs.tolist() and first[1:] == second[1:]


def test_without_time_nothing_is_claimed():
    """A chain against itself in reverse: all pairs cross, so the bound is far from the one pair that is possible."""
    problem = MatchingProblem(np.eye(9, dtype=bool), chain(9), chain(9)[:, ::-1].copy())
    hurried, result = match(problem, time_limit=0), match(problem)
    assert (len(hurried.pairs), hurried.bound, hurried.proven) == (1, 9, False)
    assert (len(result.pairs), result.bound, result.proven) == (1, 9, True)


def test_depths_by_hand():
    """A residual block with a short cut, and a second source that feeds its last vertex."""
    arcs = edges((0, 1), (1, 2), (2, 3), (0, 3), (3, 4), (5, 4))
    assert depths(arcs, 7) == pytest.approx([0, 1 / 4, 2 / 4, 1 / 2, 1, 0, 0])


def test_depth_decides_between_matchings_of_one_size():
    """One vertex that fits any of a chain of nine goes to the middle, where its own depth is."""
    compatible = np.zeros((3, 9), bool)
    compatible[1] = True
    result = match(MatchingProblem(compatible, chain(3), chain(9)))
    assert result.pairs.tolist() == [[1, 4]]


@pytest.mark.parametrize("depth_tiebreak", [0, 1e-3, 0.99])
def test_depth_never_costs_a_pair(depth_tiebreak):
    """One pair of equal depth stands against two that join a start with an end."""
    arcs, compatible = edges((0, 1), (2, 3)), np.zeros((4, 4), bool)
    compatible[[0, 0, 3], [0, 1, 0]] = True
    result = match(MatchingProblem(compatible, arcs, arcs), depth_tiebreak=depth_tiebreak)
    assert result.pairs.tolist() == [[3, 0], [0, 1]] and result.proven


def test_thinning_keeps_order_and_spread():
    problem = everything(101, 101, chain(101), chain(101))
    full = match(problem)
    assert len(full.pairs) == 101
    for count in (1, 2, 5, 20, 60, 100):
        thin = match(problem, max_matches=count)
        check(problem, thin)
        assert len(thin.pairs) == count and thin.bound == 101 and thin.proven
        gaps = np.diff(thin.pairs[:, 0], prepend=-1, append=101)
        assert (gaps >= 1).all() and gaps[1:-1].max(initial=0) <= 101 / count + 1 and gaps[[0, -1]].max() <= 51
    assert match(problem, max_matches=1).pairs.tolist() == [[50, 50]]
    assert match(problem, max_matches=500).pairs.tolist() == full.pairs.tolist()


def test_nothing_to_join():
    problem = MatchingProblem(np.zeros((3, 1), bool), chain(3), edges())
    result = match(problem, max_matches=2)
    assert result.pairs.shape == (0, 2) and result.bound == 0 and result.proven


def test_real_problems_reach_their_bound(real):
    problem, total = real
    start = time.process_time()
    result = match(problem)
    assert time.process_time() - start < 1
    check(problem, result)
    assert result.proven and len(result.pairs) == result.bound == total


def test_real_problems_are_nearer_in_depth_with_the_tie_break(real):
    problem, total = real
    d = [depths(*graph) for graph in zip((problem.edges_a, problem.edges_b), problem.compatible.shape, strict=True)]
    plain, near = match(problem, depth_tiebreak=0).pairs, match(problem).pairs
    apart = [abs(d[0][pairs[:, 0]] - d[1][pairs[:, 1]]).mean() for pairs in (plain, near)]
    assert len(plain) == len(near) == total
    assert apart == pytest.approx([0.201, 0.110] if total == 62 else [0.153, 0.058], abs=1e-3)


@pytest.mark.parametrize(
    ("arcs", "message"),
    [
        (edges((0, 1), (1, 2), (2, 0)), "cycle"),
        (edges((1, 1)), "cycle"),
        (edges((0, 3)), "outside 0 to 2"),
        (edges((-1, 0)), "outside"),
        (edges((0, 1)).astype(float), "integers"),
        (np.arange(3), "integers"),
    ],
)
def test_wrong_graphs_are_refused(arcs, message):
    good = np.ones((3, 3), bool)
    for sides, name in (((arcs, chain(3)), "A"), ((chain(3), arcs), "B")):
        with pytest.raises(ValueError, match=f"edges of {name} .*{message}"):
            MatchingProblem(good, *sides)


def test_pairs_that_are_no_truth_values_are_refused():
    with pytest.raises(ValueError, match="bool"):
        MatchingProblem(np.ones((3, 3)), chain(3), chain(3))
