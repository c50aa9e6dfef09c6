"""Shamir's secret sharing of short secrets, byte by byte over the field of 256 elements.

A secret of b bytes is b polynomials of degree threshold - 1 with random coefficients, whose constants are its bytes;
share number x has their values at x, for x = 1, 2, ... (Shamir, CACM 1979). Any `threshold` shares give the secret, and
fewer say nothing of it. The field is that of AES, its products are looked up in tables of logarithms, and all bytes of
all shares are worked out at once.
"""

from __future__ import annotations

import secrets

import numpy as np
from numpy.typing import NDArray

MOST_SHARES = 255
"""The field has no more points."""

_POLYNOMIAL = 0x11B
_GENERATOR = 3


def _tables() -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    powers, logs, value = np.zeros(510, dtype=np.uint8), np.zeros(256, dtype=np.int64), 1
    for exponent in range(255):
        powers[exponent] = powers[exponent + 255] = value
        logs[value] = exponent
        doubled = value << 1
        value ^= doubled ^ (_POLYNOMIAL if doubled & 0x100 else 0)  # times 3
    return powers, logs


_POWERS, _LOGS = _tables()


def product(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The product in the field, element by element; the arguments broadcast."""
    found: NDArray[np.uint8] = np.where((a == 0) | (b == 0), np.uint8(0), _POWERS[_LOGS[a] + _LOGS[b]])
    return found


def shares(secret: bytes, threshold: int, count: int) -> NDArray[np.uint8]:
    """The shares 1 to `count` of a secret, uint8 [count, len(secret)], any `threshold` of which give it.

    Raises ValueError if there cannot be so many, or fewer than the threshold are asked for.
    """
    if not 1 <= threshold <= count <= MOST_SHARES:
        raise ValueError(f"{threshold} of {count} shares: expected 1 <= threshold <= count <= {MOST_SHARES}")
    points = np.arange(1, count + 1, dtype=np.uint8)[:, None]
    random = np.frombuffer(secrets.token_bytes((threshold - 1) * len(secret)), dtype=np.uint8)
    values = np.zeros((count, len(secret)), dtype=np.uint8)
    for coefficients in random.reshape(threshold - 1, len(secret)):  # Horner's rule, from the highest power on
        values = product(values ^ coefficients, points)
    return values ^ np.frombuffer(secret, dtype=np.uint8)


def secret_of(numbers: NDArray[np.int64], held: NDArray[np.uint8]) -> bytes:
    """The secret of some shares: the value at 0 of the polynomials of least degree through them.

    Args:
        numbers: int64 [n], the shares' numbers, all different, from 1 on; as many as the threshold says, or more.
        held: uint8 [n, bytes], the shares.

    Raises ValueError if the numbers are not those of different shares.
    """
    n = len(numbers)
    if not n or len(np.unique(numbers)) < n or numbers.min() < 1 or numbers.max() > MOST_SHARES:
        raise ValueError(f"shares are numbered 1 to {MOST_SHARES}, each once: {numbers.tolist()[:10]}")
    points = numbers.astype(np.uint8)
    logs = _LOGS[points]
    differences = _LOGS[points[:, None] ^ points[None, :]]  # of a point to itself it is 0, as the logarithm of 1
    weights = (logs.sum() - logs - differences.sum(1)) % 255
    secret: NDArray[np.uint8] = np.bitwise_xor.reduce(product(held, _POWERS[weights][:, None]), axis=0)
    return secret.tobytes()
