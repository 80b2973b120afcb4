"""Fronts and hypervolumes against brute force, pymoo and small drawings."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pymoo.indicators.hv import HV

from recombine.stitch.pareto import dominates, front, hypervolume, normalized_hypervolumes

# few different values, so that many coordinates and some points are equal
points = st.integers(1, 30).flatmap(lambda n: arrays(float, (n, 2), elements=st.integers(0, 6)))


def test_a_front_by_hand():
    cloud = np.array([[3, 3], [1, 4], [2, 2], [4, 1], [2, 2], [1, 5], [5, 1]])
    assert front(cloud).tolist() == [1, 2, 3]


@settings(max_examples=60, deadline=None)
@given(points)
def test_a_front_is_what_nothing_dominates_each_point_once(cloud):
    kept = front(cloud)
    free = [p for p in cloud.tolist() if not any(q != p and q[0] <= p[0] and q[1] <= p[1] for q in cloud.tolist())]
    assert cloud[kept].tolist() == sorted(map(list, set(map(tuple, free))))
    assert all(i == cloud.tolist().index(cloud[i].tolist()) for i in kept), "of equal points the first"


@settings(max_examples=60, deadline=None)
@given(points)
def test_dominance_is_better_somewhere_and_worse_nowhere(cloud):
    found = dominates(cloud, cloud[:7])
    for i, (a, b) in enumerate(cloud):
        assert found[i].tolist() == [(a <= c and b <= d) and (a < c or b < d) for c, d in cloud[:7]]
    assert not dominates(cloud[front(cloud)], cloud[front(cloud)]).any()


def test_a_hypervolume_by_hand():
    """Three steps below (5, 5): 1 x 4, 2 x 1 and 1 x 1, counted without their overlaps."""
    cloud = np.array([[1.0, 4], [2, 2], [4, 1]])
    assert hypervolume(cloud, np.array([5.0, 5])) == (5 - 1) * (5 - 4) + (5 - 2) * (4 - 2) + (5 - 4) * (2 - 1)
    assert hypervolume(cloud, np.array([2.0, 5])) == 1
    assert hypervolume(cloud, np.array([1.0, 1])) == 0
    assert hypervolume(np.empty((0, 2)), np.array([5.0, 5])) == 0


@settings(max_examples=60, deadline=None)
@given(points, arrays(float, 2, elements=st.floats(0, 8)))
def test_hypervolume_is_that_of_pymoo(cloud, reference):
    assert hypervolume(cloud, reference) == pytest.approx(HV(ref_point=reference)(cloud), abs=1e-9)


def test_normalized_hypervolumes_by_hand():
    """Axes from -0.8 to -0.4 and from 10 to 50; the reference point is (-0.398, 50.2), the unit 0.404 x 40.4."""
    parents = np.array([[-0.4, 30.0], [-0.6, 50.0]])
    runs = [np.array([[-0.8, 40.0], [-0.5, 10.0]]), np.array([[-0.5, 30.0]]), np.empty((0, 2))]
    areas = [0.402 * 10.2 + 0.102 * 30, 0.102 * 20.2, 0]
    assert normalized_hypervolumes(runs, parents) == pytest.approx(np.array(areas) / (0.404 * 40.4))


@settings(max_examples=60, deadline=None)
@given(points, points)
def test_normalized_hypervolumes_do_not_depend_on_units(first, second):
    parents = np.array([[7.0, -1.0], [-1.0, 7.0]])
    volumes = normalized_hypervolumes([first, second], parents)
    moved = normalized_hypervolumes(
        *([p * [0.01, 1e9] + [-3, 1e8] for p in (first, second)],), parents * [0.01, 1e9] + [-3, 1e8]
    )
    assert moved == pytest.approx(volumes)
    assert (volumes >= 0).all() and (volumes < 1).all()


def test_equal_points_have_a_range():
    assert np.isfinite(normalized_hypervolumes([np.ones((2, 2))], np.ones((1, 2)))).all()
