"""Nodes that hang, answer late, come and go: the round goes on, each case is counted, and nothing is lost."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from flwr.app import ConfigRecord, Context, Error, Message, MetricRecord

from client_app.answers.app import app as honest
from commands.local_grid import LocalGrid
from exchanges.records import FROZEN, MISSING, UPDATE, pack, unpack
from federation import rests, roster
from fedrec.config.compose import compose
from fedrec.config.paths import settle
from fedrec.core.errors import FederationError
from server_app.run import run

SMALL = [
    "dataset.n_users=40",
    "dataset.n_items=60",
    "dataset.interactions_per_user=8.0",
    "dataset.topics=5",
    "base_table.dim=4",
    "base_table.start=random",
    "embedding.rank=1",
    "strategy.rounds=8",
    "strategy.warmup_rounds=2",
    "federation.fraction=0.5",
    "evaluation.every=0",
    "evaluation.baselines=false",
    "optim.solve_epochs=1",
    "run_id=r",
]
NODES = 4


class World(LocalGrid):
    """Nodes that can be made to misbehave.

    Attributes:
        plan: Round -> node's place (0 ..) -> what befalls its answer: `hang`, `late`, `long`.
        gone: Nodes' places that are not connected now.
    """

    def __init__(self, plan: dict[int, dict[int, str]], nodes: int = NODES) -> None:
        super().__init__(honest, nodes)
        self.plan = plan
        self.gone: set[int] = set()
        self.asked: dict[int, list[int]] = {}
        self._held: dict[str, Message] = {}
        self._first = min(super().get_node_ids())

    def place(self, node: int) -> int:
        return node - self._first

    def get_node_ids(self) -> Iterable[int]:
        return [node for node in super().get_node_ids() if self.place(node) not in self.gone]

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        messages = list(messages)
        # What was late arrives when the next messages go out.
        self._replies |= self._held
        self._held = {}
        names = list(super().push_messages(messages))
        for message, name in zip(messages, names, strict=True):
            round, place = int(unpack(message.content).fields.get("round", 0)), self.place(message.metadata.dst_node_id)
            if message.metadata.message_type == "train":
                self.asked.setdefault(round, []).append(place)
            fate = self.plan.get(round, {}).get(place) if message.metadata.message_type == "train" else None
            if fate in ("hang", "late"):
                reply = self._replies.pop(name)
                if fate == "late":
                    self._held[name] = reply
            elif fate == "long":
                packet = unpack(self._replies[name].content).packet(UPDATE)
                self._replies[name] = Message(pack({}, {UPDATE: packet + bytes(200_000)}), reply_to=message)
        return names


@pytest.fixture
def go(tmp_path: Path) -> Callable[..., tuple[dict[str, Any], list[dict[str, Any]]]]:
    """Carry a run out on a grid: its summary and its records."""

    def carry(grid: LocalGrid, *overrides: str, nodes: int = NODES) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        given = {text.partition("=")[0]: text for text in [*SMALL, "federation.round_timeout=0.3", *overrides]}
        places = [f"runs_dir={tmp_path}/runs", f"cache_dir={tmp_path}/cache", f"simulation.nodes={nodes}"]
        texts = ["resume=r", *places[:2]] if "resume=r" in overrides else [*given.values(), *places]
        summary = run(settle(compose(texts, base=None), None), texts, grid)
        lines = (tmp_path / "runs/r/metrics.jsonl").read_text().splitlines()
        return summary, [json.loads(line) for line in lines]

    return carry


Go = Callable[..., tuple[dict[str, Any], list[dict[str, Any]]]]


def losses(records: list[dict[str, Any]]) -> dict[int, dict[str, int]]:
    return {record["round"]: record["dropped_replies"] for record in records if record["dropped_replies"]}


def test_a_node_that_hangs_rests_and_is_tried_again(go: Go) -> None:
    class Slow(World):
        """A round takes about as long as a node is waited for."""

        def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
            messages = list(messages)
            if messages[0].metadata.message_type == "train" and 4 in {
                unpack(message.content).fields.get("round") for message in messages
            }:
                time.sleep(0.4)
            return super().push_messages(messages)

    hangs = {round: {1: "hang"} for round in (2, 3, 4)}
    grid = Slow(hangs)
    summary, records = go(grid)
    found = losses(records)
    assert found[2] == {"no_answer": 1}
    assert found[3] == {"no_answer": 1, "rested": 1}
    assert set(found) == {2, 3}, "it costs no round its time while it rests"
    asked = [1 in grid.asked[round] for round in range(1, 9)]
    assert asked == [True, True, True, False, True, True, True, True], "it rested as long as round 4 lasted"
    assert summary["test"]["users"] == 40
    assert [record["users"] < record["cohort"] for record in records[1:4]] == [True, True, False]


def test_a_late_answer_is_counted_and_not_used(go: Go, tmp_path: Path) -> None:
    grid = World({2: {1: "late"}, 5: {2: "late"}})
    _, records = go(grid)
    assert losses(records) == {
        2: {"no_answer": 1},
        3: {"late": 1},  # it came while round 3 was under way
        5: {"no_answer": 1},
        6: {"late": 1},
    }
    size = records[1]["bytes"]["up"] // records[1]["users"]  # of one packet, of all nodes alike
    assert [record["wasted_bytes"].keys() for record in records if record["wasted_bytes"]] == [{"late"}, {"late"}]
    assert records[2]["wasted_bytes"]["late"] >= size


def test_a_late_answer_ends_the_rest(go: Go) -> None:
    grid = World({2: {1: "hang"}, 3: {1: "late"}})
    _, records = go(grid, "federation.silent_rounds=2")
    assert losses(records) == {2: {"no_answer": 1}, 3: {"no_answer": 1, "rested": 1}, 4: {"late": 1}}
    # Its answer comes while round 4 is asked.
    assert [1 in grid.asked[round] for round in range(1, 9)] == [True] * 3 + [False] + [True] * 4


def test_an_answer_longer_than_any_is_refused_unread(go: Go) -> None:
    _, records = go(World({4: {0: "long"}}))
    assert losses(records) == {4: {"oversized": 1}}
    assert records[3]["wasted_bytes"]["oversized"] > 200_000


def test_a_round_of_too_few_is_repeated_with_those_who_are_there_then(go: Go, tmp_path: Path) -> None:
    class Outage(World):
        """In round 3 three of four nodes fail the first time that they are asked."""

        failed = 0

        def answer(self, message: Message) -> Message:
            round = unpack(message.content).fields.get("round")
            if round == 3 and message.metadata.message_type == "train" and self.failed < 3:
                self.failed += 1
                return Message(Error(2, "no network"), reply_to=message)
            return super().answer(message)

    calm, records = go(World({}))
    (tmp_path / "runs").rename(tmp_path / "calm")
    summary, repeated = go(Outage({}))
    assert losses(repeated) == {3: {"failed": 3, "round_repeated": 1}}
    assert summary["test"] == calm["test"], "the model is that of a run without the outage"
    assert [record["loss"] for record in repeated] == [record["loss"] for record in records]
    assert repeated[2]["bytes"]["down"] == 2 * records[2]["bytes"]["down"], "and what was sent again is counted"


class CannotRank(World):
    """Three of four nodes fail a ranking as often as they are told to."""

    def __init__(self, fails: int) -> None:
        super().__init__({})
        self.left = 3 * fails

    def answer(self, message: Message) -> Message:
        if "splits" in unpack(message.content).fields and self.place(message.metadata.dst_node_id) and self.left:
            self.left -= 1
            return Message(Error(2, "no network"), reply_to=message)
        return super().answer(message)


@pytest.mark.parametrize("every", [0, 4])
def test_a_ranking_of_too_few_is_repeated_in_the_same_way(go: Go, tmp_path: Path, every: int) -> None:
    """In messages of its own after the last round, or together with the round on which it rides."""
    calm, records = go(World({}), f"evaluation.every={every}")
    (tmp_path / "runs").rename(tmp_path / "calm")
    summary, repeated = go(CannotRank(1), f"evaluation.every={every}")
    assert losses(repeated) == (
        {5: {"failed": 3, "round_repeated": 1}} if every else {8: {"failed": 3, "ranking_repeated": 1}}
    )
    assert summary["test"] == calm["test"]
    for name in ("loss", "validation"):
        assert [record.get(name) for record in repeated] == [record.get(name) for record in records]
    more = [record["bytes_per_user"].get("evaluation", 0) for record in (repeated[-1], records[-1])]
    assert more[0] > more[1], "what was sent again is counted"


def test_a_ranking_is_repeated_so_often_and_no_more(go: Go, tmp_path: Path) -> None:
    calm, _ = go(World({}), "checkpoint_every=2")
    (tmp_path / "runs").rename(tmp_path / "calm")
    assert go(CannotRank(2), "federation.repeats=2")[0]["test"] == calm["test"]
    (tmp_path / "runs").rename(tmp_path / "twice")
    with pytest.raises(FederationError, match=r"ranking after round 8: 3 of 4 nodes failed .*'ranking_repeated': 2"):
        go(CannotRank(3), "checkpoint_every=2", "federation.repeats=2")
    assert go(World({}), "resume=r")[0]["test"] == calm["test"], "and the run can be resumed"


def test_a_ranking_is_repeated_with_those_who_are_there_then(go: Go) -> None:
    class Gone(CannotRank):
        """Those who failed are not there any more when the ranking is repeated."""

        def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
            names = super().push_messages(messages)
            if not self.left:
                self.gone = {1, 2, 3}
            return names

    summary, _ = go(Gone(1))
    assert summary["test"]["users"] == 10


def test_a_run_that_is_given_up_goes_on_later_with_nothing_lost(go: Go, tmp_path: Path) -> None:
    calm, _ = go(World({}), "checkpoint_every=2")
    (tmp_path / "runs").rename(tmp_path / "calm")
    outage = {6: dict.fromkeys(range(NODES), "hang")}
    with pytest.raises(FederationError, match=r"round 6: 4 of 4 nodes failed .*'no_answer'"):
        go(World(outage), "checkpoint_every=2", "federation.repeats=0")
    summary, records = go(World({}), "resume=r")
    assert summary["test"] == calm["test"]
    assert [record["round"] for record in records] == list(range(1, 9))


def test_fewer_users_than_needed_end_the_run_with_a_reason(go: Go) -> None:
    with pytest.raises(
        FederationError, match=r"the updates of \d+ of 20 chosen users count, federation.min_users=20 are needed"
    ):
        go(
            World({2: {1: "hang", 2: "hang"}}),
            "federation.min_users=20",
            "federation.repeats=0",
            "federation.max_failures=1.0",
        )


def test_fewer_nodes_than_needed_end_the_run_with_a_reason(go: Go) -> None:
    with pytest.raises(FederationError, match=r"4 of the 4 connected .* federation.min_nodes=5 are needed"):
        go(World({}), "federation.min_nodes=5")


def test_nodes_that_leave_join_and_come_back_are_known_by_their_users(go: Go) -> None:
    class Moving(World):
        """Node 1 leaves after round 2 and comes back after round 4 under another id; node 3 joins after round 3."""

        def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
            messages = list(messages)
            rounds = [int(unpack(message.content).fields.get("round", 0)) for message in messages]
            if (now := max(rounds, default=0)) == 2:
                self.gone |= {1}
            elif now == 3:
                self.gone -= {3}
            elif now == 4 and 1 in self.gone:
                context = self._contexts[self._first + 1]
                self._contexts[self._first + 10] = Context(1, self._first + 10, context.node_config, context.state, {})
            return super().push_messages(messages)

    grid = Moving({})
    grid.gone = {3}
    summary, records = go(grid, "federation.fraction=1.0", nodes=3)
    assert [record["cohort"] for record in records] == [30, 30, 20, 30, 40, 40, 40, 40]
    assert losses(records) == {}
    new = [record["cold_users"] for record in records]
    assert new == [30, 0, 0, 10, 0, 0, 0, 0], "who comes back has trained before"
    joining = [record["bytes"]["one_time"] for record in records]
    assert joining[5:] == [0, 0, 0], "and is sent once what is sent once"
    assert summary["test"]["users"] == 40


def test_who_comes_back_is_not_sent_again_what_it_has(go: Go) -> None:
    """Its disk did not go with the connection, and the meter counts once what is sent once."""

    class Away(World):
        def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
            messages = list(messages)
            for message in messages:
                if self.place(message.metadata.dst_node_id) == 1:
                    frozen.update(name for name in unpack(message.content).arrays if name.startswith(FROZEN))
            rounds = [int(unpack(message.content).fields.get("round", 0)) for message in messages]
            self.gone = {1} if max(rounds, default=0) in (4, 5) else self.gone - {1}
            return super().push_messages(messages)

    frozen = Counter[str]()
    _, records = go(Away({}), "federation.fraction=1.0")
    assert [record["cohort"] for record in records] == [40, 40, 40, 40, 30, 30, 40, 40]
    assert sorted(frozen.values()) == [1, 1], "the list of eligible items, and the base table"
    assert [record["bytes"]["one_time"] for record in records][3:] == [0] * 5


def test_over_sampling_asks_more_and_waits_for_fewer(go: Go) -> None:
    """A node that hangs in every round costs no time, if the others have users enough."""
    grid = World({round: {1: "hang"} for round in range(1, 9)})
    _, records = go(
        grid,
        "federation.fraction=0.25",
        "federation.over_sampling=1.0",
        "federation.round_timeout=600.0",
        "federation.silent_rounds=9",
    )
    assert [record["cohort"] for record in records] == [20] * 8
    assert all(10 <= record["users"] < 20 for record in records)
    assert losses(records) == {}


class Clock:
    """A clock that a test sets."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_silences_in_a_row_make_rests_that_grow() -> None:
    clock = Clock()
    resting, asked = rests.Rests(2, clock), []
    for second in range(0, 5000, 10):
        clock.now = float(second)
        if 1 not in resting.resting:
            asked.append(second)
            resting.silent(1, waited=100.0)
    # Two silences; then rests of 100, 200, 400, 800, 1600 and 3200 s.
    assert asked == [0, 10, 110, 310, 710, 1510, 3110]
    assert resting.said() == ["node 1 rests for 1320 s more: it has left 7 messages in a row unanswered"]
    resting.awake(1)
    assert resting.resting == set()
    assert resting.silent(1, waited=1e9), "one that only says who lives there is no more reliable than it was"
    clock.now += 3601
    assert resting.resting == set(), "nobody rests for longer than an hour"
    resting.answered(1)
    assert resting.silent(1, waited=1.0) is False
    resting.connected(set())
    assert resting.silent(1, waited=1.0) is False, "who was away begins anew"


