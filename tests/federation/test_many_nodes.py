"""One user per SuperNode, as phones are: a thousand nodes of one user each give what two nodes of five hundred give."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

Federate = Callable[..., Any]

USERS = 1_000
THOUSAND = [
    f"dataset.n_users={USERS}",
    "dataset.n_items=300",
    "strategy.rounds=2",
    "strategy.warmup_rounds=1",
    "federation.fraction=0.1",
    "evaluation.every=0",
    "evaluation.baselines=false",
    "optim.solve_epochs=1",
]


@pytest.mark.runtime
def test_a_thousand_nodes_of_one_user_each(federate: Federate) -> None:
    two, many = federate(*THOUSAND, nodes=2), federate(*THOUSAND, nodes=USERS)
    enrolled = [message for message in many.grid.sent if message.metadata.message_type == "query.enroll"]
    trained = [message for message in many.grid.sent if message.metadata.message_type == "train"]
    assert len({message.metadata.dst_node_id for message in enrolled}) == len(enrolled) == USERS
    assert len(trained) == 2 * USERS // 10, "a message for each chosen user, in each of two rounds"
    tensors = [load_file(each.folder / "checkpoints" / "round-000002.safetensors") for each in (two, many)]
    assert tensors[0].keys() == tensors[1].keys()
    for name, tensor in tensors[0].items():
        if not name.startswith("meter."):  # by user in the order of joining; its means are compared below
            torch.testing.assert_close(tensors[1][name], tensor, atol=1e-5, rtol=1e-5, msg=name)
    assert many.summary["test"] == pytest.approx(two.summary["test"], abs=1e-6)
    assert many.summary["test"]["users"] > 0.9 * USERS
    assert many.summary["bytes_per_user"] == two.summary["bytes_per_user"]
    assert many.summary["dropped_replies"] == {}
