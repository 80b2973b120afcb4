"""The hash against published outputs, a slow Python twin, and the three array libraries against each other."""

import numba
import numpy as np
import pytest
import torch
from scipy import stats

from recombine.core import counter_rng as addressed
from recombine.core.counter_rng import GAMMA, MIX1, MIX2, bits, key, permutation, uniform

# splitmix64 from state 1234567, first five outputs (the reference implementation's test vector)
PUBLISHED = [
    6457827717110365317,
    3203168211198807973,
    9817491932198370423,
    4593380528125082431,
    16408922859458223821,
]


@numba.njit
def restated(state, index):
    """What a compiled decoder does."""
    out = np.empty(len(index), np.float64)
    for i in range(len(index)):
        z = state + (np.uint64(index[i]) + np.uint64(1)) * np.uint64(GAMMA)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(MIX1)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(MIX2)
        z = z ^ (z >> np.uint64(31))
        out[i] = np.float64(z >> np.uint64(11)) * 2.0**-53
    return out


def test_published_outputs(monkeypatch):
    monkeypatch.setattr(addressed, "key", lambda *_: 1234567)
    assert [bits(0, 0, i, 0) for i in range(5)] == PUBLISHED
    assert bits(0, 0, np.arange(5), 0).tolist() == PUBLISHED


@pytest.mark.parametrize("address", [(0, 0, 0), (1, 5, 3), (-7, 123456, 2), (2**63 + 11, 0, -1)])
def test_python_numpy_torch_numba_agree_exactly(address):
    seed, epoch, stream = address
    index = np.concatenate([np.arange(500), [10**6, 2**31, 2**40 + 1]])
    as_array = bits(seed, epoch, index, stream)
    assert as_array.tolist() == [bits(seed, epoch, int(i), stream) for i in index]
    assert np.array_equal(bits(seed, epoch, torch.from_numpy(index), stream).numpy().view(np.uint64), as_array)
    numbers = uniform(seed, epoch, index, stream)
    assert numbers.dtype == np.float64
    assert numbers.tolist() == [uniform(seed, epoch, int(i), stream) for i in index]
    assert np.array_equal(uniform(seed, epoch, torch.from_numpy(index), stream).numpy(), numbers)
    with np.errstate(over="ignore"):  # scalars warn where numba's compiler is switched off
        assert np.array_equal(restated(np.uint64(key(seed, epoch, stream)), index), numbers)


@pytest.mark.gpu
def test_cuda_agrees_exactly():
    index = torch.arange(100_000)
    assert torch.equal(uniform(3, 1, index.cuda(), 2).cpu(), uniform(3, 1, index, 2))


def test_shapes_and_index_types():
    index = torch.arange(12).reshape(3, 4)
    assert uniform(0, 0, index, 0).shape == (3, 4)
    assert torch.equal(bits(0, 0, index.int(), 0), bits(0, 0, index, 0))
    assert np.array_equal(bits(0, 0, np.arange(4, dtype=np.int32), 0), bits(0, 0, np.arange(4, dtype=np.uint64), 0))


def test_uniform_is_uniform_and_addresses_are_independent():
    index = np.arange(5_000)
    columns = [uniform(s, e, index, t) for s in range(5) for e in range(5) for t in range(5)]
    assert np.min(columns) >= 0 and np.max(columns) < 1
    # one key in a hundred looks unlikely by chance, so the p-values of all keys must be uniform themselves
    p_values = [stats.kstest(column, "uniform").pvalue for column in columns]
    assert stats.kstest(p_values, "uniform").pvalue > 1e-2
    pairs = np.corrcoef(columns)[np.triu_indices(len(columns), 1)] * np.sqrt(len(index))
    assert abs(pairs.mean()) < 0.05 and 0.95 < pairs.std() < 1.05
    assert len({key(s, e, t) for s in range(20) for e in range(20) for t in range(20)}) == 8000


def test_permutation_is_complete_pure_and_moves_with_the_epoch():
    first = permutation(0, 0, 1000)
    assert first.dtype == np.int64 and np.array_equal(np.sort(first), np.arange(1000))
    assert np.array_equal(first, permutation(0, 0, 1000))
    assert (first == permutation(0, 1, 1000)).mean() < 0.02
    assert (permutation(0, 1, 1000) == permutation(1, 0, 1000)).mean() < 0.02
    assert permutation(0, 0, 0).shape == (0,)


def test_permutation_is_fair():
    # the sample in first place over many epochs: chi-square against the uniform distribution
    first = [permutation(5, epoch, 10)[0] for epoch in range(5000)]
    assert stats.chisquare(np.bincount(first, minlength=10)).pvalue > 1e-3
