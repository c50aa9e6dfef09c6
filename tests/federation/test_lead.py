"""How far a model is ahead of the best untrained baseline: from sums that nodes tell, the standard error of users."""

from __future__ import annotations

import math
import struct
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import yaml

from client_app.answers.handling import rival_of
from exchanges.records import KEYS, METRICS, RIVAL, Content, unpack
from fedrec.config.describe import from_dict
from fedrec.core.errors import PacketError
from fedrec.core.keys import opaque_keys, simulation_secret
from fedrec.data.prepare import load
from fedrec.evaluation.baselines import NAMES, baseline_results
from fedrec.wire.lead import Lead
from fedrec.wire.protocol import Setup

Federate = Callable[..., Any]
USERS = 60


def results(outcome: Any) -> dict[int, float]:
    """Each user's test NDCG@10 by its key, of a run with a node for each user, as its own packet has it."""
    folder, of_node, found = outcome.folder, {}, {}
    setup = Setup.from_json((folder / "setup.json").read_text())
    for message in outcome.grid.received:
        arrays = unpack(message.content).arrays
        if KEYS in arrays:
            of_node[message.metadata.src_node_id] = int(arrays[KEYS].view(np.uint64)[0])
    form, names = setup.metrics_format(), setup.metric_names()
    for message, split, packet in outcome.grid.packets(outcome.grid.received, METRICS):
        if split == "test":
            users, _, _, *values = form.decode(packet, phase=1, round=5).scalars
            if users:
                found[of_node[message.metadata.src_node_id]] = values[names.index("ndcg@10")]
    return found


def test_it_is_the_mean_of_paired_differences_whatever_the_layout(federate: Federate) -> None:
    keys = ("evaluation.every=0", "base_table.start=random")  # no texts: popularity is the best baseline
    each, few = federate(*keys, nodes=USERS), federate(*keys, nodes=2)
    config: Any = from_dict(yaml.safe_load((each.folder / "config.yaml").read_text()))
    data = load(config.dataset)
    baselines = baseline_results(data.interactions, data.eligible, None, "test", [10])
    assert list(few.grid.packets(few.grid.sent, RIVAL))
    name = few.summary["lead"]["baseline"]
    assert name == max(few.summary["baselines"], key=lambda one: few.summary["baselines"][one]["ndcg@10"])
    mine = results(each)
    named = opaque_keys(simulation_secret(config.seed), [data.interactions.user_ids[user] for user in baselines.users])
    pairs = [mine[int(key)] - value for key, value in zip(named, baselines.each[name], strict=True)]
    assert each.summary["lead"]["difference"] == pytest.approx(np.mean(pairs), abs=1e-9)
    error = np.std(pairs, ddof=1) / math.sqrt(len(pairs))
    assert each.summary["lead"]["standard_error"] == pytest.approx(error, abs=1e-9)
    assert few.summary["lead"] == pytest.approx(each.summary["lead"], abs=1e-9)
    assert few.summary["ahead"] is (few.summary["lead"]["difference"] > 2 * few.summary["lead"]["standard_error"])
    assert (
        f"that of '{NAMES[name]}', the best of the untrained baselines beside it (standard error"
        in few.summary["standing"]
    )
    assert ("not ahead by 2 standard errors" in few.summary["standing"]) is not few.summary["ahead"]


def test_without_baselines_that_is_said(federate: Federate) -> None:
    outcome = federate("evaluation.every=0", "evaluation.baselines=false", "strategy.rounds=3")
    assert outcome.summary["ahead"] is None
    assert "untrained baselines: evaluation.baselines=false" in outcome.summary["standing"]
    assert not list(outcome.grid.packets(outcome.grid.sent, RIVAL))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        struct.pack("<qdd", 4, 0.5, 0.5),
        struct.pack("<qdd", -1, 0.0, 0.0),
        struct.pack("<qdd", 3, math.nan, 0.5),
        struct.pack("<qdd", 3, -3.5, 1.0),
        struct.pack("<qdd", 3, 1.0, 3.5),
        struct.pack("<qdd", 3, 1.0, math.inf),
    ],
)
def test_a_lead_that_three_users_cannot_have_is_refused(data: bytes) -> None:
    assert Lead.read(Lead(3, -0.5, 0.25).packet(), 3) == (3, -0.5, 0.25)
    with pytest.raises(PacketError):
        Lead.read(data, 3)


def test_one_user_has_no_standard_error() -> None:
    assert (Lead(1, 0.5, 0.25).mean, Lead(1, 0.5, 0.25).standard_error) == (0.5, None)


@pytest.mark.parametrize("values", [[0.5], [0.5, 1.5], [0.5, math.nan], [1, 0]])
def test_what_are_no_results_of_two_users_is_refused_and_at_a_site_anything(values: list[float]) -> None:
    def node(simulation: object) -> Any:
        return SimpleNamespace(users=[0, 1], setup=SimpleNamespace(simulation=simulation))

    good = np.array([0.0, 1.0])
    assert rival_of(Content({}, {}), node(None)) is None
    assert rival_of(Content({RIVAL: good}, {}), node("shared")) is good
    with pytest.raises(PacketError):
        rival_of(Content({RIVAL: good}, {}), node(None))
    with pytest.raises(PacketError):
        rival_of(Content({RIVAL: np.array(values)}, {}), node("shared"))
