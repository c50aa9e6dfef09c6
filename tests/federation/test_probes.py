"""What an addition to the exchanges costs: new files and a row in a table. Two that no member has, on any layout.

`sketch`: an uplink that is not the downlink, its size different for every user. `offer` and `reveal`: two more messages
within a round, between which a node may drop out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Array, Context, Message
from numpy.typing import NDArray

from client_app.answers import table
from client_app.answers.app import app as honest
from client_app.answers.table import Question
from exchanges.declaration import Declaration, Participant, Regular
from exchanges.records import Content, unpack
from federation.base import FederatedStrategy
from federation.conversation import Conversation
from federation.directory import Directory, Share
from federation.exchange import Exchange
from federation.sizes import sizes
from fedrec.codecs.float32 import Float32Codec, Float32Config
from fedrec.config.compose import compose
from fedrec.config.schema import RunConfig
from fedrec.core.errors import PacketError
from fedrec.core.registry import strategies
from fedrec.core.rng import counter_uniform
from fedrec.core.tensors import TensorSpec
from fedrec.wire.packet import Kind, PacketFormat
from fedrec.wire.protocol import Setup
from server_app.setup import make_setup
from strategies.full import FullStrategy

Federate = Callable[..., Any]
PLAIN = Float32Codec(Float32Config("float32"))
DIM, WIDTHS = 4, 5


def form(rows: int) -> PacketFormat:
    return PacketFormat(Kind.UPDATE, {"rows": TensorSpec((rows, DIM))}, PLAIN, 0)


def widths(keys: NDArray[np.uint64]) -> NDArray[np.int64]:
    """How many rows each user sends: 1 to 5, a public function of its key."""
    return 1 + (keys % np.uint64(WIDTHS)).astype(np.int64)


# An uplink of its own, of another size for every user ----------------------------------------------------------------


class Sketch(Declaration):
    """Two numbers down, and from each user as many rows up as its key says."""

    kind = "query.sketch"
    alike = False

    def down(self, to: Participant) -> Mapping[str, PacketFormat]:
        return {"wanted": PacketFormat(Kind.MODEL, {"scale": TensorSpec((2,))}, PLAIN, 0)}

    def up(self, by: Participant) -> Mapping[str, PacketFormat]:
        return {"sketch": form(int(widths(by.keys).sum()))}

    def range_up(self) -> tuple[int, int]:
        return form(1).size(), form(WIDTHS).size()

    def expected_up(self) -> float:
        return sum(form(rows).size() for rows in range(1, WIDTHS + 1)) / WIDTHS


class Sketching(Exchange):
    """Adds up what the users sketch, in the order of their keys."""

    def __init__(self, phase: int, round: int) -> None:
        super().__init__(Sketch(), f"sketching after round {round}", phase, round, max_failures=0.5)
        self.of: dict[int, NDArray[np.float32]] = {}

    def participants(self, directory: Directory) -> dict[int, Share]:
        self.of = {}
        return super().participants(directory)

    def packets(self, node: int) -> Mapping[str, bytes | Array]:
        wanted = self.declared.down(self.participant(node))["wanted"]
        return {"wanted": wanted.encode(self.phase, self.round, {"scale": torch.tensor([1.0, 2.0])})}

    def take(self, node: int, answer: Content) -> None:
        by = self.participant(node)
        packet = self.declared.up(by)["sketch"].decode(answer.packet("sketch"), phase=self.phase, round=self.round)
        if not packet.tensors["rows"].isfinite().all():
            raise PacketError("non_finite", "a sketch is not finite")
        ends = np.cumsum(widths(by.keys))[:-1]
        for key, rows in zip(by.keys.tolist(), np.split(packet.tensors["rows"].numpy(), ends), strict=True):
            self.of[key] = rows

    def total(self) -> NDArray[np.float64]:
        return np.sum([self.of[key].astype(np.float64).sum(axis=0) for key in sorted(self.of)], axis=0)


def sketch(asked: Question) -> Mapping[str, bytes]:
    """A client's part."""
    declared, keys = Sketch(), asked.node.users.keys
    by = Participant(keys)
    wanted = declared.down(by)["wanted"].decode(asked.content.packet("wanted"), phase=asked.phase, round=asked.round)
    owners = np.repeat(keys, widths(keys))
    places = np.concatenate([np.arange(width) for width in widths(keys)])
    rows = counter_uniform(1, owners[:, None], places[:, None], np.arange(DIM)[None, :]).astype(np.float32)
    tensors = {"rows": torch.from_numpy(rows) * wanted.tensors["scale"][1]}
    return {"sketch": declared.up(by)["sketch"].encode(asked.phase, asked.round, tensors)}


