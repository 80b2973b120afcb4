"""Mutual information against scikit-learn, the linkage tree against plain UPGMA."""

import numpy as np
import pytest
from sklearn.metrics import mutual_info_score, normalized_mutual_info_score

from recombine.stitch.search.linkage import linkage_tree, mutual_information


def population(count=200, seed=0):
    """Genes that follow each other more or less closely, a constant one, and outputs."""
    rng = np.random.default_rng(seed)
    base = rng.integers(0, 2, (count, 1))
    genes = np.where(rng.random((count, 7)) < np.linspace(0, 0.5, 7), rng.integers(0, 2, (count, 7)), base)
    outputs = (genes[:, 2] + rng.integers(0, 2, count))[:, None]
    return np.hstack([genes, np.zeros((count, 1), int), outputs]).astype(np.int8)


def test_mutual_information_against_scikit_learn():
    """Theirs is a = 2 I / (H(x) + H(y)). As H(x, y) = H(x) + H(y) - I, ours is I / H(x, y) = a / (2 - a)."""
    genes = population()
    ours = mutual_information(genes)
    for i in range(9):
        for j in range(9):
            if i == 7 or j == 7:
                assert ours[i, j] == 0, "nothing is known from a constant; theirs is 1 for two of them"
                continue
            theirs = normalized_mutual_info_score(genes[:, i], genes[:, j], average_method="arithmetic")
            assert ours[i, j] == pytest.approx(theirs / (2 - theirs), abs=1e-9)
    assert ours[0, 0] == pytest.approx(1)
    assert 0.1 < ours[8, 2] < 1 and mutual_info_score(genes[:, 8], genes[:, 2]) > 0.1, "three values count too"


def upgma(similarity):
    """Plainly: join the two sets with the least mean distance of their members, until one is left."""
    sets = [frozenset([i]) for i in range(len(similarity))]
    joined = set(sets)
    while len(sets) > 2:
        pairs = [(a, b) for i, a in enumerate(sets) for b in sets[:i]]
        one, other = max(pairs, key=lambda pair: np.mean([similarity[i, j] for i in pair[0] for j in pair[1]]))
        sets = [each for each in sets if each not in (one, other)] + [one | other]
        joined.add(sets[-1])
    return joined


@pytest.mark.parametrize("seed", range(5))
def test_the_tree_is_that_of_plain_upgma(seed):
    rng = np.random.default_rng(seed)
    similarity = rng.random((12, 12))
    similarity = (similarity + similarity.T) / 2
    tree = linkage_tree(similarity, rng)
    assert tree.shape == (22, 12) and (tree[:12].sum(1) == 1).all()
    assert {frozenset(np.flatnonzero(subset).tolist()) for subset in tree} == upgma(similarity)


def test_the_tree_of_a_population_joins_what_goes_together():
    genes = np.repeat(np.random.default_rng(0).integers(0, 2, (100, 3)), 2, axis=1).astype(np.int8)
    tree = linkage_tree(mutual_information(genes), np.random.default_rng(0))
    assert {(0, 1), (2, 3), (4, 5)} <= {tuple(np.flatnonzero(subset).tolist()) for subset in tree}


def test_ties_break_at_random():
    trees = [linkage_tree(np.zeros((6, 6)), np.random.default_rng(seed)) for seed in range(300)]
    pairs = {tuple(np.flatnonzero(subset)) for tree in trees for subset in tree if subset.sum() == 2}
    assert len(pairs) == 15, "any two genes may be joined first"
