"""Whole runs with a model that writes titles: the same on any nodes, by group, and recommended from."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from commands.describe import describe
from commands.recommend import recommend
from fedrec.config.describe import from_dict
from fedrec.language.models import register
from fedrec.testing.language import tiny

Federate = Callable[..., Any]


@pytest.fixture
def chosen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Overrides of a small run of two groups with a random model."""
    monkeypatch.setenv("FEDREC_HOME", str(tmp_path / "home"))
    model = register(tiny("llama", tmp_path / "model", 8, head=True).folder)
    return [
        *(
            "experiment=title_generator",
            "strategy=fellrec",
            "embedding=fixed",
            "optim=fast",
            "strategy.rounds=2",
            "grouping.groups=2",
            "optim.server.eps=1.0e-4",
        ),
        *(f"backbone.model={model}", "backbone.length=64", "backbone.item_tokens=10", "backbone.before='chosen '"),
        *("base_table.dim=8", "dataset.n_users=14", "federation.fraction=1.0", "evaluation.baselines=false"),
    ]


def test_1_2_and_7_nodes_agree_and_move_what_was_described(federate: Federate, chosen: list[str]) -> None:
    one = federate(*chosen, nodes=1)
    for nodes in (2, 7):
        federate(*chosen, nodes=nodes).must_equal(one)
    assert set(one.summary["groups"]) == {"0", "1"}
    moved = one.checkpoint()
    trained = [name for name in moved if name.startswith("trainable@")]
    assert {name[:11] for name in trained} == {"trainable@0", "trainable@1"}
    assert all(name[11:].startswith(".backbone.layer.") for name in trained), "LoRA alone is trained"
    assert any(bool(moved[name].any()) for name in trained if name.endswith(".B")), "it starts at zero"
    found = describe(from_dict(yaml.safe_load((one.folder / "config.yaml").read_text())), None)
    assert one.summary["bytes_per_user"]["one_time"] == found.run.one_time, "tokens are counted, and the model is not"


def test_a_run_recommends_to_who_comes_new(federate: Federate, chosen: list[str]) -> None:
    outcome = federate(*chosen, nodes=2)
    listed = json.loads((outcome.folder / "items.json").read_text())["ids"]
    found = recommend(str(outcome.folder), None, None, ",".join(listed[:3]), 5)
    assert len(found["items"]) == 5
    assert not {item["item_id"] for item in found["items"]} & set(listed[:3])
    scores = [item["score"] for item in found["items"]]
    assert scores == sorted(scores, reverse=True)
    assert all(-4 <= score <= 0 for score in scores), "minus squared distances between vectors of length one"
