"""Secure sums of sites: what a server cannot make a site do, what its policy has a say in, and what is on its disk."""

from __future__ import annotations

import json
import stat
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Context, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from client_app.answers import app as app_module
from client_app.answers.app import app as client_app
from client_app.homes.identity import own_identity
from client_app.stores import stages
from client_app.stores.stages import StageStore
from commands.local_grid import LocalGrid
from exchanges import records
from exchanges.records import pack, unpack
from fedrec.config.compose import compose
from fedrec.config.paths import settle
from fedrec.secure.keys import Announced, context_of
from fedrec.wire.packet import PacketFormat
from fedrec.wire.secure import Status, opened_format, roll_format, sealed_down_format, status_format
from server_app.run import run

SITES, ITEMS = 5, 30
KINDS = (records.ANNOUNCE, records.SHARE, records.TRAIN, records.UNMASK)
DEPLOYED = ["runtime=deployment", "dataset=table", "base_table.start=random", "base_table.dim=4", "embedding.rank=2"]
DEPLOYED += ["strategy.rounds=2", "strategy.warmup_rounds=1", "federation.fraction=1.0", "evaluation.every=0"]
DEPLOYED += [f"federation.min_nodes={SITES}", "checkpoint_every=1", "aggregation=secagg"]
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


class Shop:
    """Five sites with two users each."""

    def __init__(self, folder: Path) -> None:
        TaskIdentity.run_id = TaskIdentity.task_id = TaskIdentity.node_id = 1
        self.folder = folder
        rng = np.random.default_rng(0)
        (folder / "items.csv").write_text("item_id,title\n" + "".join(f"i{n},Item {n}\n" for n in range(ITEMS)))
        self.configs = []
        for site in range(SITES):
            rows = [
                f"u{site}{user},i{item},{place}"
                for user in range(2)
                for place, item in enumerate(rng.permutation(ITEMS)[:6].tolist())
            ]
            (folder / f"site{site}.csv").write_text("user_id,item_id,timestamp\n" + "\n".join(rows) + "\n")
            self.state(site).mkdir(mode=0o700)
            self.configs.append({"interactions": f"{folder}/site{site}.csv", "state-dir": str(self.state(site))})
        self.problems: list[str] = []
        self.first: dict[tuple[str, int], list[Message]] = {}

    def state(self, site: int = 0) -> Path:
        return self.folder / f"state{site}"

    def policy(self, text: str, site: int = 0) -> None:
        (self.state(site) / "policy.toml").write_text(text)
        (self.state(site) / "policy.toml").chmod(0o600)

    def pin(self) -> list[str]:
        """Let all sites know each other; their identities."""
        known = [own_identity(self.state(site)).public_key().public_bytes_raw().hex() for site in range(SITES)]
        for site in range(SITES):
            self.policy(f"pins = {json.dumps(known)}\n", site)
        return known

    def deploy(self, *more: str, change: Callable[[Message, Any], Message] | None = None) -> list[dict[str, Any]]:
        """The records of a run whose first site gets what `change` makes of a message, given how to ask it."""
        shop = self

        class Hostile(LocalGrid):
            def answer(self, message: Message) -> Message:
                if message.metadata.dst_node_id != min(self.get_node_ids()):
                    return self.ask(message)
                found = change(message, self.ask) if change else self.ask(message)
                fields = unpack(found.content).fields if found.has_content() else {}
                if records.PROBLEM in fields:
                    shop.problems.append(str(fields[records.PROBLEM]))
                where = (message.metadata.message_type, int(unpack(message.content).fields.get("round", 0)))
                shop.first.setdefault(where, []).extend([message, found])
                return found

            def ask(self, message: Message) -> Message:
                app_module._node.cache_clear()  # a new process for every message
                return super().answer(message)

        texts = [*DEPLOYED, f"dataset.item_table={self.folder}/items.csv", f"runs_dir={self.folder}/runs"]
        texts += [f"cache_dir={self.folder}/cache", "run_id=r", *more]
        of = {text.partition("=")[0]: text for text in texts}
        run(settle(compose(list(of.values()), base=None), None), texts, Hostile(client_app, self.configs))
        lines = (self.folder / "runs" / of["run_id"].removeprefix("run_id=") / "metrics.jsonl").read_text().splitlines()
        return [json.loads(line) for line in lines]

    def ask(self, kind: str, content: RecordDict, context: Context | None = None) -> dict[str, Any]:
        """The fields of the first site's answer to a message that no server of this run has sent."""
        app_module._node.cache_clear()
        message = Message(content, 2, kind)
        message.metadata.__dict__["_message_id"] = "m"
        return dict(unpack(client_app(message, context or self.context()).content).fields)

    def context(self) -> Context:
        context = Context(run_id=1, node_id=2, node_config=self.configs[0], state=RecordDict(), run_config={})
        setup = json.loads((self.folder / "runs/r/setup.json").read_text())
        context.state["setup"] = records.ConfigRecord(
            {"json": json.dumps(setup, sort_keys=True, separators=(",", ":"))}
        )
        return context


