"""Users' opaque keys: how the server tells users apart without learning who they are."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from fedrec.core.rng import derive


def simulation_secret(seed: int) -> int:
    """The secret root of a simulation: derived from the public seed, for nothing is secret there, and runs repeat."""
    return derive(seed, "secret", "simulation")


def opaque_keys(secret: int, user_ids: Iterable[str]) -> NDArray[np.uint64]:
    """A stable key for each user (uint64 [users]) that says nothing about its id to who does not know `secret`."""
    root = secret.to_bytes(max(8, (secret.bit_length() + 7) // 8), "little")
    digests = [hmac.digest(root, user.encode(), "sha256")[:8] for user in user_ids]
    return np.frombuffer(b"".join(digests), dtype="<u8").astype(np.uint64)


def keys_digest(keys: NDArray[np.uint64]) -> str:
    """16 hexadecimal digits that name the users of a node and their order there."""
    return hashlib.blake2b(keys.astype("<u8").tobytes(), digest_size=8).hexdigest()
