"""FedPerGNN's graph expansion in whole runs: what users are told, what crosses, and what happens to what is wrong."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from flwr.app import Context, Message
from numpy.typing import NDArray

from client_app.answers.app import app as honest
from client_app.stores.store import PrivateStore
from commands.describe import describe
from exchanges import records
from exchanges.records import pack, unpack
from fedrec.backbones.fedpergnn import FedPerGNN
from fedrec.config.describe import from_dict
from fedrec.core.errors import RoundError
from fedrec.core.keys import opaque_keys, simulation_secret
from fedrec.core.tensors import TensorSpec, text_digest
from fedrec.data import split
from fedrec.data.store import open_store
from fedrec.data.types import Interactions
from fedrec.wire.expansion import Expansion
from fedrec.wire.protocol import around_format, disclosed_format

Federate = Callable[..., Any]

DIM, ITEMS, USERS, TAGS = 8, 100, 60, 30
ON = ("backbone=fedpergnn", "backbone.layers=2", "backbone.expand_every=2", f"backbone.expand_items={TAGS}",
      "backbone.expand_sharers=3", "federation.fraction=0.5")  # fmt: skip
EXACT = (*ON, "backbone.expand_epsilon=null", "backbone.expand_clip=1000.0")
UP = disclosed_format(DIM, TAGS, 1)
DOWN = around_format(DIM, 1)


def users_of(outcome: Any) -> tuple[NDArray[np.uint64], Interactions]:
    setup = json.loads(str(unpack(outcome.grid.sent[0].content).fields["setup"]))
    interactions = open_store(Path(setup["simulation"]["interactions"]))
    return opaque_keys(simulation_secret(0), interactions.user_ids), interactions


def kept(outcome: Any, after: int = 10**6) -> NDArray[np.float32]:
    """What the users keep of others after a round [users, dim], in the order of the data."""
    spec = {"around": TensorSpec((DIM,))}
    store = PrivateStore(outcome.folder / "state", f"{text_digest('r')} around", spec)
    return store.load(users_of(outcome)[0], before=after + 1)[0]["around"].numpy()


def replies(outcome: Any, name: str) -> list[Message]:
    return [reply for reply in outcome.grid.received if name in unpack(reply.content).arrays]


def messages(outcome: Any, kind: str) -> list[Message]:
    return [message for message in outcome.grid.sent if message.metadata.message_type == kind]


def test_1_2_7_and_one_node_per_user_agree(federate: Federate) -> None:
    one = federate(*ON, nodes=1)
    assert np.abs(kept(one)).min(axis=1).max() > 0
    for nodes in (2, 7, USERS):
        many = federate(*ON, nodes=nodes)
        np.testing.assert_allclose(kept(many), kept(one), atol=1e-6)
        many.must_equal(one)


def test_what_users_are_told_of_the_same_vectors_is_the_same_to_the_bit(federate: Federate) -> None:
    """Nobody learns anything, so that the vectors do not differ in a last bit between one layout and another."""
    one, many = (kept(federate(*ON, "optim.lr=1e-30", nodes=nodes)) for nodes in (1, 7))
    assert one.any()
    assert (one == many).all()


def test_both_engines_agree_and_what_is_told_matters(federate: Federate) -> None:
    fast, slow, off = federate(*EXACT), federate(*EXACT, "engine=oracle"), federate(*EXACT, "backbone.expand_every=0")
    assert fast.metrics[1]["loss"] == off.metrics[1]["loss"]
    assert abs(fast.metrics[2]["loss"] - off.metrics[2]["loss"]) > 1e-9
    for name, tensor in slow.checkpoint().items():
        torch.testing.assert_close(fast.checkpoint()[name], tensor, atol=1e-4, rtol=1e-4, msg=name)


def test_users_are_told_of_all_around_them_also_those_who_never_trained(
    federate: Federate, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Worked out again from everybody's histories and private tensors, of which the run's own server has neither."""
    seen: dict[int, dict[int, NDArray[np.float32]]] = {}
    disclosed = FedPerGNN.disclosed

    def spy(self: FedPerGNN, private: Any, sizes: Any) -> Any:
        seen.setdefault(len(seen), {})
        seen[len(seen) - 1] = dict(enumerate(private["user"].float().numpy()))
        return disclosed(self, private, sizes)

    monkeypatch.setattr(FedPerGNN, "disclosed", spy)
    outcome = federate(*EXACT, nodes=1)
    assert [unpack(m.content).fields["round"] for m in messages(outcome, records.DISCLOSE)] == [2, 4]
    keys, interactions = users_of(outcome)
    histories = [split.histories(interactions, "train", np.array([user])).items for user in range(USERS)]
    assert max(map(len, histories)) <= TAGS
    sharing = np.bincount(np.concatenate(histories), minlength=ITEMS)
    own = PrivateStore(outcome.folder / "state", text_digest("r"), {"user": TensorSpec((DIM,))})
    _, found = own.load(keys, before=3)
    assert 0 < (~found).sum() < USERS, "some have not trained by then"
    for number, after in enumerate((2, 4)):
        vectors = np.stack(list(seen[number].values()))
        stored, has = own.load(keys, before=after + 1)
        np.testing.assert_array_equal(vectors[has], stored["user"].numpy()[has], "as they are after the round")
        expected = np.zeros((USERS, DIM))
        for user, mine in enumerate(histories):
            for other, theirs in enumerate(histories):
                if other != user:
                    for item in np.intersect1d(mine, theirs):
                        if sharing[item] >= 3:
                            weight = np.sqrt(len(mine) * len(theirs)) * sharing[item]
                            expected[user] += vectors[other] / weight
        np.testing.assert_allclose(kept(outcome, after), expected, atol=1e-6)
        assert not kept(outcome, after - 1)[0].any() or after == 4
    assert outcome.metrics[-1]["round"] == 5
    assert (
        outcome.summary["test"]["cold_users"] == federate(*ON, "backbone.expand_every=0").summary["test"]["cold_users"]
    )