@pytest.fixture
def shop(tmp_path: Path) -> Shop:
    return Shop(tmp_path)


def only(kind: str, change: Callable[[Message, Any], Message], round: int = 1) -> Callable[[Message, Any], Message]:
    """Change what is said in one stage of one round."""

    def change_one(message: Message, ask: Any) -> Message:
        fields = unpack(message.content).fields
        if message.metadata.message_type == kind and fields.get("round") == round:
            return change(message, ask)
        found: Message = ask(message)
        return found

    return change_one


def twice(message: Message, ask: Any) -> Message:
    """Ask the very same again: the answers are equal to the byte."""
    first, second = ask(message), ask(message)
    arrays = [
        {name: array.tobytes() for name, array in unpack(each.content).arrays.items()} for each in (first, second)
    ]
    assert arrays[0] == arrays[1]
    return second


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_question_gets_the_stored_answer(shop: Shop, kind: str) -> None:
    found = shop.deploy(change=only(kind, twice))
    assert not shop.problems
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


def test_where_the_server_may_lie_no_neighbour_may_be_missing(shop: Shop) -> None:
    """Parts that leave out different masks might be added up in two ways."""

    def miss(message: Message, ask: Any) -> Message:
        without = remade(message, records.SEALED, sealed_down_format(graph()), lambda t: t["present"][:1].fill_(0))
        return ask(without)

    found = shop.deploy("aggregation.server=lying", change=only(records.TRAIN, miss))
    assert len(shop.problems) == 1
    assert "3 of 4 neighbours have sent shares, a sum needs 4" in shop.problems[0]
    assert [record["users"] for record in found] == [8, 10]


@pytest.mark.parametrize("which", ["channel", "mask"])
def test_a_neighbour_whose_key_has_a_low_order_is_refused(shop: Shop, which: str) -> None:
    """A server that has a site of its own can have anything signed by it."""

    def weaken(line: Announced) -> Announced:
        key = json.loads((shop.folder / "runs/r/setup.json").read_text())["run_key"]
        owners = [own_identity(shop.state(site)) for site in range(SITES)]
        (owner,) = [owner for owner in owners if owner.public_key().public_bytes_raw() == line.identity]
        weak = line._replace(**{which: bytes(32)})
        return weak._replace(signature=owner.sign(context_of(key, 1, 2) + weak._signed()))

    shop.deploy(change=only(records.SHARE, roll(lambda tensors: forge(tensors, weaken)), round=2))
    assert len(shop.problems) == 1
    assert "no X25519 key" in shop.problems[0]


@pytest.mark.parametrize("name", ATTACKS)
def test_what_a_server_cannot_make_a_site_do(shop: Shop, name: str) -> None:
    """Nor one of which the run says that it does not lie."""
    kind, change, why = ATTACKS[name]
    found = shop.deploy(change=only(kind, change))
    assert len(shop.problems) == 1, shop.problems
    assert why in shop.problems[0]
    lost = 0 if kind == records.UNMASK else 2
    assert [record["users"] for record in found] == [10 - lost, 10], "the others' sum is taken, and the next has all"
    told = shop.first[records.UNMASK, 1][1] if (records.UNMASK, 1) in shop.first else None
    assert told is None or records.OPENED not in unpack(told.content).arrays, "no share was told"


def test_a_packet_of_another_round_is_refused(shop: Shop) -> None:
    kept: list[bytes] = []

    def replay(message: Message, ask: Any) -> Message:
        content = unpack(message.content)
        if message.metadata.message_type == records.UNMASK:
            kept.append(content.packet(records.STATUS))
            if content.fields["round"] == 2:
                return ask(bent(message, {records.STATUS: kept[0]}))
        return ask(message)

    shop.deploy(change=replay)
    assert len(shop.problems) == 1
    assert "expected round 2" in shop.problems[0]


def test_false_shares_of_one_site_cost_nothing(shop: Shop) -> None:
    def lie(message: Message, ask: Any) -> Message:
        answer = ask(message)
        form = opened_format(graph())
        packet = form.decode(unpack(answer.content).packet(records.OPENED))
        tensors = {**packet.tensors, "shares": packet.tensors["shares"] ^ 1}
        return Message(pack({}, {records.OPENED: form.encode(packet.phase, packet.round, tensors)}), reply_to=message)

    found = shop.deploy(change=only(records.UNMASK, lie))
    assert [record["users"] for record in found] == [10, 10]


