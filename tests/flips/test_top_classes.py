"""The classes that hold most of a count, against worked examples and a loop."""

import numpy as np

from recombine.flips.top_classes import count_top_classes, select_top_classes

GOLDEN = np.array([5, 3, 1, 1, 0])


def test_golden_top_classes():
    assert [int(count_top_classes(GOLDEN, p)) for p in (2, 5, 20, 50, 80, 100)] == [1, 1, 1, 1, 2, 4]
    assert count_top_classes(np.zeros(3, int), 50) == 0


def test_legacy_counts_one_class_more():
    assert [int(count_top_classes(GOLDEN, p, legacy=True)) for p in (2, 50, 80, 100)] == [2, 2, 3, 5]
    assert count_top_classes([0, 4], 100, legacy=True) == 2
    assert count_top_classes([1, 1], 100, legacy=True) == 2, "never more classes than there are"


def test_top_classes_by_a_loop():
    rng = np.random.default_rng(0)
    counts = rng.integers(0, 9, (20, 30))
    for percent in (2, 5, 20, 50, 100):
        for row, found in zip(counts, count_top_classes(counts, percent), strict=True):
            held, expected = 0, 0
            for count in sorted(row.tolist(), reverse=True):
                if held * 100 >= percent * row.sum():
                    break
                held, expected = held + count, expected + 1
            assert found == expected


def test_equal_counts_are_taken_as_by_the_authors_with_legacy():
    """Their code reverses an ascending order: the higher label first."""
    counts = [3, 9, 3, 3]
    assert select_top_classes(counts, 60).tolist() == [1, 0]
    authors = np.argsort(counts, kind="stable")[::-1]
    assert select_top_classes(counts, 60, legacy=True).tolist() == authors[:3].tolist() == [1, 3, 2]


def test_holders_name_the_classes():
    assert select_top_classes([1, 5, 0, 5, 3], 80).tolist() == [1, 3, 4]
    assert select_top_classes([0, 0], 50).tolist() == []
