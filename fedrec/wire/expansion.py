"""What users with items in common tell each other of themselves, through a server that is told neither.

After the graph expansion of FedPerGNN (Wu et al., Nature Communications 2022). In an exchange each device sends up one
vector of its user, clipped and noised, and a tag for each of some of its items: a keyed hash, with a key that the
devices share and the server is not given. The server adds up the vectors of those who sent the same tag and sends each
device one vector down: the sum, over its own tags, of the mean of what all who share a tag sent, its own share taken
out. Nobody is told a single vector, a tag of somebody else's, or how many share one.

**What is protected.** The vector: whatever two a user may have, any that is sent is at most e^epsilon times as likely
from one as from the other (Laplace noise after clipping in the L1 norm). That holds for one exchange; k of them cost
k epsilon. In the exchange the number of items too: every device sends equally many tags, dummies among them (its
updates state that number all the same). And a tag of fewer than `sharers` users gives nobody anything.

**What is not.** The server sees every noised vector beside its user's pseudonym, and the tags as they are: how many
users have an item that it cannot name, and which users have the same ones. Popularity that it knows from elsewhere
names the most popular items, and the pattern of who shares what may name more. Who has the key, one curious device is
enough, and sees what the server sees, can name every item. A server may make up users, and is believed when it says
that a round has come: devices hold it to multiples of `every`, no more. The noise is in floating point, and drawn by
counter (`fedrec.core.rng`), not by a cipher.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fedrec.core.rng import counter_bits, counter_uniform, derive
from fedrec.data.negatives import sorted_distinct

_LARGEST_DRAW = 53 * math.log(2)
"""Of an exponential draw from 53 random bits."""
_ROUNDING = 1.0001
"""Room for what float32 may add to a bound."""


@dataclass(frozen=True)
class Expansion:
    """The rules of the exchange.

    Attributes:
        every: Rounds between two exchanges.
        items: Tags that a device sends: its items, at most so many, and dummies.
        sharers: Users who have to send a tag before it gives anybody anything.
        clip: L1 norm to which a user's vector is cut.
        epsilon: The local differential privacy of a vector in one exchange. None: no noise, simulation only.
    """

    every: int
    items: int
    sharers: int
    clip: float
    epsilon: float | None

    def due(self, round: int, rounds: int) -> bool:
        """Whether there is an exchange after `round` of `rounds`: not after the last."""
        return round < rounds and round % self.every == 0

    @property
    def noise(self) -> float:
        """The scale of the Laplace noise in every number: two vectors may be twice the clip apart."""
        return 0.0 if self.epsilon is None else 2.0 * self.clip / self.epsilon

    @property
    def largest(self) -> float:
        """What no number of a vector that was sent can exceed: every draw has a bound."""
        return _ROUNDING * (self.clip + self.noise * _LARGEST_DRAW)


class Drawn(NamedTuple):
    """The items with which users take part.

    Attributes:
        owners: int64 [items], whose each is, by position among the users.
        items: int64 [items], catalogue rows.
        sizes: int64 [users], how many different items a user has.
        taken: int64 [users], with how many of them it takes part.
    """

    owners: NDArray[np.int64]
    items: NDArray[np.int64]
    sizes: NDArray[np.int64]
    taken: NDArray[np.int64]


def draw_items(
    most: int, n_items: int, seed: int, keys: NDArray[np.uint64], offsets: NDArray[np.int64], items: NDArray[np.int64]
) -> Drawn:
    """Of each user's different items, at most the `most` that have the smallest numbers drawn for them.

    Asked again, a user takes part with the same ones.

    Args:
        most: Of a user.
        n_items: Size of the catalogue.
        seed: From the secret root.
        keys: uint64 [users].
        offsets: int64 [users + 1]; user u has `items[offsets[u]:offsets[u + 1]]`.
        items: Catalogue rows; one that stands twice for a user counts once.
    """
    pairs = sorted_distinct(np.repeat(np.arange(len(keys)), np.diff(offsets)) * n_items + items)
    owners, rows = pairs // n_items, pairs % n_items
    sizes = np.bincount(owners, minlength=len(keys))
    order = np.lexsort((counter_uniform(derive(seed, "part"), keys[owners], rows), owners))
    first = np.arange(len(order)) - np.repeat(np.cumsum(sizes) - sizes, sizes) < most
    return Drawn(owners[first], rows[order][first], sizes, np.minimum(sizes, most))


def make_tags(
    expansion: Expansion, drawn: Drawn, key: bytes, secret: bytes, run: str, keys: NDArray[np.uint64]
) -> NDArray[np.int64]:
    """The users' tags, int64 [users, items], ascending: of their items, and of dummies that nobody else has.

    Args:
        expansion: The rules.
        drawn: The items.
        key: Shared by all devices, unknown to the server.
        secret: Of this device alone.
        run: Names the run: in another one the same items have other tags.
        keys: uint64 [users].
    """
    rows: list[int] = np.unique(drawn.items).tolist()
    tag_of = dict(zip(rows, _hashes(key, run, rows), strict=True))
    tags = np.zeros((len(keys), expansion.items), dtype=np.int64)
    place = np.arange(len(drawn.items)) - np.repeat(np.cumsum(drawn.taken) - drawn.taken, drawn.taken)
    tags[drawn.owners, place] = [tag_of[item] for item in drawn.items.tolist()]
    for user in np.flatnonzero(drawn.taken < expansion.items).tolist():
        numbers = range(int(drawn.taken[user]), expansion.items)
        tags[user, drawn.taken[user] :] = _hashes(secret, f"{run} dummy {keys[user]}", numbers)
    tags.sort(axis=1)  # in the order of the items they would tell more than whose they are
    return tags


def _hashes(key: bytes, about: str, numbers: Iterable[int]) -> list[int]:
    """64-bit keyed hashes of numbers in a context."""
    digests = (hashlib.blake2b(f"{about} {number}".encode(), digest_size=8, key=key).digest() for number in numbers)
    return [int.from_bytes(digest, "little", signed=True) for digest in digests]


def protected(
    expansion: Expansion, vectors: NDArray[np.float64], seed: int, keys: NDArray[np.uint64]
) -> NDArray[np.float32]:
    """The users' vectors [users, width] as they are sent: cut to the clip, with noise from (seed, key, place).

    The same noise must not be used for two vectors of a user: they would tell how they differ.
    """
    norms = np.abs(vectors).sum(axis=1, keepdims=True)
    cut = vectors * (expansion.clip / np.maximum(norms, expansion.clip))
    places = keys[:, None], np.arange(vectors.shape[1])[None, :]
    size = -np.log1p(-counter_uniform(derive(seed, "size"), *places))
    sign = np.where(counter_bits(derive(seed, "sign"), *places) >> np.uint64(63), 1.0, -1.0)
    sent: NDArray[np.float32] = (cut + expansion.noise * sign * size).astype(np.float32)
    return sent


def around(expansion: Expansion, vectors: NDArray[np.float32], tags: NDArray[np.int64]) -> NDArray[np.float32]:
    """What the server tells each user of the others, float32 [users, width].

    For each of a user's tags that at least `sharers` users sent: the sum of the others' vectors, divided by how many
    sent it, the user included. Worked out in float64 in the order of the users.

    Args:
        expansion: The rules.
        vectors: [users, width], as they were sent.
        tags: int64 [users, items], ascending for each user.
    """
    _, place, counts = np.unique(tags, return_inverse=True, return_counts=True)
    shared = counts >= expansion.sharers
    number = np.where(shared, np.cumsum(shared) - 1, -1)
    place = number[place.reshape(tags.shape)]  # of the tags that count, among these; -1 for the others
    sharing = counts[shared].astype(np.float64)
    own = vectors.astype(np.float64)
    sums, told = np.zeros((len(sharing), own.shape[1])), np.zeros_like(own)
    for column in place.T:  # one of each user's at a time: all at once would be as many copies of the vectors
        users = np.flatnonzero(column >= 0)
        np.add.at(sums, column[users], own[users])
    for column in place.T:
        users = np.flatnonzero(column >= 0)
        told[users] += (sums[column[users]] - own[users]) / sharing[column[users], None]
    return told.astype(np.float32)
