"""`evaluation.validation=false`: users train on all but their last item, which nothing but the test ever sees."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import pytest
import yaml

from client_app.answers.node import Node, Place
from client_app.answers.ranking import evaluate
from client_app.homes.users import Cohort
from client_app.training.cohort import CohortEngine
from exchanges.records import unpack
from fedrec.config.describe import from_dict
from fedrec.core.errors import PacketError
from fedrec.data import split
from fedrec.data.prepare import load
from fedrec.data.types import Interactions
from fedrec.datasets.base import DatasetConfig
from fedrec.wire.protocol import Setup
from fedrec.wire.updates import NodeUpdate

Federate = Callable[..., Any]
LAST_RUN = "evaluation.validation=false"


def interactions(outcome: Any) -> Interactions:
    config = from_dict(yaml.safe_load((outcome.folder / "config.yaml").read_text()))
    return load(cast(DatasetConfig, config.dataset)).interactions


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[int]]:
    """The items that each user trained on, by the user's id, as the engine was given them."""
    seen: dict[str, list[int]] = {}
    train = CohortEngine.train

    def spy(self: CohortEngine, model: Any, cohort: Cohort, *others: Any, **more: Any) -> NodeUpdate:
        for number, key in enumerate(cohort.keys.tolist()):
            seen[key] = cohort.items[cohort.offsets[number] : cohort.offsets[number + 1]].tolist()
        return train(self, model, cohort, *others, **more)  # type: ignore[return-value]

    monkeypatch.setattr(CohortEngine, "train", spy)
    return seen


@pytest.mark.parametrize("backbone", ["fedmf", "fedpergnn"])
def test_users_train_on_all_but_the_last_item(federate: Federate, trained: dict[str, list[int]], backbone: str) -> None:
    every = ("federation.fraction=1.0", f"backbone={backbone}", "evaluation.every=1")
    outcome = federate(LAST_RUN, *every)
    data = interactions(outcome)
    known = split.histories(data, "test")
    assert sorted(trained.values()) == sorted(known.of(user).tolist() for user in range(len(known)))
    assert outcome.metrics[0]["examples"] == len(data.items) - split.evaluated(data, of="test").sum()
    assert not any("validation" in record for record in outcome.metrics)
    assert outcome.summary["validation"] == {}
    assert not (outcome.folder / "curve.csv").exists()
    usual = federate(*every)
    assert usual.metrics[0]["examples"] == len(data.items) - 2 * split.evaluated(data, of="test").sum()
    assert usual.summary["test"]["users"] == outcome.summary["test"]["users"] == split.evaluated(data, of="test").sum()
    assert usual.summary["baselines"] == outcome.summary["baselines"], "the test is the same"


def test_the_layout_changes_nothing(federate: Federate) -> None:
    one, many = federate(LAST_RUN, nodes=1), federate(LAST_RUN, nodes=7)
    assert many.summary["test"] == pytest.approx(one.summary["test"], abs=1e-6)
    assert many.summary["bytes_per_user"] == one.summary["bytes_per_user"]


def test_a_server_that_asks_for_validation_all_the_same_is_refused(federate: Federate) -> None:
    outcome = federate(LAST_RUN)
    enrolment = next(m for m in outcome.grid.sent if m.metadata.message_type == "query.enroll")
    node = Node(Setup.from_json(str(unpack(enrolment.content).fields["setup"])), Place(0, 2))
    with pytest.raises(PacketError, match="holds nothing out for validation"):
        evaluate(node, None, 1, "validation")  # type: ignore[arg-type]