def test_off_is_as_if_it_were_not_there(federate: Federate) -> None:
    outcome = federate("backbone=fedpergnn", "backbone.layers=2", "backbone.expand_items=7")
    setup = json.loads(str(unpack(outcome.grid.sent[0].content).fields["setup"]))
    assert setup["backbone"].keys() == {"name", "init_std", "layers", "degree_items", "degree_epsilon"}
    assert not messages(outcome, records.DISCLOSE)
    assert not messages(outcome, records.SURROUND)
    assert not kept(outcome).any()


# Bytes ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("merged", [False, True])
def test_the_meter_counts_what_lone_devices_move(federate: Federate, merged: bool) -> None:
    """One node per user: the real packets, added up, are what is counted, and nothing frozen is among them."""
    more = ("strategy.merge_every=1",) if merged else ()
    on, off = (federate(*ON, f"backbone.expand_every={every}", *more, nodes=USERS) for every in (2, 0))
    up = [unpack(reply.content).packet(records.DISCLOSED) for reply in replies(on, records.DISCLOSED)]
    down = [unpack(message.content) for message in messages(on, records.SURROUND)]
    assert [len(packet) for packet in up] == [UP.size()] * 2 * USERS
    assert [len(content.packet(records.AROUND)) for content in down] == [DOWN.size()] * 2 * USERS
    assert all(content.arrays.keys() == {records.AROUND} for content in down)
    assert all(not unpack(message.content).arrays for message in messages(on, records.DISCLOSE))
    told = {name: on.summary["bytes_per_user"][name] - off.summary["bytes_per_user"][name] for name in ("up", "down")}
    assert told == pytest.approx({"up": 2 * UP.size(), "down": 2 * DOWN.size()})
    line = on.metrics[1]["bytes"]
    assert line["up"] - off.metrics[1]["bytes"]["up"] == USERS * UP.size()
    assert on.summary["bytes_per_user"]["merges"] == off.summary["bytes_per_user"]["merges"]


def test_what_is_described_is_what_is_counted(federate: Federate) -> None:
    outcome = federate(*ON, "federation.fraction=1.0", "evaluation.every=0")
    found = describe(from_dict(yaml.safe_load((outcome.folder / "config.yaml").read_text())), None)
    counted = outcome.summary["bytes_per_user"]
    assert (counted["up"], counted["down"], counted["one_time"]) == (found.run.up, found.run.down, found.run.one_time)
    (exchange,) = found.exchanges
    assert (exchange.every, exchange.up, exchange.down) == (2, UP.size(), DOWN.size())
    assert UP.size() == 36 + 4 * DIM + 8 * TAGS
    assert DOWN.size() == 36 + 8 + 4 * DIM
    assert [row.tensor for row in found.phases[0].tensors if row.held_by == "own device"] == [
        "private.user", "private.around",
    ]  # fmt: skip