class SketchStrategy(FullStrategy):
    """Asks for sketches after every second round."""

    totals: list[NDArray[np.float64]]

    @classmethod
    def regular(cls, config: RunConfig, setup: Setup) -> Sequence[Regular]:
        return [Regular(Sketch(), 2)]

    def within(self, talk: Conversation, round: int) -> None:
        if round % 2 == 0 and round < self.config.rounds:
            asked = Sketching(self.models.phase, round)
            talk.carry(asked)
            type(self).totals.append(asked.total())


# Two more messages within a round ------------------------------------------------------------------------------------


class Offer(Declaration):
    """Every user offers a number."""

    kind = "query.offer"

    def down(self, to: Participant) -> Mapping[str, PacketFormat]:
        return {}

    def up(self, by: Participant) -> Mapping[str, PacketFormat]:
        return {"offer": PacketFormat(Kind.COUNTS, {"numbers": TensorSpec((by.users,), "int64")}, PLAIN, 0)}


class Reveal(Declaration):
    """Users are told how much was offered in all, and those who are still there say how much remains."""

    kind = "query.reveal"

    def down(self, to: Participant) -> Mapping[str, PacketFormat]:
        return {"sum": PacketFormat(Kind.COUNTS, {"sum": TensorSpec((1,), "int64")}, PLAIN, 0)}

    def up(self, by: Participant) -> Mapping[str, PacketFormat]:
        return Offer().up(by)


class Adding(Exchange):
    """Adds up numbers of users; a second time, of those who offered one the first time."""

    def __init__(self, declared: Declaration, phase: int, round: int, before: Adding | None = None) -> None:
        super().__init__(declared, f"{declared.kind} after round {round}", phase, round)
        self.before = before
        self.numbers: dict[int, int] = {}

    def participants(self, directory: Directory) -> dict[int, Share]:
        asked = super().participants(directory)
        return asked if self.before is None else {node: asked[node] for node in self.before.taken if node in asked}

    def packets(self, node: int) -> Mapping[str, bytes | Array]:
        if self.before is None:
            return {}
        told = {"sum": torch.tensor([sum(self.before.numbers.values())])}
        return {"sum": self.declared.down(self.participant(node))["sum"].encode(self.phase, self.round, told)}

    def take(self, node: int, answer: Content) -> None:
        by = self.participant(node)
        packet = self.declared.up(by)["offer"].decode(answer.packet("offer"), phase=self.phase, round=self.round)
        self.numbers |= dict(zip(by.keys.tolist(), packet.tensors["numbers"].tolist(), strict=True))


def _numbers(keys: NDArray[np.uint64]) -> torch.Tensor:
    return torch.from_numpy((keys % np.uint64(1000)).astype(np.int64))


def offer(asked: Question) -> Mapping[str, bytes]:
    keys = asked.node.users.keys
    packet = Offer().up(Participant(keys))["offer"]
    return {"offer": packet.encode(asked.phase, asked.round, {"numbers": _numbers(keys)})}


def reveal(asked: Question) -> Mapping[str, bytes]:
    keys = asked.node.users.keys
    told = Reveal().down(Participant(keys))["sum"].decode(asked.content.packet("sum"), round=asked.round)
    packet = Reveal().up(Participant(keys))["offer"]
    left = told.tensors["sum"] - _numbers(keys)
    return {"offer": packet.encode(asked.phase, asked.round, {"numbers": left})}


class TwoMoreStrategy(FullStrategy):
    """Two further exchanges in every round."""

    sums: list[tuple[int, int]]

    def within(self, talk: Conversation, round: int) -> None:
        offered = Adding(Offer(), self.models.phase, round)
        talk.carry(offered)
        revealed = Adding(Reveal(), self.models.phase, round, offered)
        talk.carry(revealed)
        type(self).sums.append((sum(offered.numbers.values()), sum(revealed.numbers.values())))


# Tests ---------------------------------------------------------------------------------------------------------------


@pytest.fixture
def probe(monkeypatch: pytest.MonkeyPatch) -> Callable[[type[FederatedStrategy]], None]:
    """Lets a probe stand in for the strategy `full`, and puts its rows into the client's table."""

    def use(strategy: type[FederatedStrategy]) -> None:
        strategies.get("full")
        monkeypatch.setitem(strategies._classes, "full", strategy)
        for kind, handler in {"query.sketch": sketch, "query.offer": offer, "query.reveal": reveal}.items():
            monkeypatch.setitem(table.HANDLERS, kind, handler)

    return use


FULL = ("strategy=full", "strategy.rounds=5", "evaluation.every=2")


