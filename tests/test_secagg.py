"""The parts of a secure sum by themselves: the graph, shares of secrets, keys, and the ring."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from exchanges.secure import noised_users
from federation.secure.circle import _numbers
from federation.secure.unmasking import Held, _secret
from fedrec.core.errors import FederationError, PacketError
from fedrec.core.tensors import Spec, TableSpec, TensorSpec
from fedrec.secure import keys
from fedrec.secure.graph import Graph, graph_of, neighbours
from fedrec.secure.keys import Agreed, Announced
from fedrec.secure.ring import Ring, width
from fedrec.secure.shamir import product, secret_of, shares

SPEC: Spec = {"b": TensorSpec((3,)), "a": TableSpec((5, 2))}


@pytest.mark.parametrize(("participants", "degree", "threshold"), [(604, 48, 26), (6040, 58, 31), (100_000, 64, 34)])
def test_degree_and_threshold_are_those_of_the_bound(participants: int, degree: int, threshold: int) -> None:
    """Golden values: 10 % corrupt and 10 % lost, 2**-40 that a secret is known and 2**-30 that one is lost."""
    assert graph_of(participants, 0.1, 0.1, lying=False) == Graph(degree, threshold)


@pytest.mark.parametrize("lying", [False, True])
@pytest.mark.parametrize("participants", [3, 4, 8, 9, 25, 40])
def test_among_few_everybody_is_a_neighbour_and_nothing_is_left_to_chance(participants: int, lying: bool) -> None:
    degree, threshold = graph_of(participants, 0.1, 0.1, lying=lying)
    bad, lost = math.ceil(0.1 * participants), participants // 10
    assert degree == participants - 1
    assert threshold <= degree - lost, "who stays is enough"
    assert (2 * threshold - degree if lying else threshold) > bad, "who is corrupt is not"


def test_a_share_of_participants_is_counted_to_the_side_of_caution() -> None:
    """0.29 times 100 is 28.999... of a machine; of a part of one participant there is one that may be corrupt."""
    assert graph_of(100, 0.29, 0.0, lying=True).threshold == (99 + 29) // 2 + 1
    assert graph_of(4, 0.01, 0.0, lying=True) == graph_of(4, 0.0, 0.0, lying=True) == Graph(3, 3)


def test_where_the_server_may_lie_everybody_is_a_neighbour_or_there_is_no_sum() -> None:
    """Or else it could make rolls until one gives somebody the neighbours it likes."""
    assert graph_of(256, 0.1, 0.1, lying=True).degree == 255
    assert graph_of(257, 0.1, 0.1, lying=False).degree < 255
    with pytest.raises(FederationError, match="have at most 256 participants"):
        graph_of(257, 0.1, 0.1, lying=True)


@pytest.mark.parametrize(
    ("participants", "corrupt", "dropouts", "lying"),
    [(2, 0.0, 0.0, True), (6, 0.4, 0.4, True), (5000, 0.45, 0.45, False)],
)
def test_what_no_graph_can_do_is_refused(participants: int, corrupt: float, dropouts: float, lying: bool) -> None:
    with pytest.raises(FederationError, match="no graph"):
        graph_of(participants, corrupt, dropouts, lying=lying)


def test_neighbours_are_mutual_and_follow_from_the_roll_alone() -> None:
    roll = np.sort(np.random.default_rng(0).integers(0, 256, (60, 16)).astype(np.uint8), axis=0)
    found = neighbours(roll, 8)
    assert all(len(set(mine)) == 8 and own not in mine for own, mine in enumerate(found.tolist()))
    assert all(own in found[other] for own in range(60) for other in found[own])
    assert (found == neighbours(roll.copy(), 8)).all()
    roll[7, 15] ^= 1
    assert (found != neighbours(roll, 8)).any()


def slow_product(a: int, b: int) -> int:
    """Russian peasants' multiplication, modulo the polynomial of AES."""
    found = 0
    while b:
        found ^= a if b & 1 else 0
        a = (a << 1) ^ (0x11B if a & 0x80 else 0)
        b >>= 1
    return found


def test_products_in_the_field_are_those_of_polynomials() -> None:
    every = np.arange(256, dtype=np.uint8)
    expected = [[slow_product(a, b) for b in range(256)] for a in range(256)]
    assert (product(every[:, None], every[None, :]) == np.array(expected)).all()


