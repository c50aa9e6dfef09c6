"""A run that is split by time: who is ranked when, what each trains on, and that the layout changes nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import pytest
import yaml

from fedrec.config.describe import from_dict
from fedrec.data.prepare import load
from fedrec.data.split import evaluated, histories
from fedrec.datasets.base import DatasetConfig

BY_TIME = ["dataset.split=temporal", "dataset.held_out=0.2", "federation.fraction=1.0", "evaluation.every=1"]


def test_who_is_ranked_and_trained(federate: Callable[..., Any]) -> None:
    one, many = federate(*BY_TIME, nodes=1), federate(*BY_TIME, nodes=5)
    config = from_dict(yaml.safe_load((one.folder / "config.yaml").read_text()))
    data = load(cast(DatasetConfig, config.dataset)).interactions
    ranked = {of: int(evaluated(data, of=of).sum()) for of in ("validation", "test")}
    assert one.summary["validation"]["users"] == ranked["validation"]
    assert one.summary["test"]["users"] == ranked["test"]
    assert ranked["validation"] != ranked["test"]
    assert one.metrics[0]["examples"] == len(histories(data, "train").items)
    assert one.summary["ahead"] is not None  # compared with a baseline, over the same users
    assert "ceiling" not in one.summary
    assert many.summary["test"] == pytest.approx(one.summary["test"], abs=1e-6)
    assert many.summary["bytes_per_user"] == one.summary["bytes_per_user"]


def test_without_validation_users_train_up_to_the_test(federate: Callable[..., Any]) -> None:
    outcome = federate(*BY_TIME, "evaluation.validation=false")
    config = from_dict(yaml.safe_load((outcome.folder / "config.yaml").read_text()))
    data = load(cast(DatasetConfig, config.dataset)).interactions
    assert outcome.metrics[0]["examples"] == len(histories(data, "test").items)
