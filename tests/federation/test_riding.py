"""A ranking that rides on the next round's messages gives what one in messages of its own gives."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Context, Message
from safetensors.torch import load_file

from client_app.answers.app import app as honest
from client_app.stores.store import PrivateStore
from exchanges.records import KEYS, METRICS, UPDATE, pack, unpack
from fedrec.core.errors import FederationError
from fedrec.core.tensors import Tensors, TensorSpec, text_digest

Federate = Callable[..., Any]

# A checkpoint after every round lets no ranking ride; no checkpoint but the last lets all but those of a phase's end.
ALONE, RIDING = "checkpoint_every=1", "checkpoint_every=0"
ROUNDS, WARMUP, USERS = 5, 2, 60


def private(outcome: Any) -> tuple[Tensors, np.ndarray]:
    """All users' private tensors after the run, and who has any."""
    keys = [unpack(m.content).arrays[KEYS] for m in outcome.grid.received if KEYS in unpack(m.content).arrays]
    store = PrivateStore(outcome.folder / "state", text_digest("r"), {"user": TensorSpec((8,))})
    return store.load(np.sort(np.concatenate(keys)), before=10**6)


@pytest.mark.parametrize("nodes", [2, USERS])
@pytest.mark.parametrize("strategy", ["fedpeft", "full"])
def test_it_changes_no_metric_no_model_and_no_private_tensor(federate: Federate, strategy: str, nodes: int) -> None:
    overrides = [f"strategy={strategy}", "evaluation.every=1", "evaluation.sampled_negatives=20"]
    alone, riding = federate(*overrides, ALONE, nodes=nodes), federate(*overrides, RIDING, nodes=nodes)
    assert [record["round"] for record in riding.metrics] == [1, 2, 3, 4, 5]
    for before, after in zip(alone.metrics, riding.metrics, strict=True):
        for name in ("validation", "loss", "users", "examples", "cold_users", "bytes"):
            assert before[name] == after[name], name
        for name in ("up", "down", "one_time", "total", "by_phase"):
            assert before["bytes_per_user"][name] == after["bytes_per_user"][name]
    assert alone.summary["test"] == riding.summary["test"]
    last = f"checkpoints/round-{ROUNDS:06d}.safetensors"
    models = [load_file(outcome.folder / last) for outcome in (alone, riding)]
    assert all(torch.equal(tensor, models[1][name]) for name, tensor in models[0].items() if "meter" not in name)
    (first, trained), (second, again) = private(alone), private(riding)
    assert torch.equal(first["user"], second["user"])
    assert trained.any()
    np.testing.assert_array_equal(trained, again)


def test_it_saves_messages_and_the_second_download_of_who_trains(federate: Federate) -> None:
    alone = federate("evaluation.every=1", ALONE, nodes=USERS)
    riding = federate("evaluation.every=1", RIDING, nodes=USERS)
    sent = [
        Counter(
            unpack(m.content).fields["round"] for m in outcome.grid.sent if m.metadata.message_type != "query.enroll"
        )
        for outcome in (alone, riding)
    ]
    cohort = alone.metrics[0]["cohort"]
    # Those of rounds 1, 3 and 4 ride on 2, 4 and 5; that of 2 ends a phase, and the last two splits share a message.
    assert sent[0] == dict.fromkeys(range(1, 6), USERS + cohort)
    assert sent[1] == {1: cohort, 2: USERS + USERS, 3: cohort, 4: USERS, 5: USERS + USERS}
    full, lora = (alone.metrics[n]["bytes"]["down"] / cohort for n in (0, 4))
    saved = [
        USERS * (before["bytes_per_user"]["evaluation"] - after["bytes_per_user"]["evaluation"])
        for before, after in zip(alone.metrics, riding.metrics, strict=True)
    ]
    assert saved == pytest.approx(np.cumsum([full * cohort, 0, lora * cohort, lora * cohort, 0]))


def test_only_who_trains_is_asked_to(federate: Federate) -> None:
    outcome = federate("evaluation.every=1", RIDING, nodes=USERS)
    for message, reply in zip(outcome.grid.sent, outcome.grid.received, strict=True):
        arrays, kind = unpack(reply.content).arrays, message.metadata.message_type
        assert message.metadata.message_id == reply.metadata.reply_to_message_id
        assert (UPDATE in arrays) == (kind == "train")
        asked = str(unpack(message.content).fields.get("splits", "")).split()
        assert [name for name in arrays if name.startswith(METRICS)] == [METRICS + split for split in asked]


