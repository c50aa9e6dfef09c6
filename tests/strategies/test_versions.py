"""The log of merges: the shortest way to the newest version, and what it costs in expectation."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from exchanges.records import wrap
from federation.cohorts.base import Roots
from federation.cohorts.fixed import FixedCohort, FixedConfig
from federation.directory import Directory
from federation.exchange import Ledger
from federation.meter import Meter
from federation.versions import FrozenBytes, Merged, Merges, expected_bytes, lacking
from fedrec.core.errors import StoreError
from fedrec.core.rng import counter_bits


def down(meter: Meter, phase: int, users: NDArray[np.int64], model: int, frozen: FrozenBytes) -> dict[str, int]:
    """Users train; what they move."""
    meter.begin_round()
    meter.downloaded(Ledger.TRAINING, phase, len(users) * model)
    meter.froze(Ledger.TRAINING, phase, users, frozen)
    return meter.moved


def behind(version: int, lossy: int | None = None) -> FrozenBytes:
    """After so many merges of 10 bytes into what takes 35: three of them are shorter."""
    return FrozenBytes(35, version, (10,) * min(version, 3), lossy)


def merged(number: int, size: int = 10) -> Merged:
    return Merged(f"v{number - 1}", f"v{number}", wrap(bytes([number]) * size))


def log(merges: int, whole: int = 35, start: int = 35) -> Merges:
    made = Merges()
    for number in range(1, merges + 1):
        made = made.then(merged(number), 2 * number, whole, wrap(bytes(start)))
    return made


@pytest.mark.parametrize(("merges", "kept"), [(0, 0), (1, 1), (3, 3), (4, 3), (9, 3)])
def test_the_log_is_as_long_as_it_is_shorter_than_the_whole(merges: int, kept: int) -> None:
    made = log(merges)
    assert (made.count, made.round) == (merges, 2 * merges)
    assert [each.after for each in made.log] == [f"v{n}" for n in range(merges - kept + 1, merges + 1)]
    assert len(log(merges, whole=30).log) == min(merges, 2), "as long as the whole is not shorter"


def test_the_way_starts_at_the_newest_version_that_is_held() -> None:
    made = log(5)
    ways = {held: [each.after for each in made.since({held, "eligible"})] for held in ("v1", "v2", "v3", "v4", "v5")}
    assert ways == {"v1": [], "v2": ["v3", "v4", "v5"], "v3": ["v4", "v5"], "v4": ["v5"], "v5": []}
    assert [each.after for each in made.since({"v2", "v4"})] == ["v5"]
    assert made.since(set()) == ()


def test_who_holds_nothing_begins_with_the_first_packet_where_that_is_shorter() -> None:
    for merges, ways in ((1, ["v0", "v1"]), (2, ["v0", "v1", "v2"]), (3, [])):
        made = log(merges, start=12)
        assert [each.after for each in made.since(set())] == ways
        assert [each.after for each in made.since({f"v{merges - 1}"})] == [f"v{merges}"], "never more than it lacks"
    newest = wrap(b"the table of now")
    once, made = {"list": wrap(b"list"), "v2": newest}, log(2, start=12)
    arrays, fields = lacking(once, made, set())
    assert {name: len(array.numpy()) for name, array in arrays.items()} == {
        "frozen.list": 4,
        "frozen.v0": 12,
        "merged.v1": 10,
        "merged.v2": 10,
    }
    assert fields == {"versions": "v0 v1 v2"}
    assert lacking(once, made, {"list", "v1"})[1] == {"versions": "v1 v2"}
    assert lacking(once, made, {"list", "v2"}) == ({}, {})
    assert lacking({"v5": newest}, log(5, start=12), set()) == ({"frozen.v5": newest}, {})


def test_a_checkpoint_restores_the_log() -> None:
    for made in (log(0), log(2, start=12), log(5)):
        plain, packets = made.state()
        again = Merges.restored(plain, packets)
        assert (again.count, again.round) == (made.count, made.round)
        assert [(each.before, each.after) for each in again.log] == [(each.before, each.after) for each in made.log]
        assert [each.packet.data for each in again.log] == [each.packet.data for each in made.log]


def test_a_log_of_another_protocol_is_refused_with_its_mend() -> None:
    made = log(2)
    plain, packets = made.state()
    old = {name: torch.tensor(list(b"FRPK\1\0" + bytes(30)), dtype=torch.uint8) for name in packets}
    with pytest.raises(StoreError, match=r"another version of the protocol.* start a new run"):
        Merges.restored(plain, old)


def test_the_meter_by_hand() -> None:
    meter = Meter(["warmup", "peft"])
    meter.grow(4, enrolment=1)
    all_of, frozen = np.arange(4), [behind(version) for version in range(9)]
    assert down(meter, 1, all_of[:2], 7, frozen[0])["one_time"] == 70
    assert down(meter, 1, all_of[1:3], 7, frozen[2]) == {"up": 0, "down": 14, "one_time": 35, "merges": 20}
    # The first user missed eight merges, the second and the third six: all are cheaper off with the table.
    assert down(meter, 1, all_of[:3], 7, frozen[8])["merges"] == 3 * 35
    assert down(meter, 1, all_of, 7, frozen[8]) == {"up": 0, "down": 28, "one_time": 35, "merges": 0}
    # A ranking has a ledger of its own: it finds nobody has been sent anything, then that all are one merge behind.
    meter.froze(Ledger.EVALUATION, 1, all_of, frozen[7])
    assert meter.evaluation * 4 == 4 * 35
    meter.froze(Ledger.EVALUATION, 1, all_of, frozen[8])
    assert meter.evaluation * 4 == 4 * 35 + 4 * 10
    moved = meter.per_user()
    assert (moved["merges"] * 4, moved["one_time"] * 4) == (125, 4 * 35 + 4)
    assert moved["total"] == moved["down"] + moved["one_time"] + moved["merges"]


def test_the_meter_by_hand_where_the_first_packet_is_short() -> None:
    meter = Meter(["peft"])
    meter.grow(3, enrolment=0)
    first, second, third = np.arange(3)[:, None]
    assert down(meter, 0, first, 0, behind(0, 12)) == {
        "up": 0,
        "down": 0,
        "one_time": 12,
        "merges": 0,
    }
    assert down(meter, 0, second, 0, behind(2, 12))["merges"] == 20
    moved = down(meter, 0, third, 0, behind(3, 12))
    assert (moved["one_time"], moved["merges"]) == (12, 23), "35 in all: the table as it is now is shorter"
    assert down(meter, 0, first, 0, behind(3, 12))["merges"] == 30


@pytest.mark.parametrize(
    ("rounds", "every", "fraction", "expected"),
    [(10, 0, 1.0, 0.0), (10, 2, 1.0, 40.0), (11, 2, 1.0, 50.0), (3, 5, 1.0, 0.0), (0, 5, 1.0, 0.0), (2, 1, 0.5, 2.5)],
)
def test_the_expectation_by_hand(rounds: int, every: int, fraction: float, expected: float) -> None:
    assert expected_bytes(35, 35, 10, rounds, every, fraction) == pytest.approx(expected)


@pytest.mark.parametrize("first", [35, 12])
@pytest.mark.parametrize(("fraction", "every"), [(0.1, 5), (0.3, 2), (0.05, 20)])
def test_the_expectation_is_the_mean_of_many_users(fraction: float, every: int, first: int) -> None:
    users, rounds = 2_000, 203
    directory, meter = Directory(), Meter(["peft"])
    directory.join(1, counter_bits(1, np.arange(users)))
    meter.grow(users, 0)
    for round in range(1, rounds + 1):
        chosen = directory.cohort(FixedCohort(FixedConfig("fixed")), round, fraction, Roots(0, 0))
        down(meter, 0, chosen, 0, behind((round - 1) // every, first))
    expected = expected_bytes(35, first, 10, rounds, every, fraction)
    assert meter.per_user()["merges"] == pytest.approx(expected, rel=0.03)
