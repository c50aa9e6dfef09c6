"""A reply that is wrong is left out and counted by name, and the round goes on without it."""

from __future__ import annotations

import io
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict
from safetensors.torch import load_file

from client_app.answers.app import app as honest
from exchanges import records
from exchanges.records import UPDATE, pack, unpack
from fedrec.backbones.fedmf import FedMF
from fedrec.core.errors import FederationError
from fedrec.core.tensors import Tensors

Federate = Callable[..., Any]


def bent(
    change: Callable[[bytes], RecordDict], partition: int = 1, round: int = 3
) -> Callable[[Message, Context], Message]:
    """A client that is honest but for one node's update in one round."""

    def client(message: Message, context: Context) -> Message:
        reply = honest(message, context)
        if message.metadata.message_type != "train" or context.node_config["partition-id"] != partition:
            return reply
        if unpack(message.content).fields["round"] != round:
            return reply
        return Message(change(unpack(reply.content).packet(UPDATE)), reply_to=message)

    return client


def floats(packet: bytes, change: Callable[[np.ndarray, np.ndarray], None]) -> RecordDict:
    """A reply of the packet with scalars and tensors changed."""
    return pack({}, {UPDATE: changed(packet, change)})


def changed(packet: bytes, change: Callable[[np.ndarray, np.ndarray], None]) -> bytes:
    """The packet with scalars and tensors changed, and its checksum made good again."""
    body = bytearray(packet[36:])
    scalars = np.frombuffer(body, dtype=np.float64, count=8)
    tensors = np.frombuffer(body, dtype=np.float32, offset=64)
    change(scalars, tensors)
    return sealed(packet[:32], bytes(body))


def sealed(header: bytes, body: bytes) -> bytes:
    """A packet with the checksum of its header and body."""
    return header + zlib.crc32(header + body).to_bytes(4, "little") + body


def set_nan(scalars: np.ndarray, tensors: np.ndarray) -> None:
    tensors[3] = np.nan


def set_weight(scalars: np.ndarray, tensors: np.ndarray) -> None:
    scalars[0] = 1e15


def set_users(scalars: np.ndarray, tensors: np.ndarray) -> None:
    scalars[1] = 1000


def archive() -> RecordDict:
    """What numpy reads without an error, and not as an array."""
    file = io.BytesIO()
    np.savez(file, update=np.zeros(3, dtype=np.uint8))
    array = Array("uint8", (3,), "numpy.ndarray", file.getvalue())
    return RecordDict({"arrays": ArrayRecord({UPDATE: array}), "fields": ConfigRecord({})})


def set_huge(scalars: np.ndarray, tensors: np.ndarray) -> None:
    tensors[:] = 1e20


CHANGES: dict[str, tuple[str, Callable[[bytes], RecordDict]]] = {
    "NaN": ("non_finite", lambda packet: floats(packet, set_nan)),
    "huge weight": ("wrong_weight", lambda packet: floats(packet, set_weight)),
    "more users than asked": ("wrong_users", lambda packet: floats(packet, set_users)),
    "huge update": ("too_large", lambda packet: floats(packet, set_huge)),
    "truncated": ("malformed", lambda packet: pack({}, {UPDATE: packet[:-7]})),
    "empty": ("malformed", lambda packet: pack({}, {UPDATE: b""})),
    "flipped bit": ("malformed", lambda packet: pack({}, {UPDATE: packet[:-1] + bytes([packet[-1] ^ 1])})),
    "another specification": ("wrong_spec", lambda packet: pack({}, {UPDATE: packet[:12] + b"8 bytes." + packet[20:]})),
    "replayed from round 2": ("wrong_spec", lambda packet: pack({}, {UPDATE: packet[:6] + b"\1" + packet[7:]})),
    "another round": (
        "wrong_round",
        lambda packet: pack({}, {UPDATE: sealed(packet[:8] + b"\x02\0\0\0" + packet[12:32], packet[36:])}),
    ),
    "no update": ("malformed", lambda packet: pack({})),
    "not a packet": ("malformed", lambda packet: pack({}, arrays={UPDATE: np.ones((2, 2))})),
    "other records": ("malformed", lambda packet: RecordDict({"arrays": ConfigRecord({"a": 1})})),
    "an archive in the place of an array": ("malformed", lambda packet: archive()),
    "unreadable array": (
        "malformed",
        lambda packet: RecordDict(
            {
                "arrays": ArrayRecord({UPDATE: Array("O", (3,), "numpy.ndarray", b"not numpy")}),
                "fields": ConfigRecord({}),
            }
        ),
    ),
}


@pytest.mark.parametrize("case", CHANGES)
def test_a_bad_reply_is_dropped_and_counted(federate: Federate, case: str) -> None:
    reason, change = CHANGES[case]
    outcome = federate(nodes=3, client=bent(change))
    assert [record["dropped_replies"] for record in outcome.metrics] == [{}, {}, {reason: 1}, {}, {}]
    third = outcome.metrics[2]
    assert 0 < third["users"] < third["cohort"]
    assert outcome.summary["test"]["users"] == 60


def test_the_others_decide_the_round(federate: Federate) -> None:
    """The model after a round with a bad reply is the average of the good ones, not of nothing, nor of the bad."""
    good, bad = federate(nodes=3), federate(nodes=3, client=bent(CHANGES["NaN"][1], round=5))
    silent = federate(nodes=3, client=bent(lambda packet: pack({}), round=5))

    def last(outcome: Any) -> torch.Tensor:
        return load_file(outcome.folder / "checkpoints/round-000005.safetensors")["trainable.embedding.A"]

    assert torch.equal(last(bad), last(silent))
    assert not torch.equal(last(bad), last(good))


