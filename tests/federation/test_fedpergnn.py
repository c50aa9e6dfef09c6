"""FedPerGNN in whole runs: counted degrees, the same result on any layout, and no interaction that leaves its user."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Context, Message

from client_app.answers.app import app as honest
from client_app.stores.store import PrivateStore
from exchanges import records
from exchanges.records import FROZEN, UPDATE, pack, unpack
from fedrec.backbones.fedpergnn import FedPerGNN
from fedrec.config.describe import load_member
from fedrec.core.errors import FederationError, RoundError
from fedrec.core.keys import opaque_keys, simulation_secret
from fedrec.core.registry import backbones
from fedrec.core.tensors import Tensors, text_digest
from fedrec.data import split
from fedrec.data.store import open_store
from fedrec.wire.item_counts import counts_format

Federate = Callable[..., Any]

GRAPH = "backbone=fedpergnn"
DEGREE = "frozen.backbone.degree"
ITEMS = 100
SHORT = ("strategy.rounds=2", "strategy.warmup_rounds=1", "optim.solve_epochs=1")
EXACT = (GRAPH, "backbone.degree_epsilon=null", "backbone.degree_items=1000")


def test_1_2_7_and_one_node_per_user_agree(federate: Federate) -> None:
    one = federate(GRAPH, nodes=1)
    assert one.metrics[-1]["loss"] < one.metrics[0]["loss"]
    assert one.summary["test"]["ndcg@10"] > one.summary["baselines"]["random"]["ndcg@10"]
    for nodes in (2, 7, 60):
        many = federate(GRAPH, nodes=nodes)
        assert torch.equal(one.checkpoint()[DEGREE], many.checkpoint()[DEGREE]), (
            "counts do not depend on the layout at all"
        )
        many.must_equal(one)


def test_both_engines_agree(federate: Federate) -> None:
    fast, slow = federate(GRAPH, "engine=cohort"), federate(GRAPH, "engine=oracle")
    for name, tensor in slow.checkpoint().items():
        torch.testing.assert_close(fast.checkpoint()[name], tensor, atol=1e-4, rtol=1e-4, msg=name)


def training_counts(outcome: Any) -> np.ndarray:
    setup = json.loads(str(unpack(outcome.grid.sent[0].content).fields["setup"]))
    histories = split.histories(open_store(Path(setup["simulation"]["interactions"])), "train")
    return np.bincount(histories.items, minlength=ITEMS)


@pytest.mark.parametrize("nodes", [1, 2, 7, 60])
def test_without_noise_degrees_are_the_exact_counts_of_what_users_train_on(federate: Federate, nodes: int) -> None:
    outcome = federate(*EXACT, "strategy.rounds=3", nodes=nodes)
    found = outcome.checkpoint(3)[DEGREE]
    assert found.tolist() == np.maximum(training_counts(outcome), 1).tolist()


def test_noise_changes_the_degrees_and_they_stay_at_least_1(federate: Federate) -> None:
    noised = federate(GRAPH, "backbone.degree_epsilon=3.0").checkpoint()[DEGREE]
    assert noised.min() >= 1
    assert not torch.equal(noised, federate(*EXACT).checkpoint()[DEGREE])


def messages(outcome: Any, kind: str) -> list[Message]:
    return [message for message in outcome.grid.sent if message.metadata.message_type == kind]


def test_items_are_counted_once_and_only_if_the_backbone_wants_it(federate: Federate) -> None:
    outcome = federate(GRAPH, nodes=3)
    assert len(messages(outcome, records.COUNT)) == 3
    assert not messages(federate(nodes=3), records.COUNT)


def test_the_meter_counts_the_reports_and_the_degrees(federate: Federate) -> None:
    outcome = federate(GRAPH, *SHORT, nodes=60)
    setup = json.loads(str(unpack(outcome.grid.sent[0].content).fields["setup"]))
    told = len(json.dumps({**setup, "simulation": None}, sort_keys=True, separators=(",", ":")).encode())
    once: dict[str, int] = {}
    received: dict[str, set[int]] = {}
    trained: dict[str, set[int]] = {}
    for message in outcome.grid.sent:
        content = unpack(message.content)
        for array, values in content.arrays.items():
            if array.startswith(FROZEN):
                digest = array.removeprefix(FROZEN)
                once[digest] = len(values)
                received.setdefault(digest, set()).add(message.metadata.dst_node_id)
        if message.metadata.message_type == "train":
            trained.setdefault(str(content.fields["frozen"]), set()).add(message.metadata.dst_node_id)
    assert len(once) == 3, "the eligible items, the degrees of the warm-up, and base table with degrees"
    up = [unpack(reply.content).packet(records.COUNTS) for reply in outcome.grid.received if has(reply, records.COUNTS)]
    assert [len(packet) for packet in up] == [counts_format(ITEMS).size()] * 60
    frozen = sum(once[digest] * len(nodes) for digest, nodes in trained.items())
    eligible = once[setup["eligible"]]
    assert outcome.summary["bytes_per_user"]["one_time"] * 60 == pytest.approx(
        60 * (told + 8 + eligible + len(up[0])) + frozen
    )


def has(reply: Message, name: str) -> bool:
    return name in unpack(reply.content).arrays


# Replies that are wrong ----------------------------------------------------------------------------------------------


def bent(change: Callable[[bytes], bytes], partitions: set[int]) -> Callable[[Message, Context], Message]:
    def client(message: Message, context: Context) -> Message:
        reply = honest(message, context)
        if message.metadata.message_type != records.COUNT or context.node_config["partition-id"] not in partitions:
            return reply
        return Message(
            pack({}, {records.COUNTS: change(unpack(reply.content).packet(records.COUNTS))}), reply_to=message
        )

    return client


def with_counts(users: float | None = None, count: int | None = None) -> Callable[[bytes], bytes]:
    def change(packet: bytes) -> bytes:
        fmt = counts_format(ITEMS)
        decoded = fmt.decode(packet)
        if count is not None:
            decoded.tensors["counts"][7] = count
        return fmt.encode(0, 0, decoded.tensors, decoded.scalars if users is None else [users])

    return change


CHANGES: dict[str, tuple[str, Callable[[bytes], bytes]]] = {
    "more users than live there": ("wrong_counts", with_counts(users=21.0)),
    "not a number of users": ("wrong_counts", with_counts(users=float("nan"))),
    "an item of more users than there are": ("wrong_counts", with_counts(count=21)),
    "a negative count": ("wrong_counts", with_counts(count=-1)),
    "truncated": ("malformed", lambda packet: packet[:-7]),
}


@pytest.mark.parametrize("case", CHANGES)
def test_a_bad_report_is_left_out_and_counted(federate: Federate, case: str) -> None:
    reason, change = CHANGES[case]
    outcome = federate(*EXACT, nodes=3, client=bent(change, {1}))
    assert [record["dropped_replies"] for record in outcome.metrics] == [{reason: 1}, {}, {}, {}, {}]
    assert outcome.checkpoint()[DEGREE].sum() < training_counts(outcome).sum()
    assert outcome.summary["test"]["users"] == 60


def test_too_many_bad_reports_end_the_run(federate: Federate) -> None:
    with pytest.raises(FederationError, match=r"2 of 3 nodes failed .*wrong_counts.*federation.max_failures=0.5"):
        federate(GRAPH, nodes=3, client=bent(with_counts(count=-1), {0, 2}))


def test_a_round_whose_reports_failed_is_repeated_like_any_other(federate: Federate) -> None:
    asked = Counter[int]()
    wrong = bent(with_counts(count=-1), {0, 2})

    def client(message: Message, context: Context) -> Message:
        asked[context.node_id] += message.metadata.message_type == records.COUNT
        return (wrong if asked[context.node_id] == 1 else honest)(message, context)

    outcome = federate(*EXACT, *SHORT, nodes=3, client=client)
    assert [record["dropped_replies"] for record in outcome.metrics] == [
        {"wrong_counts": 2, "count_items_repeated": 1},
        {},
    ]
    assert outcome.checkpoint()[DEGREE].tolist() == np.maximum(training_counts(outcome), 1).tolist()


def test_a_backbone_that_counts_nothing_answers_no_such_question(
    federate: Federate, caplog: pytest.LogCaptureFixture
) -> None:
    def curious(message: Message, context: Context) -> Message:
        if message.metadata.message_type == "train":
            asked = Message(message.content, message.metadata.dst_node_id, records.COUNT)
            honest(asked, context)
        return honest(message, context)

    with caplog.at_level(logging.WARNING, "fedrec"), pytest.raises(RoundError, match="'failed': 3"):
        federate("federation.max_failures=1.0", "federation.repeats=0", "evaluation.every=0", nodes=3, client=curious)
    assert caplog.text.count("backbone 'fedmf' has no items counted") == 3


# What leaves a user --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("nodes", [1, 60])
def test_neither_private_tensors_nor_histories_leave(
    federate: Federate, monkeypatch: pytest.MonkeyPatch, nodes: int
) -> None:
    """Markers in the user vectors, and every user's list of items, are in no byte that crosses."""
    markers = np.array([1234.5678, -8765.4321], dtype=np.float32)
    init = FedPerGNN.init_private

    def marked(self: FedPerGNN, seed: int, keys: np.ndarray) -> Tensors:
        tensors = init(self, seed, keys)
        tensors["user"][:, :2] = torch.from_numpy(markers)
        return tensors

    monkeypatch.setattr(FedPerGNN, "init_private", marked)
    outcome = federate(GRAPH, *SHORT, "optim.lr=1e-30", nodes=nodes)
    crossed = [
        values.tobytes()
        for message in [*outcome.grid.sent, *outcome.grid.received]
        for values in unpack(message.content).arrays.values()
    ]
    assert len(crossed) > 10
    assert not any(marker.tobytes() in piece for marker in markers for piece in crossed)
    assert markers[0].tobytes() in (outcome.folder / "state" / "users.sqlite").read_bytes()
    setup = json.loads(str(unpack(outcome.grid.sent[0].content).fields["setup"]))
    interactions = open_store(Path(setup["simulation"]["interactions"]))
    for user in range(60):
        items = np.asarray(interactions.items[interactions.offsets[user] : interactions.offsets[user + 1]])
        sets = [np.isin(np.arange(ITEMS), part).astype(np.int32) for part in (items, items[:-1], items[:-2])]
        lists = [part.astype(dtype) for part in (items[:4], np.sort(items)[:4]) for dtype in (np.int32, np.int64)]
        assert not any(found.tobytes() in piece for found in [*sets, *lists] for piece in crossed)


