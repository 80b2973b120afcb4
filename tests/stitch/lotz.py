"""Leading ones, trailing zeros (Laumanns et al.), as a small search of the kind that stitched networks make.

Ones at the front earn accuracy, zeros at the end save cost. What lies between the first zero and the last one changes
nothing, as behind a switch that is off. The last gene adds to both: output 1 is always worse, output 2 trades half a
step of one for the other.
"""

import numpy as np

from recombine.stitch.search.space import Evaluations, Space


def space(bits, stitches=6.2, coarse=None):
    return Space(np.array([2] * bits + [3]), stitches, coarse)


def evaluate(genotypes):
    on, output = genotypes[:, :-1] == 1, genotypes[:, -1]
    bits = on.shape[1]
    ones, zeros = np.cumprod(on, 1).sum(1), np.cumprod(~on[:, ::-1], 1).sum(1)
    accuracy = (ones + np.array([0, -1, 0.5])[output] + 1) / (bits + 1.5)
    cost = bits - zeros + np.array([0, 1, 0.5])[output]
    active = np.ones(genotypes.shape, bool)
    active[:, :-1] = (np.arange(bits) <= ones[:, None]) | (np.arange(bits) >= bits - 1 - zeros[:, None])
    return Evaluations(np.stack([-accuracy, cost], 1), accuracy, active, np.ones(len(genotypes), bool))


def known_front(bits):
    """Every number of ones followed by zeros alone, with output 0 and 2: objectives [2 (bits + 1), 2], sorted."""
    ones = np.arange(2 * bits + 2) / 2
    return np.stack([-(ones + 1) / (bits + 1.5), ones], 1)[::-1]


def reference(bits):
    """A point for hypervolumes that everything of use dominates."""
    return np.array([0.0, bits + 1.0])