OF_A_GROUP: dict[str, Callable[[bytes], bytes]] = {
    "non_finite": lambda packet: changed(packet, set_nan),
    "too_large": lambda packet: changed(packet, set_huge),
    "malformed": lambda packet: packet[:-8],
}


def test_a_bad_update_of_one_group_is_counted_and_mixed_into_none(federate: Federate) -> None:
    """What the node gave for its other groups is left out with it, as if it had not answered."""

    def bent(change: Callable[[bytes], bytes] | None) -> Callable[[Message, Context], Message]:
        def client(message: Message, context: Context) -> Message:
            reply, content = honest(message, context), unpack(message.content)
            trains = "slots" in content.arrays and content.fields["round"] == 3
            if not trains or context.node_config["partition-id"] != 1:
                return reply
            given = unpack(reply.content)
            packets = {name: given.packet(name) for name in given.arrays}
            assert len(packets) > 1, "of several groups"
            last = max(packets)
            bad = {} if change is None else {**packets, last: change(packets[last])}
            return Message(pack({}, bad), reply_to=message)

        return client

    fellrec = ("strategy=fellrec", "grouping.groups=3", "strategy.rounds=3", "federation.fraction=0.8")
    silent = federate(*fellrec, "evaluation.every=5", nodes=3, client=bent(None)).checkpoint()
    for reason, change in OF_A_GROUP.items():
        outcome = federate(*fellrec, "evaluation.every=5", nodes=3, client=bent(change))
        assert outcome.metrics[-1]["dropped_replies"] == {reason: 1}
        found = outcome.checkpoint()
        assert all(torch.equal(found[name], silent[name]) for name in silent if name.startswith("trainable@"))


def test_a_client_that_raises_is_counted_and_too_many_end_the_run(federate: Federate) -> None:
    def failing(partitions: set[int]) -> Callable[[Message, Context], Message]:
        def client(message: Message, context: Context) -> Message:
            if message.metadata.message_type == "train" and context.node_config["partition-id"] in partitions:
                raise RuntimeError("the disk is full")
            return honest(message, context)

        return client

    outcome = federate(nodes=3, client=failing({1}))
    assert all(record["dropped_replies"] == {"failed": 1} for record in outcome.metrics)
    with pytest.raises(FederationError, match=r"round 1: 2 of 3 nodes failed .*federation.max_failures=0.5"):
        federate(nodes=3, client=failing({0, 2}))


def test_a_node_that_lost_what_it_was_sent_is_sent_it_again(federate: Federate) -> None:
    """A restarted device has forgotten the setup, or lost its disk: it says so, and takes part again."""

    def forgetful(message: Message, context: Context) -> Message:
        if message.metadata.message_type == "train" and context.node_config["partition-id"] == 1:
            content = unpack(message.content)
            if content.fields["round"] == 4 and not any(name.startswith(records.FROZEN) for name in content.arrays):
                return Message(pack({records.MISSING: str(content.fields["frozen"])}), reply_to=message)
        return honest(message, context)

    plain, outcome = federate(nodes=3), federate(nodes=3, client=forgetful)
    assert outcome.metrics[3]["dropped_replies"] == {}
    assert outcome.summary["test"] == plain.summary["test"]


def test_a_node_that_forgot_the_run_is_told_again(federate: Federate) -> None:
    def restarted(message: Message, context: Context) -> Message:
        first = not any(name.startswith(records.FROZEN) for name in unpack(message.content).arrays)
        if message.metadata.message_type == "train" and unpack(message.content).fields["round"] == 4 and first:
            context.state = RecordDict()
        return honest(message, context)

    plain, outcome = federate(nodes=3), federate(nodes=3, client=restarted)
    assert outcome.metrics[3]["dropped_replies"] == {}
    assert outcome.summary["test"] == plain.summary["test"]


def test_a_user_who_diverged_is_left_out_and_costs_nobody_else(
    federate: Federate, monkeypatch: pytest.MonkeyPatch
) -> None:
    init = FedMF.init_private

    def one_broken(self: FedMF, seed: int, keys: np.ndarray) -> Tensors:
        tensors = init(self, seed, keys)
        tensors["user"][torch.from_numpy(keys == broken_key)] = float("inf")
        return tensors

    broken_key = int(federate(nodes=1).grid.received[0].content["arrays"]["keys"].numpy()[17])
    monkeypatch.setattr(FedMF, "init_private", one_broken)
    outcome = federate("federation.fraction=1.0", nodes=2)
    assert outcome.summary["test"]["users"] == 59
    assert outcome.summary["test"]["diverged_users"] == 1
    assert outcome.summary["dropped_replies"] == {}
    assert [record["dropped_users"] for record in outcome.metrics] == [{"non_finite": 1}] * 5


def test_a_node_that_runs_other_code_is_refused(federate: Federate) -> None:
    def other(message: Message, context: Context) -> Message:
        reply = honest(message, context)
        if message.metadata.message_type == "query.enroll" and context.node_config["partition-id"] == 1:
            keys = unpack(reply.content).arrays[records.KEYS]
            return Message(pack({"code": "0123456789abcdef"}, arrays={records.KEYS: keys}), reply_to=message)
        return reply

    outcome = federate(nodes=3, client=other)
    assert [record["dropped_replies"] for record in outcome.metrics] == [{"other_code": 1}, {}, {}, {}, {}]
    assert outcome.summary["test"]["users"] == 40

    def all_other(message: Message, context: Context) -> Any:
        return Message(pack({"code": "0"}, arrays={records.KEYS: np.arange(3, dtype=np.uint64)}), reply_to=message)

    with pytest.raises(FederationError, match=r"0 of the 2 connected nodes have joined .*other_code"):
        federate(nodes=2, client=all_other)
