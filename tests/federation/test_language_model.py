"""Whole runs with a language model: trained, the same on any nodes, resumed, and recommended from."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from client_app.answers.app import app as client_app
from commands.describe import describe
from commands.local_grid import LocalGrid
from commands.recommend import recommend
from fedrec.config.compose import compose
from fedrec.config.describe import from_dict
from fedrec.config.paths import settle
from fedrec.core.errors import FederationError
from fedrec.language.models import layers_of_model, lora_spec, register, sizes_of
from fedrec.language.tokens import frame_of, tokenizer_of
from fedrec.testing.language import small_run, tiny
from server_app.run import run

Federate = Callable[..., Any]


@pytest.fixture
def chosen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Overrides of a small run with a random encoder."""
    monkeypatch.setenv("FEDREC_HOME", str(tmp_path / "home"))
    model = register(tiny("bert", tmp_path / "model", 8).folder)
    return small_run(
        model, "embedding=fixed", "optim.server.eps=1.0e-4", "federation.fraction=1.0", "evaluation.baselines=false"
    )


def test_1_2_and_7_nodes_agree_and_move_what_was_described(federate: Federate, chosen: list[str]) -> None:
    one = federate(*chosen, nodes=1)
    for nodes in (2, 7):
        federate(*chosen, nodes=nodes).must_equal(one)
    moved = one.checkpoint()
    names = [name for name in moved if name.startswith("trainable.")]
    assert names
    assert all(name.startswith("trainable.backbone.layer.") for name in names), "LoRA alone is trained"
    assert any(bool(moved[name].any()) for name in names if name.endswith(".B")), "it starts at zero"
    assert moved["frozen.backbone.tokens"].dtype == torch.int32
    found = describe(from_dict(yaml.safe_load((one.folder / "config.yaml").read_text())), None)
    counted = one.summary["bytes_per_user"]
    assert counted["one_time"] == found.run.one_time, "the tokens are counted, and the model is not"


class Killed(BaseException):
    """The process ends here."""


def test_a_run_that_was_killed_goes_on_to_the_same_model(federate: Federate, chosen: list[str], tmp_path: Path) -> None:
    every = [*chosen, "checkpoint_every=1"]
    whole = federate(*every, nodes=1)
    messages = 0

    def mortal(message: Any, context: Any) -> Any:
        nonlocal messages
        messages += 1
        if messages == 4:  # it joined, trained, was ranked, and would train again
            raise Killed
        return client_app(message, context)

    with pytest.raises(Killed):
        federate(*every, nodes=1, client=mortal)
    texts = ["resume=r", f"runs_dir={tmp_path}/runs-2", f"cache_dir={tmp_path}/cache"]
    summary = run(settle(compose(texts, base=None), None), texts, LocalGrid(client_app, 1))
    assert summary["test"] == whole.summary["test"]
    last = load_file(Path(summary["run"]) / "checkpoints" / "round-000002.safetensors")
    assert all(torch.equal(tensor, last[name]) for name, tensor in whole.checkpoint().items() if "meter" not in name)


def test_a_run_recommends_to_its_users_and_to_who_comes_new(federate: Federate, chosen: list[str]) -> None:
    outcome = federate(*chosen, nodes=2)
    listed = json.loads((outcome.folder / "items.json").read_text())["ids"]
    found = recommend(str(outcome.folder), None, None, ",".join(listed[:3]), 5)
    assert len(found["items"]) == 5
    assert not {item["item_id"] for item in found["items"]} & set(listed[:3])
    turned = recommend(str(outcome.folder), None, None, ",".join(reversed(listed[:3])), 5)
    assert [item["score"] for item in found["items"]] != [item["score"] for item in turned["items"]], "order is read"


def test_a_client_that_lacks_the_model_says_which(
    federate: Federate, chosen: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def elsewhere(message: Any, context: Any) -> Any:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("FEDREC_HOME", str(tmp_path / "of the client"))
            for cached in (lora_spec, sizes_of, layers_of_model, tokenizer_of, frame_of):
                cached.cache_clear()
            return client_app(message, context)

    with pytest.raises(FederationError, match="does not have this language model"):
        federate(*chosen, "federation.node_timeout=0.5", nodes=1, client=elsewhere)