Bend = Callable[[dict[str, bytes]], dict[str, bytes]]


def bent(bend: Bend) -> Callable[[Message, Context], Message]:
    """A client whose second node bends the reply in which the metrics of round 3 come with the update of round 4."""

    def client(message: Message, context: Context) -> Message:
        reply = honest(message, context)
        both = message.metadata.message_type == "train" and unpack(message.content).fields.get("after") == 3
        if not both or context.node_config["partition-id"] != 1:
            return reply
        arrays = {name: values.tobytes() for name, values in unpack(reply.content).arrays.items()}
        return Message(pack({}, bend(arrays)), reply_to=message)

    return client


def damaged(name: str) -> Bend:
    return lambda arrays: {**arrays, name: arrays[name][:-1]}


def test_metrics_and_update_of_one_reply_are_judged_apart(federate: Federate) -> None:
    overrides = ("evaluation.every=1", RIDING)
    good = federate(*overrides, nodes=3)
    metrics = federate(*overrides, nodes=3, client=bent(damaged(METRICS + "validation")))
    update = federate(*overrides, nodes=3, client=bent(damaged(UPDATE)))
    for outcome in (metrics, update):
        assert [record["dropped_replies"] for record in outcome.metrics] == [{}, {}, {}, {"malformed": 1}, {}]
    assert metrics.metrics[2]["validation"]["users"] == 40
    assert metrics.summary["test"] == good.summary["test"], "its update was taken"
    assert update.metrics[2]["validation"] == good.metrics[2]["validation"]
    assert update.metrics[3]["users"] < good.metrics[3]["users"]
    last = "checkpoints/round-000005.safetensors"
    counted = [load_file(outcome.folder / last)["meter.evaluation"] for outcome in (good, metrics, update)]
    size = len(next(v.tobytes() for k, v in unpack(good.grid.received[-1].content).arrays.items() if METRICS in k))
    assert [int(counted[0] - count) for count in counted] == [0, 20 * size, 0]


def test_a_run_that_ends_early_has_told_of_every_round_that_ended(federate: Federate, tmp_path: Path) -> None:
    def failing(message: Message, context: Context) -> Message:
        if unpack(message.content).fields.get("round") == 4:
            raise RuntimeError("the power has gone")
        return honest(message, context)

    with pytest.raises(FederationError, match="round 4: 2 of 2 nodes failed"):
        federate("evaluation.every=1", RIDING, nodes=2, client=failing)
    lines = [json.loads(line) for line in (tmp_path / "runs-1/r/metrics.jsonl").read_text().splitlines()]
    assert [record["round"] for record in lines] == [1, 2, 3]
    assert ["validation" in record for record in lines] == [True, True, False]


def test_too_many_nodes_that_cannot_rank_end_the_run(federate: Federate) -> None:
    def mute(message: Message, context: Context) -> Message:
        reply = honest(message, context)
        if unpack(message.content).fields.get("after") != 3:
            return reply
        arrays = {name: values.tobytes() for name, values in unpack(reply.content).arrays.items()}
        return Message(pack({}, {name: value for name, value in arrays.items() if name == UPDATE}), reply_to=message)

    with pytest.raises(FederationError, match=r"ranking after round 3: 2 of 2 nodes failed .*malformed"):
        federate("evaluation.every=1", RIDING, nodes=2, client=mute)


ODD: dict[str, tuple[dict[str, str | int], str]] = {
    "another split": ({"splits": "validation train"}, r"the splits are among .*not \['train'\]"),
    "another round": ({"after": 1}, "a model sent in round 4 is not that after round 1"),
    "no round": ({"after": "3"}, "'after' should be a whole number"),
}


@pytest.mark.parametrize("case", ODD)
def test_a_client_ranks_what_it_is_asked_or_says_why_not(federate: Federate, case: str) -> None:
    fields, said = ODD[case]
    replies: list[str] = []

    def odd(message: Message, context: Context) -> Message:
        content = unpack(message.content)
        if content.fields.get("after") == 3:
            told = pack({**content.fields, **fields}, arrays=content.arrays)
            changed = Message(told, 1, message.metadata.message_type)
            changed.metadata.__dict__["_message_id"] = message.metadata.message_id
            try:
                honest(changed, context)
            except Exception as error:
                replies.append(str(error))
        return honest(message, context)

    federate("evaluation.every=1", RIDING, nodes=1, client=odd)
    assert len(replies) == 1
    assert re.search(said, replies[0])