def test_no_second_sum_of_a_round_and_no_stage_out_of_turn(shop: Shop) -> None:
    shop.deploy()
    asked = pack({"phase": 0, "round": 2}, arrays={"slots": np.array([0, 1], np.int32)})
    assert "is in no second one" in shop.ask(records.ANNOUNCE, asked)[records.PROBLEM]
    asked = pack({"phase": 1, "round": 3}, arrays={records.STATUS: np.zeros(41, np.uint8)})
    assert "out of turn" in shop.ask(records.UNMASK, asked)[records.PROBLEM]


# The policy -----------------------------------------------------------------------------------------------------------


def test_a_site_is_in_no_sum_of_fewer_than_its_policy_says(shop: Shop) -> None:
    shop.policy("min_cohort = 6\n")
    found = shop.deploy()
    assert all("in none of fewer than 6" in problem for problem in shop.problems)
    assert [record["users"] for record in found] == [8, 8]


def test_nor_in_one_that_has_shrunk_below_it(shop: Shop) -> None:
    shop.policy("min_cohort = 5\n")

    def lose(message: Message, ask: Any) -> Message:
        (path,) = (shop.state() / "secure").rglob("record.json")
        kept = json.loads(path.read_text())
        own = Announced.unpacked(np.frombuffer(bytes.fromhex(kept["announced"]), np.uint8)).digest().tobytes().hex()
        other = (kept["roll"].index(own) // len(own) + 1) % SITES
        dropped = status(lambda found: found.__setitem__(other, Status.DROPPED))
        return dropped(message, ask)

    shop.deploy(change=only(records.UNMASK, lose))
    assert len(shop.problems) == 1
    assert "the 4 nodes that have stayed: this site is in none of fewer than 5" in shop.problems[0]


def test_updates_leave_in_secure_sums_only_if_the_policy_says_so(shop: Shop) -> None:
    shop.policy("only_masked = true\n")
    shop.deploy("aggregation=plain", "federation.min_nodes=4", "federation.node_timeout=0")
    assert "only_masked" in shop.problems[0]


def test_with_pins_a_site_deals_with_those_alone_whom_it_knows(shop: Shop) -> None:
    known = shop.pin()
    assert known[1] == (shop.state(1) / "identity.pub").read_text().strip()
    found = shop.deploy("aggregation.server=lying")
    assert [record["users"] for record in found] == [10, 10]
    shop.policy(f"pins = {json.dumps(known[:-1])}\n")
    found = shop.deploy("aggregation.server=lying", "run_id=s", "federation.min_users=0")
    assert known[-1] in shop.problems[0]
    assert "is not among this site's pins" in shop.problems[0]
    assert [record["users"] for record in found] == [0, 0], "and so not all have shared their secrets"


def test_pins_want_a_run_that_reckons_with_a_lying_server(shop: Shop) -> None:
    shop.policy(f'pins = ["{"0" * 64}"]\n')
    shop.deploy("federation.min_nodes=4", "federation.node_timeout=0")
    assert "aggregation.server=lying" in shop.problems[0]


@pytest.mark.parametrize("aggregation", ["plain", "grid"])
def test_and_one_whose_sums_are_secure(shop: Shop, aggregation: str) -> None:
    shop.policy(f'pins = ["{"0" * 64}"]\n')
    shop.deploy(f"aggregation={aggregation}", "federation.min_nodes=4", "federation.node_timeout=0")
    assert "in secure sums" in shop.problems[0]
    assert (records.TRAIN, 1) not in shop.first or records.UPDATE not in unpack(
        shop.first[records.TRAIN, 1][1].content
    ).arrays


# The disk -------------------------------------------------------------------------------------------------------------


def test_what_is_kept_is_for_its_owner_alone_and_the_secrets_are_gone_when_they_were_told(shop: Shop) -> None:
    seen: list[dict[str, Any]] = []

    def look(message: Message, ask: Any) -> Message:
        found: Message = ask(message)
        for path in (shop.state() / "secure").rglob("record.json"):
            seen.append(json.loads(path.read_text()))
        return found

    shop.deploy(change=look)
    by_stage = {record["stage"]: record for record in seen}
    assert all(by_stage[stage][name] for stage in ("announce", "share", "train") for name in ("own", "mask"))
    assert by_stage["announce"]["channel"]
    assert not any(by_stage["unmask"][name] for name in ("own", "mask", "channel", "opening", "held"))
    files = [path for path in (shop.state() / "secure").rglob("*") if path.is_file()]
    files.append(shop.state() / "identity")
    assert len(files) == 2
    record = json.loads(files[0].read_text())
    assert record["round"] == 2
    assert not any(record[name] for name in ("own", "mask", "held", "answer")), "nor is the last answer, at the end"
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o600}


