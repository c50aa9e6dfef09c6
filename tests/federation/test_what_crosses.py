"""What crosses the network: what the phase trains, nothing private, and exactly the bytes that are counted."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Message
from safetensors.torch import load_file

import client_app.answers.node
from exchanges.records import FROZEN, METRICS, MODEL, UPDATE, unpack
from fedrec.backbones.base import Backbone
from fedrec.config.describe import complete_members, load_member
from fedrec.core.registry import backbones
from fedrec.core.tensors import Tensors, content_digest

Federate = Callable[..., Any]

HEADER, DIM, ITEMS, RANK = 36, 8, 100, 2
LORA = HEADER + 4 * (ITEMS * RANK + DIM * RANK)
FULL = HEADER + 4 * ITEMS * DIM


def of_type(messages: list[Message], kind: str, round_above: int = 0) -> list[Message]:
    return [
        m for m in messages if m.metadata.message_type == kind and int(unpack(m.content).fields["round"]) > round_above
    ]


def test_after_the_freeze_nothing_but_the_peft_tensors_travels(federate: Federate) -> None:
    outcome = federate(nodes=3)
    train = of_type(outcome.grid.sent, "train")
    warmup = [m for m in train if unpack(m.content).fields["round"] <= 2]
    peft = [m for m in train if unpack(m.content).fields["round"] > 2]
    assert {len(packet) for *_, packet in outcome.grid.packets(warmup, MODEL)} == {FULL + 8}
    assert {len(packet) for *_, packet in outcome.grid.packets(peft, MODEL)} == {LORA + 8}
    replies = [reply for reply in outcome.grid.received if UPDATE in unpack(reply.content).arrays]
    sizes = [len(packet) for *_, packet in outcome.grid.packets(replies, UPDATE)]
    assert sizes == [FULL + 8 * 8] * len(warmup) + [LORA + 8 * 8] * len(peft)
    # The frozen table reaches each node once, then never again, in any message.
    frozen = [name for _, name, _ in outcome.grid.packets(outcome.grid.sent, FROZEN)]
    digests = sorted(set(frozen), key=frozen.index)
    assert len(digests) == 2, "the list of eligible items, and the base table"
    assert frozen.count(digests[0]) == frozen.count(digests[1]) == 3


def test_full_sends_no_frozen_table(federate: Federate) -> None:
    outcome = federate("strategy=full", nodes=3)
    train = of_type(outcome.grid.sent, "train")
    assert {len(packet) for *_, packet in outcome.grid.packets(train, MODEL)} == {FULL + 8}
    assert len({name for _, name, _ in outcome.grid.packets(outcome.grid.sent, FROZEN)}) == 1


def test_the_frozen_table_stays_bit_identical_and_the_correction_starts_at_zero(
    federate: Federate, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[str, torch.Tensor, Tensors]] = []
    train = client_app.answers.node.Node.train

    def spy(self: client_app.answers.node.Node, received: client_app.answers.node.Received, *asked: Any) -> bytes:
        model = received.model
        if model.frozen:
            vectors = model.item_vectors(model.trainable, torch.arange(ITEMS))
            seen.append((content_digest(model.frozen), vectors, dict(model.frozen)))
        return train(self, received, *asked)

    monkeypatch.setattr(client_app.answers.node.Node, "train", spy)
    outcome = federate("checkpoint_every=1", "checkpoints_kept=5")
    bases = {
        round: load_file(outcome.folder / f"checkpoints/round-{round:06d}.safetensors").get("frozen.base")
        for round in range(1, 6)
    }
    assert bases[1] is None
    assert bases[2] is None
    assert bases[3] is not None
    assert all(torch.equal(bases[3], base) for base in (bases[4], bases[5]) if base is not None)
    assert len({digest for digest, _, _ in seen}) == 1
    assert all(torch.equal(frozen["base"], bases[3]) for _, _, frozen in seen)
    assert torch.equal(seen[0][1], bases[3]), "the first vectors of the compressed phase are exactly the frozen ones"
    assert not torch.equal(seen[-1][1], bases[3])
    warm = load_file(outcome.folder / "checkpoints/round-000002.safetensors")["trainable.embedding.items"]
    assert torch.equal(warm, bases[3]), "what is frozen is what the warm-up trained"


@pytest.fixture
def short(tmp_path: Path) -> list[str]:
    """A table in which some users have too few interactions to be ranked."""
    path = tmp_path / "clicks.csv"
    rng = np.random.default_rng(0)
    lines = [f"u{user},i{item}" for user in range(40) for item in rng.permutation(30)[: 1 + user % 6]]
    path.write_text("who,what\n" + "\n".join(lines) + "\n")
    columns = ["dataset.user_column=who", "dataset.item_column=what", "dataset.time_column=null"]
    return ["dataset=table", f"dataset.interactions={path}", *columns, "base_table.start=random"]


@pytest.mark.parametrize("case", ["everybody is ranked", "some are not", "nothing rides", "int8"])
def test_the_meter_counts_what_lone_devices_move(federate: Federate, short: list[str], case: str) -> None:
    """One node per user: the packets of the real messages, added up by hand, are what the meter says."""
    overrides = {"some are not": short, "nothing rides": ["checkpoint_every=1"], "int8": ["codec=int8"]}.get(case, [])
    users, ranked = (40, 26) if case == "some are not" else (60, 60)
    outcome = federate("evaluation.every=1", *overrides, nodes=users)
    train = of_type(outcome.grid.sent, "train")
    down = sum(len(packet) for *_, packet in outcome.grid.packets(train, MODEL))
    up = sum(len(packet) for *_, packet in outcome.grid.packets(outcome.grid.received, UPDATE))
    moved = outcome.summary["bytes_per_user"]
    assert moved["down"] * users == pytest.approx(down)
    assert moved["up"] * users == pytest.approx(up)
    assert moved["total"] == pytest.approx(moved["up"] + moved["down"] + moved["one_time"])
    enrolment = [message for message in outcome.grid.sent if message.metadata.message_type == "query.enroll"]
    told = json.loads(str(unpack(enrolment[0].content).fields["setup"]))
    # Where a simulated node finds its data is no part of what a device would be told.
    setup = len(json.dumps({**told, "simulation": None}, sort_keys=True, separators=(",", ":")).encode())
    first = {name: packet for _, name, packet in outcome.grid.packets(outcome.grid.sent, FROZEN)}
    trained_compressed = {m.metadata.dst_node_id for m in train if unpack(m.content).fields["round"] > 2}
    sizes = sorted(len(packet) for packet in first.values())
    assert moved["one_time"] * users == pytest.approx(
        users * (setup + 8 + sizes[0]) + len(trained_compressed) * sizes[1]
    )
    # Beside the training's own messages, in some of which a ranking rides and needs no model of its own.
    evaluations = of_type(outcome.grid.sent, "evaluate")
    watched = sum(len(packet) for *_, packet in outcome.grid.packets(evaluations, MODEL))
    watched += sum(len(packet) for *_, packet in outcome.grid.packets(outcome.grid.received, METRICS))
    assert moved["evaluation"] * users == pytest.approx(watched + users * sizes[1])
    assert outcome.summary["test"]["users"] == ranked


@pytest.mark.parametrize("nodes", [1, 20])
@pytest.mark.parametrize("backbone", complete_members("backbone"))
def test_private_tensors_never_leave(
    federate: Federate, monkeypatch: pytest.MonkeyPatch, backbone: str, nodes: int
) -> None:
    """A marker in each private tensor, at its first and last number, is in no byte that crosses in the whole run."""
    member = backbones.get(backbone)
    spec = member(load_member("backbone", backbone), DIM).private
    markers = dict(zip(spec, np.linspace(12.345678, 98.765432, len(spec), dtype=np.float32), strict=True))
    init = member.init_private

    def marked(self: Backbone, seed: int, keys: np.ndarray) -> Tensors:
        tensors: Tensors = init(self, seed, keys)
        for name, marker in markers.items():
            tensors[name].flatten(1)[:, [0, -1]] = float(marker)
        return tensors

    monkeypatch.setattr(member, "init_private", marked)
    # No step of learning: the markers stay what they are, and so would be found.
    outcome = federate(f"backbone={backbone}", "optim.lr=1e-30", "dataset.n_users=20", nodes=nodes)
    crossed = [
        values for m in [*outcome.grid.sent, *outcome.grid.received] for values in unpack(m.content).arrays.values()
    ]
    raw = [values.tobytes() for values in crossed]
    assert len(raw) > 20
    for marker in markers.values():
        assert not any(marker.tobytes() in piece for piece in raw)
    state = (outcome.folder / "state" / "users.sqlite").read_bytes() + b"".join(
        path.read_bytes() for path in (outcome.folder / "state").glob("users.sqlite-wal")
    )
    found = [marker.tobytes() in state for marker in markers.values()]
    assert all(found), "the test would find them: they are in the users' own store"


def test_user_ids_never_leave(federate: Federate) -> None:
    outcome = federate(nodes=60)
    fields = [str(unpack(m.content).fields) for m in [*outcome.grid.sent, *outcome.grid.received]]
    keys = [unpack(m.content).arrays["keys"] for m in outcome.grid.received if "keys" in unpack(m.content).arrays]
    assert len(keys) == 60
    assert all(values.dtype == np.uint64 for values in keys)
    assert not any("user_0" in text or "u0" in text for text in fields)