def write_shop(path: Path, histories: dict[str, Sequence[int]]) -> list[str]:
    """A table of these histories, in this order, and the overrides that read it."""
    folder = path / f"shop-{len(list(path.glob('shop-*')))}"
    folder.mkdir()
    lines = [f"{user},i{item},{time}" for user, row in histories.items() for time, item in enumerate(row)]
    (folder / "clicks.csv").write_text("user_id,item_id,timestamp\n" + "\n".join(lines) + "\n")
    (folder / "items.csv").write_text(
        "item_id,title\n" + "\n".join(f"i{item},item {item}" for item in range(12)) + "\n"
    )
    return ["dataset=table", f"dataset.interactions={folder}/clicks.csv", f"dataset.item_table={folder}/items.csv"]


HISTORIES: dict[str, Sequence[int]] = {
    "me": [0, 1, 2, 3, 4],
    "a": [5, 6, 7, 0, 1],
    "b": [8, 9, 10, 2, 3],
    "c": [11, 4, 5, 6, 7],
}
SAME_DEGREES = HISTORIES | {"a": [8, 6, 10, 0, 1], "b": [5, 9, 7, 2, 3]}
OTHER_DEGREES = HISTORIES | {"a": [5, 6, 2, 0, 1], "b": [8, 9, 7, 10, 3]}


