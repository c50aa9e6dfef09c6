"""What one node may be: users it names, new ones it brings, and how much of a mean it makes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from client_app.answers.app import app as honest
from commands.audit.attacks import ATTACKS
from commands.audit.crowd import Crowd, CrowdedGrid
from exchanges import records
from exchanges.records import Content
from federation.directory import Directory
from federation.node_limits import NamedUsers, parts_that_count
from fedrec.config.compose import compose
from fedrec.config.paths import settle
from fedrec.config.schema import UNLIMITED, NodeLimits
from fedrec.core.errors import PacketError
from server_app.run import run


def keys(first: int, count: int) -> np.ndarray:
    return np.arange(first, first + count, dtype=np.uint64)


# Names ---------------------------------------------------------------------------------------------------------------


def refused(names: NamedUsers, node: int, given: np.ndarray) -> str | None:
    try:
        names.require(node, given)
    except PacketError as error:
        return error.reason
    return None


def test_a_node_names_as_many_users_as_it_may_and_no_more() -> None:
    names = NamedUsers(NodeLimits(100, 1.0, 1.0), Directory())
    assert refused(names, 1, keys(0, 99)) is None
    assert refused(names, 2, keys(1000, 100)) is None
    assert refused(names, 3, keys(2000, 101)) == "too_many_users"
    assert refused(names, 3, keys(2000, 100)) is None, "nothing was counted when it was refused"


def test_new_names_add_up_over_the_run_and_known_ones_cost_nothing() -> None:
    directory = Directory()
    names = NamedUsers(NodeLimits(10**6, 0.5, 1.0), directory)
    for given_keys in (keys(0, 100), keys(0, 100), keys(20, 100), keys(50, 100)):  # 0, 20 and 30 of them new
        assert refused(names, 1, given_keys) is None
        directory.join(1, given_keys)
    assert refused(names, 1, keys(51, 100)) == "too_many_new_users"
    assert refused(names, 1, keys(50, 100)) is None
    assert len(directory) == 150


def test_a_node_of_one_user_may_be_set_up_anew_ten_times() -> None:
    directory = Directory()
    names = NamedUsers(NodeLimits(10**6, 1.0, 1.0), directory)
    for number in range(11):
        assert refused(names, 1, keys(number, 1)) is None
        directory.join(1, keys(number, 1))
    assert refused(names, 1, keys(11, 1)) == "too_many_new_users"


def test_a_simulation_has_no_limits_and_a_deployment_has_some() -> None:
    rules = compose([], base=None).federation
    assert rules.node_limits(simulated=True) == UNLIMITED
    assert rules.node_limits(simulated=False) == NodeLimits(10_000, 1.0, 0.5)
    of = compose(["federation.max_node_users=7", "federation.max_node_share=0.2"], base=None).federation
    assert of.node_limits(simulated=True) == NodeLimits(7, float("inf"), 0.2)


# Shares --------------------------------------------------------------------------------------------------------------


def test_shares_by_hand() -> None:
    assert parts_that_count({1: 1000, 2: 30, 3: 30}, 0.5) == {1: pytest.approx(0.06), 2: 1.0, 3: 1.0}
    assert parts_that_count({1: 60, 2: 30, 3: 30}, 0.5) == {1: 1.0, 2: 1.0, 3: 1.0}, "exactly half of them"
    assert parts_that_count({1: 61, 2: 30, 3: 30}, 0.5)[1] == pytest.approx(60 / 61)
    assert parts_that_count({1: 90, 2: 10, 3: 10}, 0.1) == pytest.approx({1: 1 / 9, 2: 1.0, 3: 1.0}), "a third each"
    assert parts_that_count({1: 1000, 2: 1}, 0.5) == {1: 1.0, 2: 1.0}, "of two neither can be outvoted"
    assert parts_that_count({}, 0.5) == {}
    assert parts_that_count({1: 0, 2: 0, 3: 0}, 0.5) == {1: 1.0, 2: 1.0, 3: 1.0}


@settings(max_examples=300, deadline=None)
@given(st.lists(st.integers(0, 10**6), min_size=3, max_size=12), st.floats(0.05, 1.0))
def test_no_node_has_more_than_its_share_and_none_less_than_it_could(sizes: list[int], share: float) -> None:
    parts = parts_that_count(dict(enumerate(sizes)), share)
    counted = [size * parts[node] for node, size in enumerate(sizes)]
    allowed = max(share, 1 / len(sizes)) * sum(counted)
    assert all(0 <= part <= 1 for part in parts.values())
    assert all(count <= allowed * (1 + 1e-6) for count in counted)
    assert all(parts[node] == 1.0 or count >= allowed * (1 - 1e-6) for node, count in enumerate(counted))


SMALL = [
    "dataset.n_users=60",
    "dataset.n_items=100",
    "dataset.interactions_per_user=10.0",
    "base_table.dim=8",
    "strategy=full",
    "strategy.rounds=3",
    "federation.fraction=0.3",
    "evaluation.every=0",
    "evaluation.baselines=false",
    "optim=fast",
]


class Boasting(Crowd):
    """Invented users who say that they found everything that they looked for."""

    def ranked(self, content: Content) -> dict[str, bytes]:
        setup, users = self.node.setup, float(self.users)
        values = [users, 0.0, 0.0, *[users] * len(setup.metric_names())]
        packet = setup.metrics_format().encode(content.integer("phase"), content.integer(records.AFTER), {}, values)
        return {records.METRICS + split: packet for split in content.text(records.SPLITS).split()}


def with_a_thousand(tmp_path: Path, *overrides: str) -> dict[str, Any]:
    """60 real users on three nodes, and a node of 1,000 invented ones."""
    of_run = [*SMALL, *overrides, "run_id=r", f"runs_dir={tmp_path}/{len(overrides)}", f"cache_dir={tmp_path}/cache"]
    grid = CrowdedGrid(honest, 3, Boasting(1_000, ATTACKS["one_row"], 5))
    return run(settle(compose(of_run, base=None), None), of_run, grid)


def test_a_thousand_invented_users_make_at_most_half_of_the_metrics(tmp_path: Path) -> None:
    free = with_a_thousand(tmp_path)
    assert free["test"]["hr@10"] > 0.94
    held = with_a_thousand(tmp_path, "federation.max_node_share=0.5")
    real = 2 * held["test"]["hr@10"] - 1  # a half is theirs
    assert 0.0 <= real < 0.6
    assert held["test"]["users"] == 1_060, "the counts are as they were told"
    assert held["dropped_replies"] == {"node_share": 1}, "of the last round"
    assert any("federation.max_node_share" in line for line in held["warnings"])


def test_a_node_of_more_users_than_it_may_name_does_not_join(tmp_path: Path) -> None:
    joined = with_a_thousand(tmp_path, "federation.max_node_users=1000")
    assert joined["test"]["users"] == 1_060
    refused_one = with_a_thousand(tmp_path / "b", "federation.max_node_users=999")
    assert refused_one["test"]["users"] == 60
    assert any("federation.max_node_users" in line for line in refused_one["warnings"])
