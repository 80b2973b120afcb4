"""Which genes belong together: mutual information and the linkage tree."""

from __future__ import annotations

from itertools import product

import numpy as np
from scipy.cluster.hierarchy import linkage
from scipy.spatial.distance import squareform
from scipy.special import entr

__all__ = ["linkage_tree", "mutual_information"]


def mutual_information(genotypes: np.ndarray) -> np.ndarray:
    """NMI(x, y) = (H(x) + H(y)) / H(x, y) - 1 of all pairs of genes of genotypes [n, L]: [L, L] in 0..1.

    0 where neither gene varies. It is I / H(x, y), the mutual information as a fraction of the joint entropy.
    """
    count = len(genotypes)
    terms = entr(np.arange(count + 1) / count)
    occurs = [(genotypes == value).astype(np.float32) for value in range(genotypes.max() + 1)]  # exact below 2^24
    joint = sum(terms[(one.T @ other).astype(int)] for one, other in product(occurs, repeat=2))
    single = joint.diagonal()
    ratio = np.divide(single[:, None] + single, joint, out=np.ones_like(joint), where=joint > 0)
    return (ratio - 1).clip(0, 1)


def linkage_tree(similarity: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Subsets of genes, bool [2 L - 2, L], from average linkage (UPGMA) of 1 - similarity [L, L], the root left out.

    Single genes come first, then subsets as they merge. Genes are shuffled before, so that ties are broken at random.
    """
    length = len(similarity)
    order = rng.permutation(length)
    distance = 1 - similarity[np.ix_(order, order)]
    np.fill_diagonal(distance, 0)
    merges = linkage(squareform(distance, checks=False), "average")[:, :2].astype(int)
    subsets = np.zeros((2 * length - 1, length), bool)
    subsets[np.arange(length), order] = True
    for i, (one, other) in enumerate(merges, length):
        subsets[i] = subsets[one] | subsets[other]
    return subsets[:-1]
