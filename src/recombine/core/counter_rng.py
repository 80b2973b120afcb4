"""Addressed randomness: a number is looked up by (seed, epoch, sample index, stream), never drawn in sequence.

Resuming, world size, batch size and loader therefore cannot change it. The hash is splitmix64 (Steele, Lea, Flood,
"Fast splittable pseudorandom number generators", 2014; constants of Vigna's reference): each (seed, epoch, stream)
is folded into one 64-bit `key`, and sample `index` takes the generator's output number `index` from that state:

    bits = mix(key + (index + 1) * GAMMA)          uniform = (bits >> 11) * 2**-53

all modulo 2**64. These two lines in uint64 arithmetic are everything a compiled decoder has to restate.
"""

from __future__ import annotations

from typing import overload

import numpy as np
from torch import Tensor

__all__ = ["GAMMA", "MIX1", "MIX2", "bits", "key", "permutation", "uniform"]

GAMMA = 0x9E3779B97F4A7C15
MIX1 = 0xBF58476D1CE4E5B9
MIX2 = 0x94D049BB133111EB
_MASK = (1 << 64) - 1
_ORDER = -1  # the stream of `permutation`; augmentations take streams from 0 upwards


def key(seed: int, epoch: int, stream: int) -> int:
    """The 64-bit state of one (seed, epoch, stream) as a Python integer; any integers, negative ones included."""
    state = 0
    for part in (seed, epoch, stream):
        state = _mix_int(state + part + GAMMA)
    return state


@overload
def bits(seed: int, epoch: int, index: int, stream: int) -> int: ...
@overload
def bits(seed: int, epoch: int, index: np.ndarray, stream: int) -> np.ndarray: ...
@overload
def bits(seed: int, epoch: int, index: Tensor, stream: int) -> Tensor: ...
def bits(seed: int, epoch: int, index: int | np.ndarray | Tensor, stream: int) -> int | np.ndarray | Tensor:
    """64 random bits per sample: int -> int, array -> uint64 array, tensor -> int64 tensor with the same bit pattern.

    `index` holds integers of any shape; tensors stay on their device.
    """
    state = key(seed, epoch, stream)
    if isinstance(index, Tensor):
        return _mix_tensor((index.long() + 1) * _signed(GAMMA) + _signed(state))
    if isinstance(index, np.ndarray):
        return _mix_array((index.astype(np.uint64) + np.uint64(1)) * np.uint64(GAMMA) + np.uint64(state))
    return _mix_int(state + (int(index) + 1) * GAMMA)


@overload
def uniform(seed: int, epoch: int, index: int, stream: int) -> float: ...
@overload
def uniform(seed: int, epoch: int, index: np.ndarray, stream: int) -> np.ndarray: ...
@overload
def uniform(seed: int, epoch: int, index: Tensor, stream: int) -> Tensor: ...
def uniform(seed: int, epoch: int, index: int | np.ndarray | Tensor, stream: int) -> float | np.ndarray | Tensor:
    """Uniform float64 numbers in [0, 1) from the top 53 bits: exactly equal for int, array and tensor on any device."""
    value = bits(seed, epoch, index, stream)
    if isinstance(value, Tensor):
        return _shift(value, 11).double() * 2.0**-53
    if isinstance(value, np.ndarray):
        return (value >> np.uint64(11)).astype(np.float64) * 2.0**-53
    return (value >> 11) * 2.0**-53


def permutation(seed: int, epoch: int, n: int) -> np.ndarray:
    """The order of `n` samples in `epoch`: int64 [n], the ranks of their bits (independent of NumPy's version)."""
    return np.argsort(bits(seed, epoch, np.arange(n), _ORDER), kind="stable")


def _mix_int(z: int) -> int:
    z &= _MASK
    z = ((z ^ (z >> 30)) * MIX1) & _MASK
    z = ((z ^ (z >> 27)) * MIX2) & _MASK
    return z ^ (z >> 31)


def _mix_array(z: np.ndarray) -> np.ndarray:
    z = (z ^ (z >> np.uint64(30))) * np.uint64(MIX1)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(MIX2)
    return z ^ (z >> np.uint64(31))


def _mix_tensor(z: Tensor) -> Tensor:
    z = (z ^ _shift(z, 30)) * _signed(MIX1)
    z = (z ^ _shift(z, 27)) * _signed(MIX2)
    return z ^ _shift(z, 31)


def _shift(z: Tensor, by: int) -> Tensor:
    # int64 `>>` copies the sign bit; the mask makes it the logical shift of an unsigned number
    return (z >> by) & ((1 << (64 - by)) - 1)


def _signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value
