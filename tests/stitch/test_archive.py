"""The archive against a brute-force filter."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from recombine.stitch.search.archive import Archive
from recombine.stitch.search.space import Individuals

clouds = st.integers(1, 40).flatmap(lambda n: arrays(float, (n, 2), elements=st.integers(0, 7)))


def individuals(objectives, accuracy=None):
    """With genotypes that number them."""
    objectives = np.array(objectives, float)
    count = len(objectives)
    genotypes = np.arange(count, dtype=np.int8)[:, None] * np.ones(3, np.int8)
    accuracy = np.ones(count) if accuracy is None else np.array(accuracy)
    return Individuals(genotypes, objectives, accuracy, np.ones((count, 3), bool), np.zeros(count, bool))


def beats(p, q):
    return p != q and p[0] <= q[0] and p[1] <= q[1]


@settings(max_examples=60, deadline=None)
@given(clouds, st.integers(0, 40))
def test_members_are_the_points_that_nothing_dominates(cloud, cut):
    archive, everyone = Archive(3), individuals(cloud)
    entered = [*archive.add(everyone.take(slice(0, cut))), *archive.add(everyone.take(slice(cut, None)))]
    seen = list(map(tuple, cloud))
    expected = [i for i, p in enumerate(seen) if p not in seen[:i] and not any(beats(q, p) for q in seen)]
    assert archive.members.genotypes[:, 0].tolist() == expected
    for mine, theirs in zip(archive.members, everyone.take(expected), strict=True):
        assert np.array_equal(mine, theirs)
    for i, p in enumerate(seen):
        assert entered[i] == (p not in seen[:i] and not any(beats(q, p) for q in seen[:i]))


def test_nothing_below_the_threshold_comes_in_or_stays():
    """But for the parents and their ensemble, which have no stitch: the first of these individuals."""
    archive = Archive(3)
    everyone = individuals([[1, 4], [2, 3], [3, 2], [4, 1]], [0.1, 0.2, 0.3, 0.4])
    assert everyone.genotypes[:, 0].tolist() == [0, 1, 2, 3]
    assert archive.add(everyone, 0.3).tolist() == [True, False, True, True]
    assert archive.add(everyone.take([1]), 0.3).tolist() == [False]
    archive.add(everyone.take([]), 0.4)
    assert archive.members.genotypes[:, 0].tolist() == [0, 3]
    archive.add(everyone.take([]), 0.5)
    assert archive.members.genotypes[:, 0].tolist() == [0]
