"""What is known of users' devices: the distributions that are published, the budget of a reply, and what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fedrec.config.compose import compose
from fedrec.config.describe import load_member
from fedrec.core.bounds import MOST_BYTES
from fedrec.core.errors import ConfigError
from fedrec.core.registry import networks
from fedrec.core.rng import counter_bits
from fedrec.networks.base import Network
from fedrec.networks.simulated import SimulatedNetwork

KEYS = counter_bits(5, np.arange(20_000))
OF = {"grades": {"grades": ["phone", "desktop"], "uplinks": [2.0, 50.0]}}
UPLINKS = [name for name in networks.names() if name != "none"]


def network(name: str, seed: int = 7, **values: Any) -> Any:
    made: Network = networks.get(name)(load_member("network", name, **OF.get(name, {}), **values), seed)
    return made


def test_the_medians_and_tails_of_mobile_are_the_published_ones() -> None:
    """Log-normal: the quantile at z standard deviations is the median times e to the sigma z."""
    devices = network("mobile").devices(KEYS)
    for z, share in ((-2.0, 0.02275), (-1.0, 0.15866), (0.0, 0.5), (1.0, 0.84134), (2.0, 0.97725)):
        assert np.quantile(devices.uplink, share) == pytest.approx(5.0 * np.exp(z), rel=0.08)
        assert np.quantile(devices.speed, share) == pytest.approx(100_000 * np.exp(0.5 * z), rel=0.04)
    assert devices.downlink == pytest.approx(4 * devices.uplink)
    assert devices.uplink.mean() == pytest.approx(8.24, rel=0.03)
    assert devices.downlink.mean() == pytest.approx(33.0, rel=0.03)
    assert abs(np.corrcoef(np.log(devices.uplink), np.log(devices.speed))[0, 1]) < 0.03


def test_the_devices_of_homogeneous_are_those_in_the_middle_of_mobile() -> None:
    alike, middle = network("homogeneous").devices(KEYS[:9]), network("mobile", sigma=0.0, speed_sigma=0.0)
    for mine, theirs in zip(alike, middle.devices(KEYS[:9]), strict=True):
        assert mine.shape == (9,)
        assert (mine == theirs).all()


@pytest.mark.parametrize("name", networks.names())
def test_a_device_depends_on_seed_and_key_and_not_on_who_is_beside_it(name: str) -> None:
    whole, other = network(name), network(name, seed=8)
    budgets = {} if name == "none" else {"reply_seconds": 0.5}
    limited = network(name, **budgets)
    assert (limited.reply_budget(KEYS[3:5]) == limited.reply_budget(KEYS[:9])[3:5]).all()
    assert limited.reply_budget(KEYS[:0]).shape == (0,)
    if isinstance(whole, SimulatedNetwork):
        for mine, theirs, elsewhere in zip(
            whole.devices(KEYS[3:5]), whole.devices(KEYS[:9]), other.devices(KEYS[3:5]), strict=True
        ):
            assert (mine == theirs[3:5]).all()
            assert (mine == elsewhere).all() == (name == "homogeneous")


def test_the_budget_of_a_reply_is_what_the_uplink_carries_in_its_seconds_or_the_bytes_given() -> None:
    """5 megabits a second are 625,000 bytes a second."""
    assert network("homogeneous", reply_seconds=0.01).reply_budget(KEYS[:2]).tolist() == [6_250, 6_250]
    assert network("homogeneous", reply_seconds=0.01, reply_bytes=4_000).reply_budget(KEYS[:1]).tolist() == [4_000]
    assert network("homogeneous", reply_seconds=0.01, reply_bytes=9_000).reply_budget(KEYS[:1]).tolist() == [6_250]
    assert network("homogeneous", reply_bytes=9_000).reply_budget(KEYS[:1]).tolist() == [9_000]
    mobile = network("mobile", reply_seconds=2.0)
    assert (mobile.reply_budget(KEYS) == (mobile.devices(KEYS).uplink * 250_000).astype(np.int64)).all()


def test_the_budget_of_a_grade_is_that_of_its_uplink() -> None:
    grades = network("grades", reply_seconds=0.8)
    assert [int(grades.reply_budget(KEYS[:1], grade)[0]) for grade in ("phone", "desktop", "", "other")] == [
        200_000,
        5_000_000,
        500_000,
        500_000,
    ]


@pytest.mark.parametrize("name", networks.names())
def test_without_a_budget_a_reply_may_have_any_length(name: str) -> None:
    free = network(name)
    assert not free.limits_replies
    assert (free.reply_budget(KEYS[:4]) == MOST_BYTES).all()
    assert free.reply_budget(KEYS[:4]).dtype == np.int64


@pytest.mark.parametrize("name", UPLINKS)
def test_a_budget_is_a_byte_at_least_and_a_finite_number(name: str) -> None:
    least, most = network(name, reply_seconds=1e-12), network(name, reply_seconds=1e7)
    assert (least.reply_budget(KEYS[:4]) == 1).all()
    assert (most.reply_budget(KEYS[:4]) <= MOST_BYTES).all()


@pytest.mark.parametrize("name", networks.names())
def test_a_device_is_there_in_its_share_of_the_rounds_whoever_is_beside_it(name: str) -> None:
    assert network(name).there(KEYS, 1).all()
    if not isinstance(network(name), SimulatedNetwork):
        return
    some = network(name, availability=0.3)
    rounds = np.stack([some.there(KEYS[:2000], round) for round in range(40)])
    assert rounds.mean() == pytest.approx(0.3, abs=0.01)
    assert rounds.mean(0).std() == pytest.approx(np.sqrt(0.3 * 0.7 / 40), rel=0.1), "each round by itself"
    assert (some.there(KEYS[3:5], 7) == rounds[7, 3:5]).all()
    assert (network(name, seed=8, availability=0.3).there(KEYS, 7) != some.there(KEYS, 7)).any()


DEPLOYED = ["runtime=deployment", "dataset=table", "dataset.item_table=/t.csv"]
GRADED = ["network=grades", "network.grades=[phone,desktop]"]


@pytest.mark.parametrize(
    ("overrides", "problem"),
    [
        ([*DEPLOYED, "network=mobile"], r"network=mobile: with runtime=deployment devices are what they are"),
        ([*DEPLOYED, "network=homogeneous"], r"network=homogeneous: with runtime=deployment devices are what they are"),
        (["network=mobile", "federation.over_sampling=0.5"], r"federation\.over_sampling=0\.5: with network=mobile"),
        ([*GRADED, "network.uplinks=[1.0,2.0]", "network.reply_bytes=9"], r"grades: simulated nodes say nothing"),
        ([*DEPLOYED, *GRADED, "network.uplinks=[1.0]", "network.reply_bytes=9"], r"one for each of the 2 grades"),
        ([*DEPLOYED, *GRADED, "network.uplinks=[1.0,2.0]"], r"a grade changes nothing; give network\.reply_seconds"),
        ([*DEPLOYED, "network=grades", "network.grades=[a,a]", "network.uplinks=[1.0,2.0]"], r"is named twice"),
        ([*DEPLOYED, "network=grades", "network.grades=['A b']", "network.uplinks=[1.0]"], r"network\.grades"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_with_its_reason(overrides: list[str], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        compose(overrides, base=None)


def test_grades_serve_a_deployment() -> None:
    chosen = [*DEPLOYED, *GRADED, "network.uplinks=[1.0,2.0]", "network.reply_seconds=1.0"]
    assert compose(chosen, base=None).network.name == "grades"
