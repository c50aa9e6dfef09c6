"""Lists of the rows that changed, in the place of whole tables: the same run in fewer bytes, counted user by user."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from flwr.app import Context, Message

from client_app.answers.app import app as honest
from commands.describe import describe
from exchanges.records import UPDATE, pack, unpack
from fedrec.config.compose import compose
from fedrec.config.describe import from_dict
from fedrec.core.errors import ConfigError

Federate = Callable[..., Any]

SPARSE = "uplink=sparse"
FAST = ["optim=fast", "optim.negatives=5"]
SGD = ["optim.server.kind=sgd", "optim.server.beta1=0.0", "optim.server.lr=10.0"]
"""So that the last bits of a sum, which decide a draw of a lossy codec now and then, do not become whole steps."""
WIDE = "dataset.n_items=300"
"""A catalogue of which a user touches few items."""
USERS = 60  # one node per user
SCALARS = 8


def without_bytes(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    left_out = ("seconds", "bytes", "bytes_per_user")
    return [{key: value for key, value in record.items() if key not in left_out} for record in records]


@pytest.mark.parametrize(
    ("overrides", "nodes"),
    [
        (["strategy=full"], USERS),
        (["strategy=full", "codec=int8", *FAST], 2),
        (["strategy=full", "codec=int8", *FAST], USERS),
        (["strategy=full", "codec=int8", "codec.scale=row", "backbone=sasrec", *FAST, "optim.window=4"], 7),
        (["codec=float16", *FAST], 7),
        (["embedding=hash", "codec=int8", "privacy=pseudo_items", *FAST], 7),
        (["embedding=rqvae", "embedding.codes=8", "embedding.steps=5", *FAST], 7),
    ],
    ids=str,
)
def test_the_run_is_the_same_to_the_bit(federate: Federate, overrides: list[str], nodes: int) -> None:
    """The same model, losses and NDCG as with whole tables, on few nodes and with a device for each user."""
    dense, sparse = federate(*overrides, WIDE, nodes=nodes), federate(*overrides, WIDE, SPARSE, nodes=nodes)
    there, here = dense.checkpoint(), sparse.checkpoint()
    assert here.keys() == there.keys()
    assert all(torch.equal(here[name], tensor) for name, tensor in there.items() if not name.startswith("meter."))
    assert without_bytes(sparse.metrics) == without_bytes(dense.metrics)
    assert sparse.summary["test"] == dense.summary["test"]
    up, whole = (outcome.summary["bytes_per_user"]["up"] for outcome in (sparse, dense))
    assert up < (0.5 if "strategy=full" in overrides else 1.0) * whole
    assert sparse.summary["bytes_per_user"]["down"] == dense.summary["bytes_per_user"]["down"]


@pytest.mark.parametrize(
    "overrides",
    [
        ["strategy=full"],
        ["strategy=full", "engine=oracle"],
        ["codec=int8", *FAST, *SGD],
        ["privacy=pseudo_items", *FAST, *SGD],
    ],
    ids=" ".join,
)
def test_1_2_7_and_one_node_per_user_agree_and_move_the_same(federate: Federate, overrides: list[str]) -> None:
    few = 24
    overrides = [*overrides, WIDE, SPARSE, f"dataset.n_users={few}"]
    one = federate(*overrides, nodes=1)
    assert len({line["bytes"]["up"] / line["cohort"] for line in one.metrics}) > 1, "sizes follow the data"
    for nodes in (2, 7, few):
        federate(*overrides, nodes=nodes).must_equal(one)


def test_both_engines_move_the_same(federate: Federate) -> None:
    overrides = ["strategy=full", "backbone=sasrec", *FAST, *SGD, WIDE, SPARSE]
    fast, slow = (federate(*overrides, f"engine={engine}") for engine in ("cohort", "oracle"))
    assert [line["bytes"] for line in fast.metrics] == [line["bytes"] for line in slow.metrics]


@pytest.mark.parametrize("codec", ["float32", "int8"])
def test_the_meter_counts_the_packets_of_lone_devices(federate: Federate, codec: str) -> None:
    outcome = federate("strategy=full", f"codec={codec}", WIDE, SPARSE, nodes=USERS)
    packets = [len(packet) for *_, packet in outcome.grid.packets(outcome.grid.received, UPDATE)]
    assert len(set(packets)) > 3
    assert sum(packets) == sum(line["bytes"]["up"] for line in outcome.metrics)
    assert outcome.summary["bytes_per_user"]["up"] * USERS == pytest.approx(sum(packets))


def test_users_who_are_left_out_move_what_their_devices_would(federate: Federate) -> None:
    """A device whose update is too large sends zeros: a list of no rows."""
    overrides = ["strategy=full", "optim.lr=0.5", "federation.max_update_norm=6.5", "federation.min_users=0"]
    one, each = (federate(*overrides, WIDE, SPARSE, nodes=nodes) for nodes in (1, USERS))
    dropped = [line["dropped_users"].get("too_large", 0) for line in one.metrics]
    assert any(0 < count < line["cohort"] for count, line in zip(dropped, one.metrics, strict=True))
    assert [line["bytes"] for line in one.metrics] == [line["bytes"] for line in each.metrics]


@pytest.mark.parametrize(
    "overrides",
    [
        ["strategy=full", *FAST, "optim.window=4"],
        ["strategy=full", *FAST],
        ["embedding=hash", "embedding.buckets=64", *FAST, "optim.window=4", "codec=int8"],
    ],
    ids=" ".join,
)
def test_what_is_described_is_a_bound(federate: Federate, overrides: list[str]) -> None:
    outcome = federate(*overrides, WIDE, SPARSE, "federation.fraction=1.0", nodes=USERS)
    config = from_dict(yaml.safe_load((outcome.folder / "config.yaml").read_text()))
    found = describe(config, 300)
    packets = [len(packet) for *_, packet in outcome.grid.packets(outcome.grid.received, UPDATE)]
    assert found.phases[-1].least_up <= min(packets)
    assert max(packets) <= max(phase.up for phase in found.phases)
    assert outcome.summary["bytes_per_user"]["up"] <= found.run.up
    known = "optim.window=4" in overrides
    assert (found.phases[-1].changed is not None) is known
    if known:
        read = (4 + 5) * (2 if "embedding=hash" in overrides else 1)
        assert found.phases[-1].changed == read


# ---- what is refused -------------------------------------------------------------------------------------------------


def bent(change: Callable[[bytearray], None], nodes: int) -> Callable[[Message, Context], Message]:
    """A client that is honest but for one packet in round 3, whose checksum is good all the same."""
    told: list[int] = []

    def client(message: Message, context: Context) -> Message:
        reply = honest(message, context)
        if message.metadata.message_type != "train" or unpack(message.content).fields["round"] != 3 or told:
            return reply
        told.append(1)
        arrays = dict(unpack(reply.content).arrays)
        packet = bytearray(arrays.pop(UPDATE).tobytes())
        change(packet)
        packet[24:32] = (len(packet) - 36 - 8 * (SCALARS + (nodes < USERS))).to_bytes(8, "little")
        packet[32:36] = zlib.crc32(packet[36:], zlib.crc32(packet[:32])).to_bytes(4, "little")
        return Message(pack({}, {UPDATE: bytes(packet)}, arrays), reply_to=message)

    return client


def claim(number: float) -> Callable[[bytearray], None]:
    """Another sum of bytes, which stands after the other scalars."""

    def change(packet: bytearray) -> None:
        packet[36 + 8 * SCALARS : 36 + 8 * (SCALARS + 1)] = np.array([number]).tobytes()

    return change


def rows(change: Callable[[np.ndarray], None]) -> Callable[[bytearray], None]:
    """Other numbers of rows: of 300, each has two bytes, after the number of them."""

    def changed(packet: bytearray) -> None:
        start = 36 + 8 * SCALARS
        count = int.from_bytes(packet[start : start + 4], "little")
        assert 1 < count < 19, "numbers are shorter than a bit for each row"
        numbers = np.frombuffer(packet, dtype="<u2", count=count, offset=start + 4).copy()
        change(numbers)
        packet[start + 4 : start + 4 + 2 * count] = numbers.tobytes()

    return changed


def twice(numbers: np.ndarray) -> None:
    numbers[1] = numbers[0]


def beyond(numbers: np.ndarray) -> None:
    numbers[-1] = 300


def turned(numbers: np.ndarray) -> None:
    numbers[:] = numbers[::-1].copy()


def cut(packet: bytearray) -> None:
    del packet[-4:]


def more(packet: bytearray) -> None:
    packet += bytes(4)


def all_rows(packet: bytearray) -> None:
    packet[36 + 8 * SCALARS : 40 + 8 * SCALARS] = (299).to_bytes(4, "little")


LIES: dict[str, tuple[str, int, Callable[[bytearray], None]]] = {
    "less than nothing": ("wrong_bytes", 2, claim(-1.0)),
    "less than empty packets": ("wrong_bytes", 2, claim(1.0)),
    "more than whole tables": ("wrong_bytes", 2, claim(1e9)),
    "no number": ("wrong_bytes", 2, claim(float("nan"))),
    "half a byte": ("wrong_bytes", 2, claim(5000.5)),
    "a row twice": ("malformed", USERS, rows(twice)),
    "a row that there is not": ("malformed", USERS, rows(beyond)),
    "rows out of order": ("malformed", USERS, rows(turned)),
    "fewer values": ("malformed", USERS, cut),
    "more values": ("malformed", USERS, more),
    "all rows but one": ("malformed", USERS, all_rows),
}


@pytest.mark.parametrize("case", LIES)
def test_a_packet_that_lies_is_refused_whole_and_counted(federate: Federate, case: str) -> None:
    reason, nodes, change = LIES[case]
    outcome = federate("strategy=full", *FAST, WIDE, SPARSE, nodes=nodes, client=bent(change, nodes))
    assert [record["dropped_replies"] for record in outcome.metrics] == [{}, {}, {reason: 1}, {}, {}]
    assert outcome.metrics[2]["wasted_bytes"].keys() == {reason}
    assert 0 < outcome.metrics[2]["users"] < outcome.metrics[2]["cohort"]


def test_noised_sums_do_not_come_as_lists() -> None:
    with pytest.raises(ConfigError, match=r"uplink=sparse: .*noises the sum"):
        compose(["experiment=central_gaussian", SPARSE], base=None)