def test_when_it_joins_another_run_secrets_are_deleted_and_its_sums_remembered(shop: Shop) -> None:
    """Or else a server could start another run only to have a round of this one again."""
    shop.deploy()
    (path,) = (shop.state() / "secure").rglob("record.json")
    asked, context = pack({"phase": 1, "round": 2}, arrays={"slots": np.array([0, 1], np.int32)}), shop.context()
    path.write_text(json.dumps({**json.loads(path.read_text()), "own": "00", "stage": "train", "answer": "00"}))
    shop.deploy("run_id=s")
    assert json.loads(path.read_text())["own"] == json.loads(path.read_text())["answer"] == ""
    assert "is in no second one" in shop.ask(records.ANNOUNCE, asked, context)[records.PROBLEM]


def test_a_disk_on_which_nothing_can_be_written_takes_the_test_from_nobody(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(message: Message, ask: Any) -> Message:
        if message.metadata.message_type != records.EVALUATE:
            return ask(message)

        def fail(*_: object, **__: object) -> None:
            raise OSError(28, "No space left on device")

        with monkeypatch.context() as patched:
            patched.setattr(StageStore, "_write", fail)
            patched.setattr(StageStore, "_overwrite", fail)
            found: Message = ask(message)
        assert records.METRICS in "".join(unpack(found.content).arrays)
        seen.append(found)
        return found

    seen: list[Message] = []
    shop.deploy(change=full)
    assert seen


@pytest.mark.parametrize("pinned", [True, False])
def test_with_pins_no_resumption_has_a_round_again(shop: Shop, pinned: bool) -> None:
    if pinned:
        shop.pin()
    refused = []

    def resume(message: Message, ask: Any) -> Message:
        found: Message = ask(message)
        joining, announcing = shop.first[records.ENROLL, 0][0], shop.first[records.ANNOUNCE, 2][0]
        ask(bent(joining, {}, {records.RESUMED: "1"}))
        refused.append(unpack(ask(announcing).content).fields.get(records.PROBLEM))
        return found

    shop.deploy("aggregation.server=lying", change=only(records.TRAIN, resume, round=2))
    assert ("is in no second one" in str(refused[0])) is pinned
    assert (refused == [None]) is not pinned


def test_a_crash_leaves_no_answer_under_another_question(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever asks again for a part, when the shares were ready and not told, gets the part, and no share."""
    seen = []

    def crash(message: Message, ask: Any) -> Message:
        def fail(*_: object, **__: object) -> None:
            raise OSError("power")

        with monkeypatch.context() as patched:
            patched.setattr(stages, "write_text", fail)
            ask(message)
        training, part = shop.first[records.TRAIN, 1]
        seen.append([unpack(each.content).packet(records.UPDATE) for each in (part, ask(training))])
        found: Message = ask(message)
        return found

    shop.deploy(change=only(records.UNMASK, crash))
    assert seen[0][0] == seen[0][1]


FORMS: dict[str, tuple[str, Callable[[], PacketFormat], str]] = {
    records.SHARE: (records.ROLL, lambda: roll_format(SITES, graph()), "announce"),
    records.TRAIN: (records.SEALED, lambda: sealed_down_format(graph()), "share"),
    records.UNMASK: (records.STATUS, lambda: status_format(SITES), "train"),
}


def test_no_packet_makes_a_site_fail_without_a_reason(shop: Shop) -> None:
    """Neither bytes that are none, nor one with whatever in it, when the site is at the stage that is asked for."""
    at_stage: dict[str, str] = {}

    def look(message: Message, ask: Any) -> Message:
        found: Message = ask(message)
        for path in (shop.state() / "secure").rglob("record.json"):
            at_stage[json.loads(path.read_text())["stage"]] = path.read_text()
        return found

    shop.deploy(change=look)
    (path,) = (shop.state() / "secure").rglob("record.json")
    context = shop.context()

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
        asked = bent(shop.first[kind, 2][0], {name: data})
        problem = str(unpack(client_app(asked, context).content).fields[records.PROBLEM])
        assert "out of turn" not in problem, "it came as far as the packet"
        assert path.read_text() == at_stage[before], "and nothing is told or forgotten"

    ask()
    for round in (-1, 0, 1, 2**32):
        asked = pack({"phase": 1, "round": round}, arrays={"slots": np.array([0, 1], np.int32)})
        assert records.PROBLEM in shop.ask(records.ANNOUNCE, asked, context)
