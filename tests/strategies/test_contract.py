"""The contract of strategies, over every member of the family; and the conversation with nodes of every kind."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Error, Message, RecordDict
from flwr.serverapp import Grid
from hypothesis import given, settings
from hypothesis import strategies as st

from commands.local_grid import LocalGrid
from exchanges.declaration import Declaration, Participant
from exchanges.records import FROZEN, KEYS, MISSING, UNSHARED, Content, pack, unpack, wrap
from federation import roster as roster_module
from federation.aggregation import UpdateFold
from federation.base import FederatedStrategy, StrategyConfig
from federation.conversation import Conversation
from federation.directory import Directory
from federation.exchange import Exchange
from federation.losses import Losses
from federation.meter import Meter
from federation.post import Post
from federation.versions import Frozen, Merges
from fedrec.config.compose import compose
from fedrec.config.schema import RunConfig
from fedrec.core.errors import ConfigError, FederationError, PacketError
from fedrec.core.registry import MemberConfig, embeddings, strategies
from fedrec.core.rng import generator
from fedrec.core.tensors import Tensors, TensorSpec, content_digest, matches
from fedrec.wire.code import code_digest
from fedrec.wire.eligible import eligible_spec, pack_eligible
from fedrec.wire.packet import Kind, Packet, PacketFormat
from fedrec.wire.protocol import PROTOCOL_VERSION, UPDATE_SCALARS, PhaseSetup, Setup, SimulatedData

ITEMS, DIM = 20, 4
BASE = Path("/somewhere")
MEMBERS = strategies.names()


def composed(*overrides: str) -> RunConfig:
    return compose([f"base_table.dim={DIM}", *overrides], base=BASE)


def member(name: str) -> type[FederatedStrategy]:
    found: type[FederatedStrategy] = strategies.get(name)
    return found


def setup_of(config: RunConfig) -> Setup:
    plan = member(config.strategy.name).phases(config)
    return Setup(
        protocol=PROTOCOL_VERSION,
        run_key="r",
        seed=config.seed,
        n_items=ITEMS,
        dim=DIM,
        catalogue="c",
        eligible=content_digest(pack_eligible(np.arange(ITEMS), ITEMS)),
        phases=tuple(PhaseSetup(phase.name, dataclasses.asdict(phase.embedding)) for phase in plan),
        backbone=dataclasses.asdict(config.backbone),
        optim=dataclasses.asdict(config.optim),
        codec=dataclasses.asdict(config.codec),
        privacy=dataclasses.asdict(config.privacy),
        grouping=config.grouping.told(),
        ks=config.evaluation.ks,
        sampled_negatives=0,
        validation=True,
        weight_cap=10,
        max_update_norm=100.0,
        max_row_norm="auto",
        engine="cohort",
        pairs_at_once=65_536,
        simulation=None,
    )


class Silent:
    def on_round(self, record: dict[str, Any]) -> None: ...

    def on_checkpoint(self, *_: Any) -> None: ...


def made(config: RunConfig) -> tuple[FederatedStrategy, torch.Tensor]:
    base = torch.randn(ITEMS, DIM, generator=generator(0, "base"))
    eligible = pack_eligible(np.arange(ITEMS), ITEMS)
    return member(config.strategy.name)(config, setup_of(config), base, eligible, Silent()), base


# Members -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MEMBERS)
def test_a_member_is_a_federated_strategy_with_the_common_keys(name: str) -> None:
    assert issubclass(member(name), FederatedStrategy)
    assert issubclass(member(name).config_class, StrategyConfig)
    assert member(name).problems(composed(f"strategy={name}")) == [], "its defaults can run"


@pytest.mark.parametrize("name", MEMBERS)
@pytest.mark.parametrize("rounds", [21, 100, 1000])
def test_the_phases_rounds_add_up(name: str, rounds: int) -> None:
    config = composed(f"strategy={name}", f"strategy.rounds={rounds}")
    plan = member(name).phases(config)
    assert sum(phase.rounds for phase in plan) == rounds
    assert all(phase.rounds > 0 for phase in plan)
    assert len({phase.name for phase in plan}) == len(plan), "the meter and the seeds tell phases apart by their names"
    assert 1 <= len(plan) <= 256
    for phase in plan:
        assert isinstance(phase.embedding, MemberConfig)
        assert phase.embedding.name in embeddings.names()


@pytest.mark.parametrize("name", MEMBERS)
@pytest.mark.parametrize("embedding", embeddings.names())
def test_an_embedding_fits_or_compose_says_why_not(name: str, embedding: str) -> None:
    overrides = [f"strategy={name}", f"embedding={embedding}", "backbone=fedncf"]  # which shares something itself
    try:
        config = composed(*overrides)
    except ConfigError as error:
        problems = list(error.problems)
    else:
        problems = []
        strategy, _ = made(config)
        assert strategy.plan[-1].embedding.name == embedding, "what was chosen is what is trained"
    if problems:
        assert all(f"strategy={name}" in problem and "embedding" in problem for problem in problems)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["strategy=fedpeft", "embedding=full"], "strategy=fedpeft sends a compressed part"),
        (["strategy=full", "embedding=lora"], "strategy=full trains the whole table"),
        (["strategy=fedpeft", "strategy.rounds=20"], "strategy.warmup_rounds=20 must be below strategy.rounds=20"),
    ],
)
def test_known_problems_come_through_compose(overrides: list[str], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        composed(*overrides)
    assert len(caught.value.problems) == 1
    assert said in caught.value.problems[0]


@pytest.mark.parametrize("name", MEMBERS)
def test_values_out_of_range_are_all_named_at_once(name: str) -> None:
    bad = ["strategy.rounds=0"] + [
        f"federation.{text}"
        for text in ("fraction=0", "fraction=1.5", "weight_cap=0", "max_failures=2", "round_timeout=0", "min_users=-1")
    ]
    for text in bad:
        with pytest.raises(ConfigError, match=re.escape(text.partition("=")[0])):
            composed(f"strategy={name}", text)
    with pytest.raises(ConfigError) as caught:
        composed(f"strategy={name}", "strategy.rounds=0", "federation.weight_cap=0", "federation.round_timeout=-1")
    assert len(caught.value.problems) == 3


def first_of(strategy: FederatedStrategy) -> str:
    """Its first group."""
    return next(iter(strategy.models))


@pytest.mark.parametrize("name", MEMBERS)
def test_a_strategy_starts_from_the_base_table(name: str) -> None:
    strategy, base = made(composed(f"strategy={name}"))
    model, state = strategy.models.model, strategy.models[first_of(strategy)].state
    assert torch.equal(model.item_vectors(state.trainable, state.frozen, torch.arange(ITEMS)), base)
    assert all(matches(model.trainable[key], tensor) for key, tensor in state.trainable.items())
    assert state.trainable.keys() == model.trainable.keys()


@pytest.mark.parametrize("name", MEMBERS)
def test_a_new_phase_starts_where_the_last_one_ended(name: str) -> None:
    strategy, _ = made(composed(f"strategy={name}"))
    items, first = torch.arange(ITEMS), 1
    for number, phase in enumerate(strategy.plan):
        strategy.models.advance(first)
        assert strategy.models.phase == number
        state, model = strategy.models[first_of(strategy)].state, strategy.models.model
        rng = generator(number, "moved")
        moved: Tensors = {k: t + torch.randn(t.shape, generator=rng) for k, t in state.trainable.items()}
        strategy.models[first_of(strategy)].state = dataclasses.replace(state, trainable=moved)
        reached = model.item_vectors(moved, state.frozen, items)
        for round in range(first + 1, first + phase.rounds):
            strategy.models.advance(round)
            assert strategy.models.phase == number, "within a phase nothing is changed"
        first += phase.rounds
        if number + 1 < len(strategy.plan):
            strategy.models.advance(first)
            after = strategy.models[first_of(strategy)].state
            now = strategy.models.model.item_vectors(after.trainable, after.frozen, items)
            assert torch.equal(now, reached), "the compressed part starts at exactly zero"
            assert after.optimiser == {}
            assert set(strategy.models[first_of(strategy)].once) == {after.frozen_digest} - {""}
            assert after.frozen_digest == (content_digest(after.frozen) if after.frozen else "")


@pytest.mark.parametrize("name", MEMBERS)
def test_a_setup_survives_the_way_to_a_client(name: str) -> None:
    setup = setup_of(composed(f"strategy={name}"))
    assert Setup.from_json(setup.to_json()) == setup


# Records -------------------------------------------------------------------------------------------------------------


def record_of(data: bytes, stype: str = "numpy.ndarray", dtype: str = "uint8") -> RecordDict:
    arrays = ArrayRecord({"update": Array(dtype, (3,), stype, data)})
    return RecordDict({"arrays": arrays, "fields": ConfigRecord({})})


def npy(header: str) -> bytes:
    return b"\x93NUMPY\x01\x00\x76\x00" + header.encode().ljust(117) + b"\n"


HOSTILE = {
    "nothing": b"",
    "an archive": b"PK\x03\x04" + bytes(40),
    "a pickle": b"\x80\x04K\x01.",
    "an unclosed header": npy("{'descr': '|u1', 'fortran_order': False, 'shape': (-1,"),
    "code in the header": npy("__import__('os')"),
    "more than any memory": npy("{'descr': '|u1', 'fortran_order': False, 'shape': (10**15,), }"),
    "a length of 10 TB": npy("{'descr': '|u1', 'fortran_order': False, 'shape': (10000000000000,), }"),
    "objects": npy("{'descr': '|O', 'fortran_order': False, 'shape': (1,), }"),
    "a shape of nonsense": npy("{'descr': '|u1', 'fortran_order': False, 'shape': ('a',), }"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_an_array_that_cannot_be_read_is_malformed_and_nothing_else(case: str) -> None:
    with pytest.raises(PacketError) as caught:
        unpack(record_of(HOSTILE[case]))
    assert caught.value.reason == "malformed"


@settings(max_examples=100, deadline=None)
@given(data=st.binary(max_size=60), stype=st.sampled_from(["numpy.ndarray", "torch.Tensor", ""]))
def test_any_array_bytes_are_read_or_malformed(data: bytes, stype: str) -> None:
    with pytest.raises(PacketError):
        unpack(record_of(data, stype)).packet("update")


def test_fields_have_their_type_or_are_malformed() -> None:
    content = unpack(pack({"text": "a", "number": 3, "real": 0.5}, {"p": b"abc"}, {"a": np.ones((2, 2))}))
    assert (content.text("text"), content.integer("number"), content.packet("p")) == ("a", 3, b"abc")
    for wrong in (
        lambda: content.text("number"),
        lambda: content.text("missing"),
        lambda: content.integer("text"),
        lambda: content.integer("real"),
        lambda: content.packet("a"),
        lambda: content.packet("missing"),
        lambda: content.array("missing"),
        lambda: unpack(RecordDict()),
        lambda: unpack(RecordDict({"arrays": ConfigRecord({}), "fields": ArrayRecord({})})),
    ):
        with pytest.raises(PacketError):
            wrong()


# Folding -------------------------------------------------------------------------------------------------------------


def update(**scalars: float) -> Packet:
    values = {**dict.fromkeys(UPDATE_SCALARS, 0.0), "weight": 1.0, "users": 1.0, "examples": 1.0, **scalars}
    return Packet(Kind.UPDATE, 0, 1, tuple(values.values()), {"t": torch.ones(2)})


@pytest.mark.parametrize("name", [name for name in UPDATE_SCALARS if name not in ("weight", "loss")])
@pytest.mark.parametrize("value", [-1.0, 0.5])
def test_a_count_is_a_whole_number(name: str, value: float) -> None:
    fold = UpdateFold({"t": TensorSpec((2,))}, 10, 5, 100.0)
    with pytest.raises(PacketError) as caught:
        fold.add(update(**{name: value}), asked=3)
    assert caught.value.reason == "wrong_users"
    assert fold.sum().mean() is None


def test_users_and_those_left_out_are_no_more_than_were_asked() -> None:
    fold = UpdateFold({"t": TensorSpec((2,))}, 10, 5, 100.0)
    for scalars in ({"too_large": 3.0}, {"cold_users": 4.0}, {"users": 4.0}, {"non_finite": 1e300}):
        with pytest.raises(PacketError, match="3 users were asked"):
            fold.add(update(**scalars), asked=3)
    fold.add(update(too_large=2.0, cold_users=3.0), asked=3)
    assert fold.summary()["too_large"] == 2


@settings(max_examples=100, deadline=None)
@given(st.tuples(*[st.floats() for _ in UPDATE_SCALARS]), st.floats(width=32))
def test_any_reply_is_folded_or_refused_by_name(scalars: tuple[float, ...], value: float) -> None:
    fold = UpdateFold({"t": TensorSpec((2,))}, 10, 5, 100.0)
    try:
        fold.add(Packet(Kind.UPDATE, 0, 1, scalars, {"t": torch.full((2,), value)}), asked=3)
    except PacketError:
        assert fold.summary()["users"] == 0
    else:
        assert 0 <= fold.summary()["users"] <= 3


@pytest.mark.parametrize("loss", [1e305, -1e305, 2e6])
def test_a_loss_that_no_training_has_is_left_out_of_the_mean(loss: float) -> None:
    fold = UpdateFold({"t": TensorSpec((2,))}, 10, 5, 100.0)
    assert not fold.add(update(loss=loss), asked=1)
    assert fold.summary()["loss"] is None, "the mean of nobody"
    assert fold.add(update(loss=0.5), asked=1)
    assert fold.summary()["loss"] == 0.5
    assert fold.summary()["users"] == 2, "the update itself counts"


# The conversation ----------------------------------------------------------------------------------------------------

Answer = Callable[[Message], Message | None]


class ScriptedGrid(Grid):
    """Nodes that answer as a test says: a reply, or None for silence; `refused` nodes cannot be sent to."""

    def __init__(self, answers: dict[int, Answer], refused: Iterable[int] = ()) -> None:
        LocalGrid(lambda message, context: message, 0)  # type: ignore[arg-type, return-value]
        self.answers = answers
        self.refused = set(refused)
        self.sent: list[Message] = []
        self._ready: dict[str, Message] = {}

    def set_run(self, run: Any) -> None: ...

    @property
    def run(self) -> Any:
        raise NotImplementedError

    def create_message(self, *_: Any, **__: Any) -> Message:
        raise NotImplementedError

    def get_node_ids(self) -> Iterable[int]:
        return list(self.answers)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        ids: list[Any] = []
        for message in messages:
            if message.metadata.dst_node_id in self.refused:
                ids.append(None)
                continue
            name = f"m{len(self.sent)}"
            message.metadata.__dict__["_message_id"] = name
            self.sent.append(message)
            ids.append(name)
            if (reply := self.answers[message.metadata.dst_node_id](message)) is not None:
                self._ready[name] = reply
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        asked = list(message_ids)
        assert all(isinstance(name, str) for name in asked)
        return [self._ready.pop(name) for name in asked if name in self._ready]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        raise NotImplementedError


def person(*keys: int, code: str | None = None, then: Answer | None = None) -> Answer:
    """A node with users of these keys, which answers anything but an enrolment as `then` says."""

    def answer(message: Message) -> Message | None:
        if message.metadata.message_type == "query.enroll":
            arrays = {KEYS: np.array(keys, dtype=np.uint64)}
            return Message(pack({"code": code or code_digest()}, arrays=arrays), reply_to=message)
        return then(message) if then else Message(pack({"ok": 1}), reply_to=message)

    return answer


def failing(reason: str | None) -> Answer:
    return lambda message: Message(Error(2, reason), reply_to=message)


class Anything(Declaration):
    """Asks for nothing, and brings nothing."""

    kind = "train"

    def down(self, to: Participant) -> Mapping[str, PacketFormat]:
        return {}

    def up(self, by: Participant) -> Mapping[str, PacketFormat]:
        return {}


class Asked(Exchange):
    """All nodes are asked; `nodes` has those that answered."""

    def __init__(self, frozen: Frozen) -> None:
        super().__init__(Anything(), "asking", 0, 1, {"": frozen})
        self.nodes: list[int] = []

    def take(self, node: int, answer: Content) -> None:
        self.nodes.append(node)


class Server:
    """A conversation with the nodes of a grid."""

    def __init__(self, grid: Grid, setup: Setup | None = None, timeout: float = 0.05) -> None:
        rules = dataclasses.replace(composed().federation, round_timeout=timeout)
        self.meter = Meter(["one"])
        given = setup or setup_of(composed())
        self.talk = Conversation(grid, given, rules, Directory(), self.meter, wrap(b""))
        self.directory, self.grid = self.talk.directory, grid
        self.once: dict[str, Array] = {}

    @property
    def counts(self) -> Mapping[str, int]:
        return self.talk.losses.counts

    def enrol(self) -> None:
        self.talk.roster.enrol(self.grid)


def asked(server: Server) -> list[int]:
    """Ask all nodes something; those that answered."""
    server.meter.grow(len(server.directory), 0)
    exchange = Asked(Frozen(server.once, Merges()))
    server.talk.carry(exchange)
    return exchange.nodes


def test_silence_errors_and_answers_are_told_apart() -> None:
    grid = ScriptedGrid(
        {
            1: person(10),
            2: person(20, then=failing("ValueError: a\nb")),
            3: person(30, then=failing(" \n ")),
            4: person(40, then=lambda _: None),
            5: person(50, then=failing(None)),
        }
    )
    nodes = Server(grid)
    nodes.enrol()
    assert asked(nodes) == [1]
    assert nodes.counts == {"failed": 3, "no_answer": 1}


def test_a_message_that_the_runtime_does_not_take_is_no_answer() -> None:
    grid = ScriptedGrid({1: person(10), 2: person(20)})
    nodes = Server(grid)
    nodes.enrol()
    grid.refused = {2}
    assert asked(nodes) == [1]
    assert nodes.counts == {"no_answer": 1}


def test_messages_that_are_too_large_for_the_runtime_end_the_run_with_a_reason() -> None:
    class Small(ScriptedGrid):
        def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
            return []

    grid = Small({1: person(10)})
    with pytest.raises(FederationError, match="took 0 of 1 messages: they are larger than it allows"):
        list(Post(Losses(), 2).ask(grid, [Message(RecordDict(), 1, "train")], 1.0, lambda node: 0))
    assert list(Post(Losses(), 2).ask(grid, [], 1.0, lambda node: 0)) == []


def test_a_node_without_users_is_asked_once() -> None:
    grid = ScriptedGrid({1: person(10), 2: person()})
    nodes = Server(grid)
    for _ in range(3):
        nodes.enrol()
    assert [message.metadata.dst_node_id for message in grid.sent] == [1, 2]
    assert nodes.directory.nodes == [1]
    assert not nodes.counts


def test_a_node_that_comes_back_before_its_former_self_is_gone_takes_its_place() -> None:
    """The runtime keeps a killed node for a minute; meanwhile its users live on the newer one alone."""
    grid = ScriptedGrid({1: person(10, 11), 2: person(20)})
    nodes = Server(grid)
    nodes.enrol()
    grid.answers[3] = person(11, 10)
    nodes.enrol()
    assert nodes.counts == {"double_users": 1}
    assert nodes.directory.nodes == [2, 3]
    nodes.enrol()
    assert nodes.counts == {"double_users": 1}, "its former self is not asked again while it seems to be there"
    assert len(nodes.directory) == 3
    assert sorted(asked(nodes)) == [2, 3]
    del grid.answers[1]
    nodes.enrol()
    grid.answers[1] = person(11, 10)
    nodes.enrol()
    assert nodes.directory.nodes == [2, 1], "but it is when it has been away"


def test_a_node_that_names_a_user_twice_is_left_out() -> None:
    grid = ScriptedGrid({1: person(10, 10), 2: person(20)})
    nodes = Server(grid)
    nodes.enrol()
    assert nodes.directory.nodes == [2]
    assert nodes.counts == {"double_users": 1}


BAD_ENROLMENTS: dict[str, tuple[Answer, str]] = {
    "an error": (failing("no disk"), "enrol_failed"),
    "other code": (person(10, code="0"), "other_code"),
    "keys that are numbers of another type": (
        lambda m: Message(pack({"code": code_digest()}, arrays={KEYS: np.ones(3)}), reply_to=m),
        "malformed",
    ),
    "keys in a table": (
        lambda m: Message(pack({"code": code_digest()}, arrays={KEYS: np.ones((2, 2), np.uint64)}), reply_to=m),
        "malformed",
    ),
    "no keys": (lambda m: Message(pack({"code": code_digest()}), reply_to=m), "malformed"),
    "other records": (lambda m: Message(RecordDict(), reply_to=m), "malformed"),
    "hostile bytes": (lambda m: Message(record_of(b"PK\x03\x04"), reply_to=m), "malformed"),
}


@pytest.mark.parametrize("case", BAD_ENROLMENTS)
def test_a_node_that_cannot_join_is_counted_and_the_others_go_on(case: str) -> None:
    answer, reason = BAD_ENROLMENTS[case]
    nodes = Server(ScriptedGrid({1: answer, 2: person(20)}))
    nodes.enrol()
    assert nodes.directory.nodes == [2]
    assert nodes.counts == {reason: 1}
    grid = ScriptedGrid({1: answer})
    with pytest.raises(FederationError, match=rf"0 of the 1 connected nodes have joined with users.*{reason}"):
        Server(grid).talk.roster.gather(grid, least=1, timeout=0.0)


def test_a_silent_node_does_not_hold_up_the_enrolment_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(roster_module, "_TIMEOUT", 0.05)
    nodes = Server(ScriptedGrid({1: lambda _: None, 2: person(20)}))
    nodes.enrol()
    assert nodes.directory.nodes == [2]
    assert nodes.counts == {"enrol_no_answer": 1}


def test_many_nodes_have_more_time_to_enrol() -> None:
    few, many = (ScriptedGrid({node: person(node) for node in range(1, count + 1)}) for count in (10, 1_010))
    for grid in (few, many):
        Server(grid).enrol()
    assert many.sent[0].metadata.ttl == pytest.approx(few.sent[0].metadata.ttl + 300.0)


def test_only_a_worker_of_a_simulation_ends_the_run_by_saying_that_it_sees_other_folders() -> None:
    def elsewhere(message: Message) -> Message:
        return Message(pack({UNSHARED: "another folder"}), reply_to=message)

    grid = ScriptedGrid({1: elsewhere, 2: person(20, then=elsewhere)})
    deployed = Server(grid)
    deployed.enrol()
    assert deployed.directory.nodes == [2]
    assert asked(deployed) == [2]
    data = SimulatedData("/data", "/state", "t")
    simulated = Server(grid, dataclasses.replace(setup_of(composed()), simulation=data))
    with pytest.raises(FederationError, match="another folder"):
        simulated.enrol()
    grid.answers[1] = person(10)
    simulated.enrol()
    with pytest.raises(FederationError, match="another folder"):
        asked(simulated)


def test_nodes_that_never_come() -> None:
    with pytest.raises(FederationError, match="1 of 3 nodes connected within 0 s"):
        Server(ScriptedGrid({1: person(10)})).talk.wait(3, timeout=0.0)


def test_what_is_sent_once_is_sent_once_and_again_to_who_lost_it() -> None:
    lost = [True]

    def forgetful(message: Message) -> Message:
        has = FROZEN + "d" in unpack(message.content).arrays
        answer = {"ok": 1} if has or not lost[0] else {MISSING: "d"}
        return Message(pack(answer), reply_to=message)

    grid = ScriptedGrid({1: person(10, then=forgetful), 2: person(20)})
    nodes = Server(grid)
    nodes.enrol()
    nodes.once = {"d": wrap(b"content")}
    carried = []
    for _ in range(3):
        grid.sent.clear()
        assert sorted(asked(nodes)) == [1, 2]
        carried.append([FROZEN + "d" in unpack(message.content).arrays for message in grid.sent])
    # The third message of the later rounds is the second try of the node that has lost it.
    assert carried == [[True, True], [False, False, True], [False, False, True]]
    assert not nodes.counts


def test_a_node_that_lacks_it_even_then_is_forgotten_and_enrolled_anew() -> None:
    grid = ScriptedGrid({1: person(10, then=lambda m: Message(pack({MISSING: "d"}), reply_to=m)), 2: person(20)})
    nodes = Server(grid)
    nodes.enrol()
    assert asked(nodes) == [2]
    assert nodes.counts == {"frozen_missing": 1}
    assert nodes.directory.nodes == [2]
    nodes.enrol()
    assert nodes.directory.nodes == [2, 1]


def test_a_reply_to_nothing_that_was_asked_is_not_yielded() -> None:
    class Replaying(ScriptedGrid):
        def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
            replies = list(super().pull_messages(message_ids))
            return [*replies, *replies]

    grid = Replaying({1: person(10), 2: person(20)})
    nodes = Server(grid)
    nodes.enrol()
    assert asked(nodes) == [1, 2], "a replayed reply is used once"


def test_the_client_app_refuses_a_setup_that_it_does_not_understand() -> None:
    from client_app.answers.app import app

    grid = LocalGrid(app, 1)
    content = pack({"setup": '{"protocol": 1, "backbone": "os.system"}'})
    (reply,) = grid.send_and_receive([Message(content, next(iter(grid.get_node_ids())), "query.enroll")])
    assert reply.has_error()
    assert "the server's setup is not valid" in str(reply.error.reason)
    assert not grid._contexts[2].state, "and keeps nothing of it"


def test_an_answer_is_asked_of_an_enrolled_node_only() -> None:
    from client_app.answers.app import app

    message = ScriptedGrid({}) and Message(pack({"phase": 0}), 2, "train")
    context = Context(1, 2, {"partition-id": 0, "num-partitions": 1}, RecordDict(), {})
    message.metadata.__dict__["_message_id"] = "m"
    assert unpack(app(message, context).content).fields == {MISSING: "setup"}


def test_the_public_list_is_one_bit_an_item() -> None:
    assert eligible_spec(ITEMS)["eligible"].nbytes == 3
