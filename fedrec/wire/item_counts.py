"""How many users have each item, counted before the first round without anybody telling what it has.

Each user reports once, under local differential privacy, and only sums of reports are of use. A user's set is padded
with dummies to `max_items` (or, if it is larger, taken as it is), and one element is drawn from it: padding and
sampling (Qin et al., CCS 2016; Wang, Li and Jha, S&P 2018). What is drawn is reported as one bit an item by optimised
unary encoding (Wang et al., USENIX Security 2017): the bit of the drawn item is 1 with probability 1/2, every other
one with q = 1 / (e^epsilon + 1). Whatever two sets a user may have, any report is at most e^epsilon times as likely
from one as from the other. A user's report is a function of the secret root, its key, its set and the rules: asked
again, it says the same. About another set, or under other rules, its draws are others: two reports of the same draws
would differ just where an item was drawn. What such reports tell adds up, as their epsilons do.

`max_items` times the reports for an item, less what the noise adds, estimates the users who have it; a user of n items,
more than that, counts as max_items / n of a user for each. The estimates are noisy: for a large epsilon the standard
deviation is about `2 max_items sqrt(users) / e^(epsilon / 2)`. So they are shrunk towards their mean by the share of
their variance that is the noise's (the positive-part estimator of James and Stein towards the mean: Efron and Morris,
JASA 1973): where there is more noise than signal, all items count alike. It reads the sums alone and costs no privacy.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedrec.core.rng import counter_bits, counter_integers, counter_uniform, derive
from fedrec.core.tensors import TensorSpec
from fedrec.data.negatives import sorted_distinct
from fedrec.wire.packet import Kind, PacketFormat

COUNTS = "counts"
_KEPT = 0.5
"""Probability of a 1 for the item that was drawn."""
_BITS_AT_ONCE = 4_000_000


@dataclass(frozen=True)
class ItemCounting:
    """How items are counted.

    Attributes:
        max_items: What a user contributes at most, in items.
        epsilon: The local differential privacy of a user's whole report. None: no noise. Each user's set, or
            `max_items` of it at random, is added as it is; for simulations that measure what the noise costs.
    """

    max_items: int
    epsilon: float | None

    @property
    def flipped(self) -> float:
        """The probability q of a 1 for an item that was not drawn."""
        return 0.0 if self.epsilon is None else 1.0 / (math.exp(self.epsilon) + 1.0)


def report_sum(
    counting: ItemCounting,
    n_items: int,
    seed: int,
    keys: NDArray[np.uint64],
    offsets: NDArray[np.int64],
    items: NDArray[np.int64],
) -> NDArray[np.int32]:
    """The sum of the users' reports, int32 [n_items]; see `reports` for the arguments."""
    total = np.zeros(n_items, dtype=np.int32)
    for bits in reports(counting, n_items, seed, keys, offsets, items):
        total += bits.sum(axis=0, dtype=np.int32)
    return total


def reports(
    counting: ItemCounting,
    n_items: int,
    seed: int,
    keys: NDArray[np.uint64],
    offsets: NDArray[np.int64],
    items: NDArray[np.int64],
) -> Iterator[NDArray[np.bool_]]:
    """The users' reports, bool [some users, n_items], in order: each a function of seed, rules, key and own set.

    Args:
        counting: The rules.
        n_items: Size of the catalogue.
        seed: From the secret root.
        keys: uint64 [users].
        offsets: int64 [users + 1]; user u has `items[offsets[u]:offsets[u + 1]]`.
        items: Catalogue rows; one that stands twice for a user counts once.
    """
    at_once = max(1, _BITS_AT_ONCE // n_items)
    for start in range(0, len(keys), at_once):
        end = min(start + at_once, len(keys))
        owners = np.repeat(np.arange(end - start), np.diff(offsets[start : end + 1]))
        pairs = sorted_distinct(owners * n_items + items[offsets[start] : offsets[end]])
        make = _plain if counting.epsilon is None else _noised
        yield make(counting, n_items, seed, keys[start:end], pairs // n_items, pairs % n_items)


def _noised(
    counting: ItemCounting,
    n_items: int,
    seed: int,
    keys: NDArray[np.uint64],
    owners: NDArray[np.int64],
    items: NDArray[np.int64],
) -> NDArray[np.bool_]:
    seed = derive(seed, counting.max_items, str(counting.epsilon), n_items)
    sets = np.zeros(len(keys), dtype=np.uint64)
    np.add.at(sets, owners, counter_bits(derive(seed, "set"), items))
    keys = counter_bits(derive(seed, "user"), keys, sets)
    sizes = np.bincount(owners, minlength=len(keys))
    starts = np.cumsum(sizes) - sizes
    element = counter_integers(derive(seed, "element"), np.maximum(sizes, counting.max_items), keys)
    real = np.flatnonzero(element < sizes)  # the others have drawn a dummy, which no bit stands for
    drawn = items[starts[real] + element[real]]
    uniform = counter_uniform(derive(seed, "bit"), keys[:, None], np.arange(n_items)[None, :])
    bits: NDArray[np.bool_] = uniform < counting.flipped
    bits[real, drawn] = uniform[real, drawn] < _KEPT
    return bits


def _plain(
    counting: ItemCounting,
    n_items: int,
    seed: int,
    keys: NDArray[np.uint64],
    owners: NDArray[np.int64],
    items: NDArray[np.int64],
) -> NDArray[np.bool_]:
    """Without noise: of each user's items, at most the `max_items` that have the smallest numbers drawn for them."""
    order = np.lexsort((counter_uniform(derive(seed, "part"), keys[owners], items), owners))
    sizes = np.bincount(owners, minlength=len(keys))
    taken = np.arange(len(order)) - np.repeat(np.cumsum(sizes) - sizes, sizes) < counting.max_items
    bits = np.zeros((len(keys), n_items), dtype=np.bool_)
    bits[owners[taken], items[order][taken]] = True
    return bits


def estimate(counting: ItemCounting, total: NDArray[np.int64], users: int) -> NDArray[np.float64]:
    """Users per item, float64 [n_items], from the sum of `users` reports: unbiased, then shrunk; may be below 0."""
    if counting.epsilon is None:
        return total.astype(np.float64)
    q = counting.flipped
    scale = counting.max_items / (_KEPT - q)
    counts = (total - users * q) * scale
    noise = users * q * (1.0 - q) * scale**2
    spread, mean = float(counts.var()), float(counts.mean())
    signal = max(0.0, 1.0 - noise / spread) if spread > 0 else 0.0
    return np.asarray(mean + signal * (counts - mean))


def counts_format(n_items: int) -> PacketFormat:
    """Client to server, once: the sum of its users' reported items, and how many users; exact, whatever the codec."""
    from fedrec.codecs.float32 import Float32Codec, Float32Config

    return PacketFormat(
        Kind.COUNTS, {COUNTS: TensorSpec((n_items,), "int32")}, Float32Codec(Float32Config("float32")), 1
    )