@settings(max_examples=30, deadline=None)
@given(st.binary(min_size=1, max_size=20), st.integers(1, 12), st.integers(0, 8), st.randoms(use_true_random=False))
def test_any_shares_that_are_enough_give_the_secret(secret: bytes, threshold: int, more: int, random: object) -> None:
    held = shares(secret, threshold, threshold + more)
    chosen = np.array(random.sample(range(threshold + more), threshold))  # type: ignore[attr-defined]
    assert secret_of(chosen + 1, held[chosen]) == secret
    assert secret_of(np.arange(1, threshold + more + 1), held) == secret


def test_fewer_shares_say_nothing() -> None:
    """One share less and any secret is as likely: each goes with exactly one value of the missing share."""
    held = shares(b"\x2a", 3, 3)
    numbers = np.array([1, 2, 3])
    found = {secret_of(numbers, np.array([held[0], held[1], [value]], np.uint8)) for value in range(256)}
    assert len(found) == 256


def test_false_shares_are_got_round_wherever_they_lie_and_who_told_them_comes_last() -> None:
    secret, suspects = b"sixteen bytes of", set[int]()
    told = shares(secret, 26, 48)
    told[[0, 24, 40]] ^= 1
    held = [Held(number + 1, share, 100 + number) for number, share in enumerate(told)]
    assert _secret(held, 26, secret.__eq__, suspects) == secret
    assert suspects == {100, 124, 140}
    tried = []

    def right(seed: bytes) -> bool:
        tried.append(seed)
        return seed == secret

    assert _secret(held, 26, right, suspects) == secret
    assert len(tried) == 1, "at the first try, the second time"
    assert _secret(held[:25], 26, right, suspects) is None
    told[:] ^= 1
    assert _secret(held, 26, right, suspects) is None, "of shares that are all false nothing comes, and that soon"


def test_everybody_knows_by_which_number_it_is_known() -> None:
    found = neighbours(np.sort(np.random.default_rng(0).integers(0, 256, (150, 16)).astype(np.uint8), axis=0), 8)
    numbers = _numbers(found)
    assert all(found[other, numbers[own, at] - 1] == own for own in range(150) for at, other in enumerate(found[own]))


@pytest.mark.parametrize("numbers", [[], [1, 1], [0, 1], [1, 256]])
def test_shares_with_numbers_that_cannot_be_are_refused(numbers: list[int]) -> None:
    with pytest.raises(ValueError, match="numbered"):
        secret_of(np.array(numbers, dtype=np.int64), np.zeros((len(numbers), 4), np.uint8))
    with pytest.raises(ValueError, match="shares"):
        shares(b"x", 3, 256)


def test_two_agree_on_a_key_and_on_nothing_in_another_sum_or_for_another_purpose() -> None:
    seeds, context = [keys.new_seed() for _ in range(2)], keys.context_of("run", 0, 1)
    here, there = (Agreed(seed, context) for seed in seeds)
    publics = [keys.public_of(seed) for seed in seeds]
    assert here.key(publics[1], "mask") == there.key(publics[0], "mask")
    assert here.adds(publics[1]) is not there.adds(publics[0])
    others = [here.key(publics[1], "seal"), Agreed(seeds[0], keys.context_of("run", 0, 2)).key(publics[1], "mask")]
    others += [Agreed(seeds[0], keys.context_among(context, roll)).key(publics[1], "mask") for roll in (b"a", b"b")]
    assert len({here.key(publics[1], "mask"), *others}) == 5, "nor among those on another roll"
    with pytest.raises(PacketError, match="no X25519 key"):
        here.key(bytes(32), "mask")


def test_what_is_announced_is_signed_for_one_sum() -> None:
    context = keys.context_of("run", 0, 1)
    line = keys.announced(Ed25519PrivateKey.generate(), keys.new_seed(), keys.new_seed(), 7, context)
    again = Announced.unpacked(line.packed())
    assert again == line
    again.require_signed(context)
    forged = [line._replace(users=8), line._replace(mask=line.channel), line._replace(identity=bytes(32))]
    for other, where in [*((each, context) for each in forged), (line, keys.context_of("run", 0, 2))]:
        with pytest.raises(PacketError, match="is not signed"):
            other.require_signed(where)


