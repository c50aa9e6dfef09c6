"""Masks taken off a sum: secrets are put together of shares, and checked, for some of the shares may be false."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from federation.secure.circle import Participants
from fedrec.secure import keys
from fedrec.secure.keys import Agreed
from fedrec.secure.masks import common_masks, own_mask
from fedrec.secure.ring import Ring, Vector
from fedrec.secure.shamir import secret_of
from fedrec.wire.secure import Status

_TRIES = 200
"""Choices of shares, when the first one gives no secret; enough against a few false ones."""


class Held(NamedTuple):
    """A share, its number, and the place of who told it."""

    number: int
    share: NDArray[np.uint8]
    teller: int


def unmasked(
    total: Vector,
    ring: Ring,
    among: Participants,
    status: NDArray[np.uint8],
    told: Mapping[int, tuple[NDArray[np.uint8], NDArray[np.uint8]]],
    context: bytes,
) -> int:
    """Take all masks off a sum, in place; how many secrets could not be put together, without which it is of no use.

    Args:
        total: The sum of the parts of those who survived.
        ring: Its numbers.
        among: Who takes part.
        status: uint8 [participants], what has become of everybody.
        told: By place, of who has answered: of each of its neighbours which secret, uint8 [degree], and a share of it,
            uint8 [degree, bytes].
        context: Of the sum.

    Raises PacketError (`wrong_key`) if somebody has announced what is no key.
    """
    held: dict[int, list[Held]] = defaultdict(list)
    for place, (kinds, shares) in told.items():
        for at in np.flatnonzero((kinds == status[among.neighbours[place]]) & (kinds != Status.ABSENT)):
            held[int(among.neighbours[place, at])].append(Held(int(among.numbers[place, at]), shares[at], place))
    failed, suspects = 0, set[int]()
    for place in np.flatnonzero(status != Status.ABSENT).tolist():
        survived = status[place] == Status.SURVIVED
        right = _own_seed(among, place, context) if survived else _mask_seed(among, place)
        seed = _secret(held[place], among.size.graph.threshold, right, suspects)
        if seed is None:
            failed += 1
        elif survived:
            total.subtract(own_mask(ring, seed, context))
        else:
            left = [other for other in among.neighbours[place] if status[other] == Status.SURVIVED]
            total.add(common_masks(ring, Agreed(seed, context), [among.announced[other].mask for other in left]))
    return failed


def _own_seed(among: Participants, place: int, context: bytes) -> Callable[[bytes], bool]:
    return lambda seed: keys.commitment(seed, context) == among.commitments[place]


def _mask_seed(among: Participants, place: int) -> Callable[[bytes], bool]:
    return lambda seed: keys.public_of(seed) == among.announced[place].mask


def _secret(held: list[Held], threshold: int, right: Callable[[bytes], bool], suspects: set[int]) -> bytes | None:
    """The secret of which these are shares; of more than are needed some may be false.

    So many at a time are tried as are needed, drawn at random. Whose share does not go with the right ones is suspected
    from then on: it may have told a false one, or been given one, so that its shares of other secrets come last and are
    not left out.
    """
    if len(held) < threshold:
        return None
    held = sorted(held, key=lambda each: each.teller in suspects)
    numbers = np.array([each.number for each in held], dtype=np.int64)
    shares, rng = np.stack([each.share for each in held]), np.random.default_rng(0)
    for attempt in range(_TRIES if len(held) > threshold else 1):
        chosen = rng.permutation(len(held))[:threshold] if attempt else np.arange(threshold)
        if not right(seed := secret_of(numbers[chosen], shares[chosen])):
            continue
        if attempt:
            for other in set(range(len(held))) - set(chosen.tolist()):
                swapped = np.append(chosen[1:], other)
                if not right(secret_of(numbers[swapped], shares[swapped])):
                    suspects.add(held[other].teller)
        return seed
    return None