@pytest.mark.parametrize("nodes", [1, 2, 7])
def test_an_uplink_of_another_size_for_every_user_is_metered_exactly(
    federate: Federate, probe: Any, nodes: int
) -> None:
    plain = federate(*FULL, nodes=nodes)
    probe(SketchStrategy)
    SketchStrategy.totals = []
    outcome = federate(*FULL, nodes=nodes)
    keys = np.concatenate([unpack(m.content).arrays["keys"] for m in outcome.grid.received[:nodes]])
    assert len(keys) == 60
    assert len(set(widths(keys).tolist())) == WIDTHS
    assert len(SketchStrategy.totals) == 2
    owners = np.repeat(np.sort(keys), widths(np.sort(keys)))
    places = np.concatenate([np.arange(width) for width in widths(np.sort(keys))])
    rows = 2 * counter_uniform(1, owners[:, None], places[:, None], np.arange(DIM)[None, :]).astype(np.float32)
    for total in SketchStrategy.totals:
        np.testing.assert_allclose(total, rows.astype(np.float64).sum(axis=0), rtol=1e-6)
    up = sum(form(int(width)).size() for width in widths(keys))
    down = 60 * Sketch().down(Participant())["wanted"].size()
    for record, before in zip(outcome.metrics, plain.metrics, strict=True):
        asked = record["round"] in (2, 4)
        assert record["bytes"]["up"] - before["bytes"]["up"] == asked * up
        assert record["bytes"]["down"] - before["bytes"]["down"] == asked * down
    assert outcome.summary["test"] == plain.summary["test"]


def test_describe_knows_it(probe: Any) -> None:
    probe(SketchStrategy)
    config = compose(["strategy=full", "strategy.rounds=5", "base_table.dim=8"], base=None)
    (found,) = sizes(config, make_setup(config, 100, "", "", None)).exchanges
    assert (found.every, found.down) == (2, 36 + 8)
    assert (found.least_up, found.most_up) == (36 + 16, 36 + 80)
    assert found.up == 36 + 16 * 3


def test_a_lying_size_is_refused_and_nobody_is_charged(federate: Federate, probe: Any) -> None:
    def lying(asked: Question) -> Mapping[str, bytes]:
        if asked.node.place.partition != 1:  # type: ignore[union-attr]
            return sketch(asked)
        rows = int(widths(asked.node.users.keys).sum()) + 1
        return {"sketch": form(rows).encode(asked.phase, asked.round, {"rows": torch.zeros(rows, DIM)})}

    probe(SketchStrategy)
    SketchStrategy.totals = []
    honest_run = federate(*FULL, nodes=3)
    table.HANDLERS["query.sketch"] = lying
    outcome = federate(*FULL, nodes=3)
    assert [record["dropped_replies"] for record in outcome.metrics] == [
        {},
        {"wrong_spec": 1},
        {},
        {"wrong_spec": 1},
        {},
    ]
    keys = unpack(outcome.grid.received[1].content).arrays["keys"]
    saved = honest_run.metrics[1]["bytes"]["up"] - outcome.metrics[1]["bytes"]["up"]
    assert saved == sum(form(int(width)).size() for width in widths(keys))


@pytest.mark.parametrize("nodes", [1, 2, 7])
def test_two_more_messages_within_a_round(federate: Federate, probe: Any, nodes: int) -> None:
    probe(TwoMoreStrategy)
    TwoMoreStrategy.sums = []
    outcome = federate(*FULL, nodes=nodes)
    keys = np.concatenate([unpack(m.content).arrays["keys"] for m in outcome.grid.received[:nodes]])
    offered = int(_numbers(keys).sum())
    assert TwoMoreStrategy.sums == [(offered, 60 * offered - offered)] * 5
    kinds = [message.metadata.message_type for message in outcome.grid.sent]
    assert kinds.count("query.offer") == kinds.count("query.reveal") == 5 * nodes


def test_a_node_that_drops_out_between_them_costs_the_others_nothing(federate: Federate, probe: Any) -> None:
    def client(message: Message, context: Context) -> Message:
        if message.metadata.message_type == "query.reveal" and context.node_config["partition-id"] == 1:
            raise RuntimeError("the battery is flat")
        return honest(message, context)

    probe(TwoMoreStrategy)
    TwoMoreStrategy.sums = []
    outcome = federate(*FULL, nodes=3, client=client)
    keys = [unpack(m.content).arrays["keys"] for m in outcome.grid.received[:3]]
    offered, left = int(_numbers(np.concatenate(keys)).sum()), int(_numbers(np.concatenate([keys[0], keys[2]])).sum())
    assert TwoMoreStrategy.sums == [(offered, 40 * offered - left)] * 5
    assert all(record["dropped_replies"] == {"failed": 1} for record in outcome.metrics)
    assert outcome.summary["test"]["users"] == 60
