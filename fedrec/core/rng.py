"""Randomness without global state: one seed tree, and counter-based draws that no layout can change.

Two kinds of draws are used. `generator` gives a sequential stream for things that are made once (an initial table). The
counter-based functions map coordinates such as (user key, step, position) to a number, each independently of all
others, so that a user's draws do not depend on which users are trained beside it, in which chunk, or on which node.

The mixing function is the finaliser of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014), applied once per coordinate.
"""

from __future__ import annotations

import hashlib
from operator import index
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)


Seed: TypeAlias = "int | NDArray[np.uint64]"
"""The seed of counter-based draws: a number, or one for each point (bits that were drawn before)."""


def derive(root: int, *path: str | int) -> int:
    """The 64-bit seed at `path` of the tree that grows from `root`: other paths are independent of it."""
    label = "/".join([str(index(root)), *map(_label, path)])
    return int.from_bytes(hashlib.blake2b(label.encode(), digest_size=8).digest(), "little")


def _label(step: str | int) -> str:
    """A step of a path so that no two paths are written alike; an integer of numpy is the same step as Python's."""
    if isinstance(step, str):
        return "str:" + step.replace("\\", "\\\\").replace("/", "\\/")
    return f"int:{index(step)}"


def generator(root: int, *path: str | int) -> torch.Generator:
    """A sequential generator of its own for the place `path` in the seed tree."""
    made = torch.Generator()
    made.manual_seed(derive(root, *path) & (2**63 - 1))
    return made


def _mix(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    values = (values ^ (values >> np.uint64(30))) * _MIX_1
    values = (values ^ (values >> np.uint64(27))) * _MIX_2
    return values ^ (values >> np.uint64(31))


def counter_bits(seed: Seed, *coordinates: ArrayLike) -> NDArray[np.uint64]:
    """64 random bits for every point of the broadcast integer `coordinates`; a pure function of seed and point.

    Bits may stand in the place of the seed: `counter_bits(counter_bits(seed, a), b)` is `counter_bits(seed, a, b)`, so
    that a coordinate which many points share is mixed once for all of them.
    """
    state: NDArray[np.uint64] = seed if isinstance(seed, np.ndarray) else np.array([seed], dtype=np.uint64)
    for coordinate in coordinates:
        point = np.asarray(coordinate).astype(np.uint64)
        state = _mix((state + _GOLDEN) ^ _mix(np.atleast_1d(point) + _GOLDEN))
    return state


def counter_uniform(seed: Seed, *coordinates: ArrayLike) -> NDArray[np.float64]:
    """Uniform draws in [0, 1) with 53 random bits, one for every point of the broadcast coordinates."""
    uniform: NDArray[np.float64] = (counter_bits(seed, *coordinates) >> np.uint64(11)).astype(np.float64) * 2.0**-53
    return uniform


def counter_integers(seed: Seed, bound: ArrayLike, *coordinates: ArrayLike) -> NDArray[np.int64]:
    """Uniform integers in [0, bound); `bound` broadcasts with the coordinates (the bias is below bound / 2**53)."""
    integers: NDArray[np.int64] = (counter_uniform(seed, *coordinates) * np.asarray(bound)).astype(np.int64)
    return integers


def element_uniform(bits: NDArray[np.uint64], places: torch.Tensor) -> torch.Tensor:
    """Uniform float32 draws in [0, 1) with 24 random bits, one for every place of a tensor.

    For numbers by the million, where `counter_uniform` would cost more than the work that they are for.

    Args:
        bits: uint64 [n], drawn before, one for each row of `places` (or one for all).
        places: int64 [n, ...], the element's number in its tensor; or int32, for it counts modulo 2**32.
    """
    words = torch.from_numpy(np.atleast_1d(bits).view(np.int32).reshape(-1, 2).copy()).to(places.device)
    low, high = (word.reshape(-1, *[1] * (places.ndim - 1)) for word in words.unbind(1))
    state = places.to(torch.int32) * -1640531535 + low  # 32-bit arithmetic wraps around; the constants are odd
    # In place: these are millions of numbers, and each pass over them counts.
    state.bitwise_xor_((state >> 15).bitwise_and_(0x1FFFF)).mul_(-2048144777).bitwise_xor_(high)
    state.bitwise_xor_((state >> 13).bitwise_and_(0x7FFFF)).mul_(-1028477379)
    state.bitwise_xor_((state >> 16).bitwise_and_(0xFFFF))
    return state.bitwise_and_(0xFFFFFF).float().mul_(2.0**-24)


def counter_normal(seed: int, *coordinates: ArrayLike) -> NDArray[np.float64]:
    """Standard normal draws (Box-Muller), one for every point of the broadcast coordinates."""
    radius = counter_uniform(derive(seed, "radius"), *coordinates)
    angle = counter_uniform(derive(seed, "angle"), *coordinates)
    normal: NDArray[np.float64] = np.sqrt(-2.0 * np.log1p(-radius)) * np.cos(2.0 * np.pi * angle)
    return normal