def round_of_me(federate: Federate, path: Path, histories: dict[str, Sequence[int]]) -> tuple[bytes, dict[str, bytes]]:
    """What the store of `me` holds after a round, and all arrays that its node was sent until then."""
    outcome = federate(
        *write_shop(path, histories), *EXACT, "strategy=full", "base_table.start=random", "strategy.rounds=1",
        "federation.fraction=1.0", "evaluation.ks=[1]", "evaluation.baselines=false", nodes=4,
    )  # fmt: skip
    key = opaque_keys(simulation_secret(0), ["me"])
    home = {
        message.metadata.src_node_id
        for message in outcome.grid.received
        if has(message, records.KEYS) and unpack(message.content).array(records.KEYS) == key
    }
    spec = backbones.get("fedpergnn")(load_member("backbone", "fedpergnn"), 8).private
    kept, found = PrivateStore(outcome.folder / "state", text_digest("r"), spec).load(key, before=2)
    assert found.all()
    sent: dict[str, bytes] = {}
    for message in [*messages(outcome, records.COUNT), *messages(outcome, records.TRAIN)]:
        if message.metadata.dst_node_id in home:
            sent |= {name: values.tobytes() for name, values in unpack(message.content).arrays.items()}
    return kept["user"].numpy().tobytes(), sent


def test_a_client_sees_of_others_nothing_but_the_degrees(federate: Federate, tmp_path: Path) -> None:
    """The authors' released code gives every client everybody's graph.

    Here all that a user is sent before its first update, and what it makes of it, is the same to the bit for any
    interactions of the others that give the same degrees; and other degrees do change it.
    """
    mine, sent = round_of_me(federate, tmp_path, HISTORIES)
    same, sent_again = round_of_me(federate, tmp_path, SAME_DEGREES)
    other, sent_otherwise = round_of_me(federate, tmp_path, OTHER_DEGREES)
    assert len(sent) == 4, "the eligible items, the degrees, the model and the slots"
    assert (mine, sent) == (same, sent_again)
    assert mine != other
    assert len(sent.keys() & sent_otherwise.keys()) == 3, "all but the degrees, which are named by their content"
    assert all(sent[name] == sent_otherwise[name] for name in sent.keys() & sent_otherwise.keys())


def test_a_node_reads_no_history_but_those_of_its_users(federate: Federate, monkeypatch: pytest.MonkeyPatch) -> None:
    """With one user on each node, one history is there to be read, in training and ranking."""
    seen: list[list[float]] = []
    user = FedPerGNN.user

    def spy(self: FedPerGNN, shared: Tensors, private: Tensors, frozen: Tensors, history: Any) -> Tensors:
        seen.append(history.length.tolist())
        assert len(private["user"]) == len(seen[-1])
        return user(self, shared, private, frozen, history)

    monkeypatch.setattr(FedPerGNN, "user", spy)
    outcome = federate(GRAPH, *SHORT, nodes=60)
    replies = [reply for reply in outcome.grid.received if has(reply, UPDATE)]
    assert len(seen) >= len(replies)
    assert {len(lengths) for lengths in seen} == {1}