@pytest.mark.parametrize("which", ["channel", "mask"])
@pytest.mark.parametrize(
    "number",
    [
        0,
        1,
        2**255 - 20,
        0x00B8495F16056286FDB1329CEB8D09DA6AC49FF1FAE35616AEB8413B7C7AEBE0,
        0x57119FD0DD4E22D8868E1C58C45C44045BEF839C55B1D0B1248C50A3BC959C5F,
    ],
)
def test_keys_of_low_order_are_none(which: str, number: int) -> None:
    """The points of order 1, 2, 4 and 8: of RFC 7748's curve, on which every secret comes to zero with them."""
    line = keys.announced(Ed25519PrivateKey.generate(), keys.new_seed(), keys.new_seed(), 7, b"")
    line.require_keys()
    with pytest.raises(PacketError, match="no X25519 key"):
        line._replace(**{which: number.to_bytes(32, "little")}).require_keys()


def test_what_is_sealed_opens_with_its_key_alone_and_unchanged() -> None:
    key = keys.stream(bytes(32), 32)
    box = keys.sealed(b"share", key)
    assert keys.opened(box, key) == b"share"
    assert keys.opened(box, bytes(32)) is None
    assert keys.opened(box[:-1] + bytes([box[-1] ^ 1]), key) is None


@settings(max_examples=40, deadline=None)
@given(st.integers(4, 62), st.integers(1, 6), st.integers(0, 2**32))
def test_parts_add_up_to_the_sum_to_the_bit(bits: int, users: int, seed: int) -> None:
    """The oracle: whole numbers of Python."""
    rng = np.random.default_rng(seed)
    ring, most = Ring(SPEC, 2, bits), 2 ** (bits - 1) // users
    total = ring.zeros()
    expected = {name: torch.zeros(entry.shape, dtype=torch.int64) for name, entry in SPEC.items()}
    for _ in range(users):
        part = {name: torch.from_numpy(rng.integers(-most, most, entry.shape)) for name, entry in SPEC.items()}
        mask = ring.mask(rng.bytes(ring.stream_bytes))
        vector = ring.vector(part, [1.5, -2.25])
        vector.add(mask)
        sent = ring.packed(vector)
        assert sent["numbers"].nbytes == math.ceil(13 * bits / 8)
        total.add(ring.unpacked(sent["scalars"], sent["numbers"]))
        total.subtract(mask)
        expected = {name: expected[name] + part[name] for name in SPEC}
    tensors, scalars = ring.values(total)
    assert all(torch.equal(tensors[name], expected[name]) for name in SPEC)
    assert scalars == (1.5 * users, -2.25 * users)


def test_a_large_update_is_packed_part_by_part() -> None:
    ring = Ring({"a": TableSpec((70_001, 1))}, 0, 21)
    part = {"a": torch.randint(-(2**20), 2**20, (70_001, 1), generator=torch.Generator().manual_seed(0))}
    sent = ring.packed(ring.vector(part, []))
    assert sent["numbers"].nbytes == ring.packed_bytes
    assert torch.equal(ring.values(ring.unpacked(sent["scalars"], sent["numbers"]))[0]["a"], part["a"])


@pytest.mark.parametrize(("users", "most", "bits"), [(604, 127, 18), (604, 512, 20), (1, 1, 2), (2, 2047.5, 14)])
def test_a_ring_is_just_wide_enough(users: int, most: float, bits: int) -> None:
    found = width(users, most, 0.0, 10)
    assert found == bits
    assert 2 ** (found - 1) > users * math.ceil(most) >= 2 ** (found - 2)


def test_a_ring_for_noise_is_wide_enough_and_not_much_wider() -> None:
    users, variance, numbers = 100, 10_000.0, 10_000
    bits = width(users, 1, variance, numbers)
    deviation = math.sqrt(users * variance)
    assert 8 * deviation < 2 ** (bits - 1) < 40 * deviation


def test_a_sum_that_no_word_holds_is_refused() -> None:
    with pytest.raises(ValueError, match="62"):
        width(2**40, 2.0**30, 0.0, 1)


def test_of_noise_that_the_server_may_know_the_most_is_taken_to_be_known() -> None:
    assert noised_users([2, 9, 3, 4], 0.0, 4) == 18
    assert noised_users([2, 9, 3, 4], 0.1, 4) == 9, "one node of four"
    assert noised_users([2, 9, 3, 4], 0.3, 6) == 5, "two of six, of whom two are gone"
    assert noised_users([2], 0.4, 10) == 0