# What crosses --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("nodes", [1, USERS])
def test_the_server_sees_no_vector_and_no_item(federate: Federate, nodes: int) -> None:
    outcome = federate(*ON, "strategy.rounds=3", nodes=nodes)
    keys, interactions = users_of(outcome)
    crossed = [
        values.tobytes()
        for message in [*outcome.grid.sent, *outcome.grid.received]
        for values in unpack(message.content).arrays.values()
    ]
    own = PrivateStore(outcome.folder / "state", text_digest("r"), {"user": TensorSpec((DIM,))})
    vectors, found = own.load(keys, before=3)
    assert found.sum() > USERS / 2
    for user in np.flatnonzero(found).tolist():
        items = np.asarray(interactions.items[interactions.offsets[user] : interactions.offsets[user + 1]])
        train = items[:-2].astype(np.int64)
        disclosed = vectors["user"][user] / np.sqrt(len(train))
        assert not any(disclosed.numpy().tobytes()[:8] in piece for piece in crossed)
        assert not any(np.sort(train)[:3].tobytes() in piece for piece in crossed)
    sent = [unpack(reply.content).packet(records.DISCLOSED) for reply in replies(outcome, records.DISCLOSED)]
    form = disclosed_format(DIM, TAGS, USERS // nodes)
    tags = np.concatenate([form.decode(packet).tensors["tags"].numpy() for packet in sent])
    assert np.abs(tags).min() > 2**32, "no tag is a row of the catalogue"
    assert (np.unique(tags, return_counts=True)[1] > 2).any(), "or nobody would be told anything"


# What is wrong -------------------------------------------------------------------------------------------------------


Change = Callable[[bytes, int], bytes]


def bent(change: Change, kind: str, name: str, node: int = 1) -> Callable[[Message, Context], Message]:
    """One of three nodes answers something else."""

    def client(message: Message, context: Context) -> Message:
        reply = honest(message, context)
        if message.metadata.message_type != kind or context.node_config["partition-id"] != node:
            return reply
        packet = unpack(reply.content).packet(name)
        return Message(pack({}, {name: change(packet, int(unpack(message.content).fields["round"]))}), reply_to=message)

    return client


def with_tensors(change: Callable[[dict[str, torch.Tensor]], object], users: int = USERS // 3) -> Change:
    def bend(packet: bytes, round: int) -> bytes:
        form = disclosed_format(DIM, TAGS, users)
        decoded = form.decode(packet)
        change(decoded.tensors)
        return form.encode(decoded.phase, decoded.round, decoded.tensors)

    return bend


def of_more_users(packet: bytes, round: int) -> bytes:
    form = disclosed_format(DIM, TAGS, 21)
    return form.encode(0, round, {name: spec.zeros() for name, spec in form.spec.items()})


def sealed(header: bytes, body: bytes) -> bytes:
    """A packet with the checksum of its header and body."""
    return header + zlib.crc32(header + body).to_bytes(4, "little") + body


CLIP, EPSILON = 0.1, 4.0
CHANGES: dict[str, tuple[str, Change]] = {
    "not a number": ("non_finite", with_tensors(lambda sent: sent["vectors"][3].fill_(float("nan")))),
    "beyond every draw": (
        "too_large",
        with_tensors(lambda sent: sent["vectors"][3].fill_(1.01 * Expansion(1, 1, 2, CLIP, EPSILON).largest)),
    ),
    "a tag twice": ("wrong_tags", with_tensors(lambda sent: sent["tags"][3, :2].fill_(-(2**63)))),
    "tags in another order": ("wrong_tags", with_tensors(lambda sent: sent["tags"].copy_(sent["tags"].flip(1)))),
    "truncated": ("malformed", lambda packet, round: packet[:-7]),
    "of more users": ("wrong_spec", of_more_users),
    "of another round": ("wrong_round", lambda packet, round: sealed(packet[:8] + b"\x09" + packet[9:32], packet[36:])),
    "far too long": ("oversized", lambda packet, round: packet + bytes(10**6)),
}


@pytest.mark.parametrize("case", CHANGES)
def test_a_bad_report_is_left_out_and_counted_and_its_users_keep_what_they_had(federate: Federate, case: str) -> None:
    reason, change = CHANGES[case]
    assert f"backbone.expand_clip={CLIP}" not in ON
    outcome = federate(*ON, nodes=3, client=bent(change, records.DISCLOSE, records.DISCLOSED))
    assert [record["dropped_replies"] for record in outcome.metrics] == [{}, {reason: 1}, {}, {reason: 1}, {}]
    told = kept(outcome)
    assert not told[1::3].any()
    assert told[0::3].any(axis=1).all()
    assert told[2::3].any(axis=1).all()
    assert outcome.summary["test"]["users"] == USERS
    assert outcome.metrics[-1]["bytes_per_user"]["up"] < federate(*ON).metrics[-1]["bytes_per_user"]["up"]


def test_a_node_that_fails_later_keeps_what_it_was_told_before(federate: Federate) -> None:
    def client(message: Message, context: Context) -> Message:
        late = message.metadata.message_type in (records.DISCLOSE, records.SURROUND)
        if late and context.node_config["partition-id"] == 1 and unpack(message.content).fields["round"] == 4:
            raise OSError("the disk is full")
        return honest(message, context)

    outcome = federate(*ON, nodes=3, client=client)
    assert [record["dropped_replies"] for record in outcome.metrics] == [{}, {}, {}, {"failed": 1}, {}]
    before, after = kept(outcome, 2), kept(outcome, 4)
    assert before[1::3].any(axis=1).all()
    assert (before[1::3] == after[1::3]).all()
    assert (before[0::3] != after[0::3]).any(axis=1).all()


def test_if_nobody_discloses_anything_the_run_goes_on(federate: Federate) -> None:
    def client(message: Message, context: Context) -> Message:
        if message.metadata.message_type == records.DISCLOSE:
            raise OSError("the disk is full")
        return honest(message, context)

    outcome = federate(*ON, nodes=3, client=client)
    assert not kept(outcome).any()
    assert not messages(outcome, records.SURROUND)
    assert outcome.metrics[1]["dropped_replies"] == {"failed": 3}


@pytest.mark.parametrize(
    ("case", "said"),
    [
        ("not a number", "finite numbers of at most"),
        ("too much", "finite numbers of at most"),
        ("truncated", "truncated"),
        ("between two exchanges", "an exchange every 2 rounds, not after 3"),
    ],
)
def test_a_device_checks_what_it_is_told(
    federate: Federate, caplog: pytest.LogCaptureFixture, case: str, said: str
) -> None:
    """Of a server that tells nonsense nothing is kept, and it is asked for nothing at other times than was said."""

    def client(message: Message, context: Context) -> Message:
        if message.metadata.message_type == records.SURROUND and context.node_config["partition-id"] == 1:
            content = unpack(message.content)
            form, packet = around_format(DIM, USERS // 3), content.packet(records.AROUND)
            decoded = form.decode(packet)
            number = {"not a number": float("nan"), "too much": 1e6}.get(case, 0.0)
            decoded.tensors["around"][2, 1] = number
            round = 3 if case == "between two exchanges" else decoded.round
            packet = form.encode(decoded.phase, round, decoded.tensors, decoded.scalars)
            packet = packet[:-1] if case == "truncated" else packet
            fields = {**content.fields, "round": round}
            bent = Message(
                pack(fields, {records.AROUND: packet}), message.metadata.dst_node_id, message.metadata.message_type
            )
            honest(bent, context)
        return honest(message, context)

    with caplog.at_level("WARNING", "fedrec"):
        outcome = federate(*ON, nodes=3, client=client)
    assert caplog.text.count(said) == 2
    assert not kept(outcome)[1::3].any()
    assert outcome.summary["test"]["users"] == USERS


def test_a_backbone_that_discloses_nothing_answers_no_such_question(
    federate: Federate, caplog: pytest.LogCaptureFixture
) -> None:
    def curious(message: Message, context: Context) -> Message:
        if message.metadata.message_type == "train":
            honest(Message(message.content, message.metadata.dst_node_id, records.DISCLOSE), context)
        return honest(message, context)

    overrides = ("federation.max_failures=1.0", "federation.repeats=0", "evaluation.every=0")
    with caplog.at_level("WARNING", "fedrec"), pytest.raises(RoundError, match="'failed': 3"):
        federate("backbone=fedpergnn", *overrides, nodes=3, client=curious)
    assert caplog.text.count("backbone 'fedpergnn' is set to disclose nothing") == 3


def test_a_user_who_has_diverged_takes_part_with_nothing(federate: Federate, monkeypatch: pytest.MonkeyPatch) -> None:
    init = FedPerGNN.init_private

    def broken(self: FedPerGNN, seed: int, keys: np.ndarray) -> Any:
        tensors = init(self, seed, keys)
        tensors["user"][torch.from_numpy(keys % 3 == 0)] = float("nan")
        return tensors

    monkeypatch.setattr(FedPerGNN, "init_private", broken)
    outcome = federate(*EXACT, "strategy.rounds=3")
    told, sane = kept(outcome), users_of(outcome)[0] % 3 != 0
    assert np.isfinite(told).all()
    assert told[sane].any()
    assert not told[~sane].any()
    assert outcome.metrics[1]["dropped_replies"] == {}
