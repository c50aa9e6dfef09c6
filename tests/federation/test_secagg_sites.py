"""Secure sums of sites: what a server cannot make a site do."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Message
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from client_app.answers import app as app_module
from client_app.answers.app import app as client_app
from client_app.homes.identity import own_identity
from exchanges import records
from exchanges.records import pack, unpack
from fedrec.secure.keys import Announced, context_of
from fedrec.wire.packet import PacketFormat
from fedrec.wire.secure import Status, opened_format, roll_format, sealed_down_format, status_format

KINDS = (records.ANNOUNCE, records.SHARE, records.TRAIN, records.UNMASK)
SITES = 5
Sites = Any  # of conftest.py
Arrays = dict[str, NDArray[np.generic]]


def bent(message: Message, change: Mapping[str, bytes], fields: Mapping[str, Any] | None = None) -> Message:
    """The message with some packets replaced."""
    content = unpack(message.content)
    arrays: Arrays = {**content.arrays, **{name: np.frombuffer(data, np.uint8) for name, data in change.items()}}
    told = Message(
        pack({**content.fields, **(fields or {})}, arrays=arrays),
        message.metadata.dst_node_id,
        message.metadata.message_type,
    )
    told.metadata.__dict__["_message_id"] = message.metadata.message_id
    return told


def remade(message: Message, name: str, form: PacketFormat, change: Callable[[dict[str, Any]], None]) -> Message:
    """The message with what is in one packet changed, as a server could that makes packets."""
    packet = form.decode(unpack(message.content).packet(name))
    tensors = {key: tensor.clone() for key, tensor in packet.tensors.items()}
    change(tensors)
    return bent(message, {name: form.encode(packet.phase, packet.round, tensors)})


def twice(message: Message, ask: Any) -> Message:
    """Ask the very same again: the answers are equal to the byte."""
    first, second = ask(message), ask(message)
    arrays = [
        {name: array.tobytes() for name, array in unpack(each.content).arrays.items()} for each in (first, second)
    ]
    assert arrays[0] == arrays[1]
    return second


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_question_gets_the_stored_answer(sites: Sites, kind: str) -> None:
    found = sites.deploy(change=sites.only(kind, twice))
    assert not sites.problems
    assert [record["users"] for record in found] == [10, 10]


def other_slots(message: Message, ask: Any) -> Message:
    ask(message)
    content = unpack(message.content)
    told = Message(pack(content.fields, arrays={"slots": np.array([0], np.int32)}), 2, message.metadata.message_type)
    told.metadata.__dict__["_message_id"] = message.metadata.message_id
    return ask(told)


def graph() -> Any:
    from fedrec.secure.graph import graph_of

    return graph_of(SITES, 0.1, 0.1, lying=False)


def status(change: Callable[[NDArray[np.uint8]], None], *, before: bool = False) -> Callable[[Message, Any], Message]:
    """Say something else of what has become of everybody; `before`: when the truth was told."""

    def go(message: Message, ask: Any) -> Message:
        if before:
            ask(message)
        return ask(remade(message, records.STATUS, status_format(SITES), lambda t: change(t["status"].numpy())))

    return go


def roll(change: Callable[[dict[str, Any]], None]) -> Callable[[Message, Any], Message]:
    return lambda message, ask: ask(remade(message, records.ROLL, roll_format(SITES, graph()), change))


def forge(tensors: dict[str, Any], change: Callable[[Announced], Announced]) -> None:
    """Something else that a neighbour has announced, with its line in the roll made to fit."""
    line = tensors["neighbours"][0].numpy()
    before = Announced.unpacked(line)
    forged = change(before)
    at = int(np.flatnonzero((tensors["roll"].numpy() == before.digest()).all(1))[0])
    line[:] = forged.packed()
    tensors["roll"].numpy()[at] = forged.digest()
    order = np.lexsort(tensors["roll"].numpy().T[::-1])
    for name in ("roll", "users"):
        tensors[name].numpy()[:] = tensors[name].numpy()[order]
    known = {Announced.unpacked(each).digest().tobytes(): each.copy() for each in tensors["neighbours"].numpy()}
    lines = [known[each.tobytes()] for each in tensors["roll"].numpy() if each.tobytes() in known]
    tensors["neighbours"].numpy()[:] = np.stack(lines)


def swap(array: NDArray[np.uint8]) -> None:
    array[[0, 1]] = array[[1, 0]]


def garble(tensors: dict[str, Any]) -> None:
    tensors["sealed"][:2, 0] ^= 1


def drop_all_shares(tensors: dict[str, Any]) -> None:
    tensors["present"][:2] = 0


ATTACKS: dict[str, tuple[str, Callable[[Message, Any], Message], str]] = {
    "a second question: who takes part": (records.ANNOUNCE, other_slots, "with another content before"),
    "a second question: who is lost": (
        records.UNMASK,
        status(lambda found: found.__setitem__(found == Status.SURVIVED, Status.DROPPED), before=True),
        "with another content before",
    ),
    "this node is lost": (records.UNMASK, status(lambda found: found.fill(Status.DROPPED)), "this node is"),
    "no status": (records.UNMASK, status(lambda found: found.fill(3)), "this node is"),
    "a key that is not the neighbour's": (
        records.SHARE,
        roll(lambda tensors: forge(tensors, lambda line: line._replace(mask=line.channel))),
        "is not signed",
    ),
    "another line": (records.SHARE, roll(lambda t: t["neighbours"].numpy()[0].fill(7)), "something else than the roll"),
    "a neighbour twice": (records.SHARE, roll(lambda t: t["roll"][1].copy_(t["roll"][0])), "everybody once"),
    "out of order": (records.SHARE, roll(lambda t: swap(t["roll"].numpy())), "in order"),
    "other numbers of users": (records.SHARE, roll(lambda t: t["users"][:, 0].add_(1)), "users here, 2 were announced"),
    "more users than fit": (records.SHARE, roll(lambda t: t["users"][:, 3].add_(1)), "at most 2097152 can be added up"),
    "a roll of millions": (
        records.SHARE,
        lambda message, ask: ask(bent(message, {}, {records.PARTICIPANTS: 10**9})),
        "does not name 1000000000",
    ),
    "a longer roll": (
        records.SHARE,
        lambda message, ask: ask(bent(message, {records.ROLL: bytes(10**6)}, {records.PARTICIPANTS: 4})),
        "packet",
    ),
    "what was sealed for another roll": (
        records.TRAIN,
        lambda message, ask: ask(remade(message, records.SEALED, sealed_down_format(graph()), garble)),
        "2 of 4 neighbours have sealed is for this node and the roll",
    ),
    "too few have shared": (
        records.TRAIN,
        lambda message, ask: ask(remade(message, records.SEALED, sealed_down_format(graph()), drop_all_shares)),
        "neighbours have sent shares",
    ),
}


def test_where_the_server_may_lie_no_neighbour_may_be_missing(sites: Sites) -> None:
    """Parts that leave out different masks might be added up in two ways."""

    def miss(message: Message, ask: Any) -> Message:
        without = remade(message, records.SEALED, sealed_down_format(graph()), lambda t: t["present"][:1].fill_(0))
        return ask(without)

    found = sites.deploy("aggregation.server=lying", change=sites.only(records.TRAIN, miss))
    assert len(sites.problems) == 1
    assert "3 of 4 neighbours have sent shares, a sum needs 4" in sites.problems[0]
    assert [record["users"] for record in found] == [8, 10]


@pytest.mark.parametrize("which", ["channel", "mask"])
def test_a_neighbour_whose_key_has_a_low_order_is_refused(sites: Sites, which: str) -> None:
    """A server that has a site of its own can have anything signed by it."""

    def weaken(line: Announced) -> Announced:
        key = json.loads((sites.folder / "runs/r/setup.json").read_text())["run_key"]
        owners = [own_identity(sites.state(site)) for site in range(SITES)]
        (owner,) = [owner for owner in owners if owner.public_key().public_bytes_raw() == line.identity]
        weak = line._replace(**{which: bytes(32)})
        return weak._replace(signature=owner.sign(context_of(key, 1, 2) + weak._signed()))

    sites.deploy(change=sites.only(records.SHARE, roll(lambda tensors: forge(tensors, weaken)), round=2))
    assert len(sites.problems) == 1
    assert "no X25519 key" in sites.problems[0]


@pytest.mark.parametrize("name", ATTACKS)
def test_what_a_server_cannot_make_a_site_do(sites: Sites, name: str) -> None:
    """Nor one of which the run says that it does not lie."""
    kind, change, why = ATTACKS[name]
    found = sites.deploy(change=sites.only(kind, change))
    assert len(sites.problems) == 1, sites.problems
    assert why in sites.problems[0]
    lost = 0 if kind == records.UNMASK else 2
    assert [record["users"] for record in found] == [10 - lost, 10], "the others' sum is taken, and the next has all"
    told = sites.first[records.UNMASK, 1][1] if (records.UNMASK, 1) in sites.first else None
    assert told is None or records.OPENED not in unpack(told.content).arrays, "no share was told"


def test_a_packet_of_another_round_is_refused(sites: Sites) -> None:
    kept: list[bytes] = []

    def replay(message: Message, ask: Any) -> Message:
        content = unpack(message.content)
        if message.metadata.message_type == records.UNMASK:
            kept.append(content.packet(records.STATUS))
            if content.fields["round"] == 2:
                return ask(bent(message, {records.STATUS: kept[0]}))
        return ask(message)

    sites.deploy(change=replay)
    assert len(sites.problems) == 1
    assert "expected round 2" in sites.problems[0]


def test_false_shares_of_one_site_cost_nothing(sites: Sites) -> None:
    def lie(message: Message, ask: Any) -> Message:
        answer = ask(message)
        form = opened_format(graph())
        packet = form.decode(unpack(answer.content).packet(records.OPENED))
        tensors = {**packet.tensors, "shares": packet.tensors["shares"] ^ 1}
        return Message(pack({}, {records.OPENED: form.encode(packet.phase, packet.round, tensors)}), reply_to=message)

    found = sites.deploy(change=sites.only(records.UNMASK, lie))
    assert [record["users"] for record in found] == [10, 10]


def test_no_second_sum_of_a_round_and_no_stage_out_of_turn(sites: Sites) -> None:
    sites.deploy()
    asked = pack({"phase": 0, "round": 2}, arrays={"slots": np.array([0, 1], np.int32)})
    assert "is in no second one" in sites.ask(records.ANNOUNCE, asked)[records.PROBLEM]
    asked = pack({"phase": 1, "round": 3}, arrays={records.STATUS: np.zeros(41, np.uint8)})
    assert "out of turn" in sites.ask(records.UNMASK, asked)[records.PROBLEM]


def test_a_site_tells_no_share_of_a_sum_that_has_shrunk_below_what_its_policy_says(sites: Sites) -> None:
    sites.policy("min_cohort = 5\n")

    def lose(message: Message, ask: Any) -> Message:
        (path,) = (sites.state() / "secure").rglob("record.json")
        kept = json.loads(path.read_text())
        own = Announced.unpacked(np.frombuffer(bytes.fromhex(kept["announced"]), np.uint8)).digest().tobytes().hex()
        other = (kept["roll"].index(own) // len(own) + 1) % SITES
        dropped = status(lambda found: found.__setitem__(other, Status.DROPPED))
        return dropped(message, ask)

    sites.deploy(change=sites.only(records.UNMASK, lose))
    assert len(sites.problems) == 1
    assert "the 4 nodes that have stayed: this site is in none of fewer than 5" in sites.problems[0]


@pytest.mark.parametrize("pinned", [True, False])
def test_with_pins_no_resumption_has_a_round_again(sites: Sites, pinned: bool) -> None:
    if pinned:
        sites.pin()
    refused = []

    def resume(message: Message, ask: Any) -> Message:
        found: Message = ask(message)
        joining, announcing = sites.first[records.ENROLL, 0][0], sites.first[records.ANNOUNCE, 2][0]
        ask(bent(joining, {}, {records.RESUMED: "1"}))
        refused.append(unpack(ask(announcing).content).fields.get(records.PROBLEM))
        return found

    sites.deploy("aggregation.server=lying", change=sites.only(records.TRAIN, resume, round=2))
    assert ("is in no second one" in str(refused[0])) is pinned
    assert (refused == [None]) is not pinned


FORMS: dict[str, tuple[str, Callable[[], PacketFormat], str]] = {
    records.SHARE: (records.ROLL, lambda: roll_format(SITES, graph()), "announce"),
    records.TRAIN: (records.SEALED, lambda: sealed_down_format(graph()), "share"),
    records.UNMASK: (records.STATUS, lambda: status_format(SITES), "train"),
}


def test_no_packet_makes_a_site_fail_without_a_reason(sites: Sites) -> None:
    """Neither bytes that are none, nor one with whatever in it, when the site is at the stage that is asked for."""
    at_stage: dict[str, str] = {}

    def look(message: Message, ask: Any) -> Message:
        found: Message = ask(message)
        for path in (sites.state() / "secure").rglob("record.json"):
            at_stage[json.loads(path.read_text())["stage"]] = path.read_text()
        return found

    sites.deploy(change=look)
    (path,) = (sites.state() / "secure").rglob("record.json")
    context = sites.context()

    @given(st.sampled_from(sorted(FORMS)), st.booleans(), st.binary(max_size=3000), st.integers(0, 2**32))
    @settings(max_examples=90, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    def ask(kind: str, formed: bool, data: bytes, seed: int) -> None:
        name, form, before = FORMS[kind]
        if formed:
            rng, spec = np.random.default_rng(seed), form().spec
            data = form().encode(
                1, 2, {key: torch.from_numpy(rng.integers(0, 256, e.shape, np.uint8)) for key, e in spec.items()}
            )
        path.write_text(at_stage[before])
        app_module._node.cache_clear()
        asked = bent(sites.first[kind, 2][0], {name: data})
        problem = str(unpack(client_app(asked, context).content).fields[records.PROBLEM])
        assert "out of turn" not in problem, "it came as far as the packet"
        assert path.read_text() == at_stage[before], "and nothing is told or forgotten"

    ask()
    for round in (-1, 0, 1, 2**32):
        asked = pack({"phase": 1, "round": round}, arrays={"slots": np.array([0, 1], np.int32)})
        assert records.PROBLEM in sites.ask(records.ANNOUNCE, asked, context)