class Lost(World):
    """In some rounds a node answers nothing at all, not even an invitation, until it is asked a number of times."""

    def __init__(self, place: int, from_round: int, silent: int) -> None:
        super().__init__({})
        self.lost, self.from_round, self.silent = place, from_round, silent

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        messages = list(messages)
        names = list(super().push_messages(messages))
        rounds = [int(unpack(message.content).fields.get("round", 0)) for message in messages]
        self.begun = max([getattr(self, "begun", 0), *rounds])
        for message, name in zip(messages, names, strict=True):
            if self.place(message.metadata.dst_node_id) == self.lost and self.begun >= self.from_round and self.silent:
                self.silent -= 1
                self._replies.pop(name)
        return names


def test_a_round_that_waits_for_nodes_asks_those_that_rest(go: Go) -> None:
    """Both needed nodes are connected, and one of them rests when a round begins that needs both."""
    _, records = go(
        Lost(1, from_round=3, silent=1),
        "federation.min_nodes=4",
        "federation.silent_rounds=1",
        "federation.node_timeout=20.0",
    )
    assert losses(records) == {3: {"no_answer": 1, "rested": 1}}
    assert [record["users"] == record["cohort"] for record in records] == [True] * 2 + [False] + [True] * 5


def test_a_run_that_fails_for_want_of_nodes_says_which_rest_and_until_when(
    go: Go, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(roster, "_WAIT", 0.05)
    started = time.monotonic()
    with pytest.raises(
        FederationError,
        match=r"3 of the 4 connected nodes have joined with users, "
        r"federation.min_nodes=4 are needed, and no more came in 1 s .*"
        r"node 3 rests for \d+ s more: it has left \d+ messages in a row unanswered",
    ):
        go(Lost(1, 3, silent=99), "federation.min_nodes=4", "federation.silent_rounds=1", "federation.node_timeout=1.0")
    assert time.monotonic() - started < 15


class Late(World):
    """Two nodes whose every answer to a round comes so many seconds after it was asked for."""

    def __init__(self, seconds: float) -> None:
        super().__init__({}, nodes=2)
        self.seconds = seconds
        self._due: dict[str, tuple[float, Message]] = {}
        self.sent_at: list[float] = []

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        messages = list(messages)
        names = list(super().push_messages(messages))
        for message, name in zip(messages, names, strict=True):
            if message.metadata.message_type == "train" and self.place(message.metadata.dst_node_id) == 1:
                self._due[name] = (time.monotonic() + self.seconds, self._replies.pop(name))
                self.sent_at.append(time.monotonic())
        return names

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        for name, (due, reply) in list(self._due.items()):
            if time.monotonic() >= due:
                self._replies[name] = reply
                del self._due[name]
        return super().pull_messages(message_ids)


def test_a_node_that_is_always_a_little_late_is_given_the_time_it_needs(go: Go) -> None:
    _, records = go(Late(0.5), "federation.round_timeout=0.4", nodes=2)
    counted = [record["users"] == record["cohort"] for record in records]
    assert counted == [False] + [True] * 7, "its late answer in round 2 tells what it needs"
    assert records[1]["dropped_replies"] == {"late": 1}
    assert [record["slow_nodes"] for record in records] == [{}] + [{"waited_for": 1}] * 7


def test_a_node_that_can_never_be_in_time_holds_up_nobody(go: Go) -> None:
    grid = Late(1.0)
    _, records = go(
        grid,
        "federation.round_timeout=0.2",
        "federation.silent_rounds=2",
        "strategy.rounds=60",
        "evaluation.every=0",
        nodes=2,
    )
    assert sum(len(record["dropped_replies"]) > 0 for record in records) <= 12
    assert sum(record["slow_nodes"].get("left_out", 0) for record in records) >= 1
    held_up = [record["seconds"] > 0.2 for record in records]
    assert held_up[:2] == [True, True]
    assert sum(held_up) <= 6, "it rests, and longer each time"


def test_a_node_that_says_in_every_round_that_it_lacks_something_is_not_sent_it_without_end(go: Go) -> None:
    class Forgetful(World):
        """A node that never keeps the base table, but trains once it has been sent it again."""

        def answer(self, message: Message) -> Message:
            content = unpack(message.content)
            name = str(content.fields.get("frozen", ""))
            if self.place(message.metadata.dst_node_id) == 1 and name and FROZEN + name not in content.arrays:
                return Message(pack({MISSING: name}), reply_to=message)
            return super().answer(message)

    _, records = go(Forgetful({}), "strategy.rounds=20")
    assert sum("resent" in record["wasted_bytes"] for record in records) == 3
    assert sum(record["dropped_replies"].get("resend_refused", 0) for record in records) == 1
    assert [record["cohort"] for record in records[5:8]] == [20, 20, 15], "then it is left out"
    assert {record["cohort"] for record in records[7:]} == {15}


@pytest.mark.parametrize("kind", ["train", "evaluate"])
@pytest.mark.parametrize("where", ["text", "texts", "record", "metrics", "names", "error"])
def test_text_beside_an_answer_is_refused_and_counted_as_arrays_are(go: Go, kind: str, where: str) -> None:
    text = "x" * 1_000_000

    class Talkative(World):
        def answer(self, message: Message) -> Message:
            reply = super().answer(message)
            due = unpack(message.content).fields.get("round") in (4, 8)
            if self.place(message.metadata.dst_node_id) != 1 or message.metadata.message_type != kind or not due:
                return reply
            content = reply.content
            if where == "error":
                return Message(Error(2, text), reply_to=message)
            if where == "metrics":
                content["more"] = MetricRecord({"m": [0.0] * (len(text) // 8)})
            elif where == "names":
                content[text] = ConfigRecord({})
            elif where == "record":
                content["more"] = ConfigRecord({"b": text.encode()})
            else:
                content["fields"]["more"] = text if where == "text" else [text[:1000]] * (len(text) // 1000)
            return Message(content, reply_to=message)

    _, records = go(Talkative({}))
    losses = [record for record in records if record["dropped_replies"]]
    assert [record["dropped_replies"] for record in losses] == [{"oversized": 1}] * (2 if kind == "train" else 1)
    assert all(record["wasted_bytes"]["oversized"] > 0.9 * len(text) for record in losses)
