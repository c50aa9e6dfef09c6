"""Where users live changes nothing: any number of nodes gives the same model, metrics and bytes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

Federate = Callable[..., Any]

FEW = 24
FEWER = f"dataset.n_users={FEW}"
"""So few that a node for each of them costs little."""


def without_seconds(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: value for key, value in record.items() if key != "seconds"} for record in records]


@pytest.mark.parametrize("strategy", ["fedpeft", "full"])
@pytest.mark.parametrize("engine", ["cohort", "oracle"])
def test_1_2_7_and_one_node_per_user_agree(federate: Federate, strategy: str, engine: str) -> None:
    overrides = [f"strategy={strategy}", f"engine={engine}", "evaluation.sampled_negatives=20", FEWER]
    one = federate(*overrides, nodes=1)
    for nodes in (2, 7, FEW):
        federate(*overrides, nodes=nodes).must_equal(one)


def test_poisson_cohorts_are_the_same_wherever_users_live_and_differ_in_size(federate: Federate) -> None:
    one = federate("cohort=poisson", "federation.fraction=0.05", "strategy.rounds=8", nodes=1)
    sizes = [line["cohort"] for line in one.metrics]
    assert len(set(sizes)) > 2
    for nodes in (2, 7, 60):
        federate("cohort=poisson", "federation.fraction=0.05", "strategy.rounds=8", nodes=nodes).must_equal(one)


def test_contexts_are_the_same_wherever_users_live(federate: Federate) -> None:
    overrides = ["optim=fast", "optim.contexts=3", "optim.private_anew=true", "federation.weight_cap=1", FEWER]
    one = federate(*overrides, nodes=1)
    without = federate(*overrides[:1], FEWER, nodes=1)
    for way in ("up", "down"):
        assert one.summary["bytes_per_user"][way] == without.summary["bytes_per_user"][way], "they cost none"
    for nodes in (2, 7, FEW):
        federate(*overrides, nodes=nodes).must_equal(one)


@pytest.mark.parametrize("codec", ["float16", "int8"])
def test_each_user_is_rounded_alone_wherever_it_lives(federate: Federate, codec: str) -> None:
    """With SGD, so that the last bits of a sum, which decide a draw now and then, do not become whole steps."""
    overrides = [
        f"codec={codec}",
        "optim=fast",
        "optim.server.kind=sgd",
        "optim.server.beta1=0.0",
        "optim.server.lr=10.0",
        FEWER,
    ]
    one, plain = federate(*overrides, nodes=1), federate(*overrides[1:], nodes=1)
    final = one.checkpoint()
    assert not torch.equal(final["trainable.embedding.A"], plain.checkpoint()["trainable.embedding.A"])
    for nodes in (7, FEW):
        many = federate(*overrides, nodes=nodes)
        for name, tensor in many.checkpoint().items():
            if not name.startswith("meter."):
                torch.testing.assert_close(tensor, final[name], atol=1e-4, rtol=1e-4, msg=f"{name} differs")
        assert [line["bytes_per_user"] for line in many.metrics] == [line["bytes_per_user"] for line in one.metrics]


def test_both_engines_agree(federate: Federate) -> None:
    fast, slow = federate("engine=cohort"), federate("engine=oracle")
    for name, tensor in slow.checkpoint().items():
        torch.testing.assert_close(fast.checkpoint()[name], tensor, atol=1e-4, rtol=1e-4, msg=name)


def test_the_same_seed_gives_the_same_metrics_twice_and_another_seed_others(federate: Federate) -> None:
    first, second, other = federate(), federate(), federate("seed=1")
    assert without_seconds(first.metrics) == without_seconds(second.metrics)
    assert without_seconds(first.metrics) != without_seconds(other.metrics)
    assert first.summary["test"] == second.summary["test"]


def test_more_nodes_than_users_leaves_the_empty_ones_out(federate: Federate) -> None:
    assert federate(nodes=70).summary["test"]["users"] == 60
