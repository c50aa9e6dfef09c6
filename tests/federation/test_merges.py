"""Merge and restart: what becomes of the base table, and of what is trained, ranked and kept beside it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torch import Tensor

from client_app.answers.node import Node, Place
from client_app.training.engine import GlobalModel
from client_app.training.oracle import OracleEngine
from exchanges.records import MERGED, unpack
from federation.cohorts.base import Roots
from federation.cohorts.fixed import FixedCohort, FixedConfig
from federation.directory import Directory
from fedrec.config.describe import from_dict
from fedrec.core.rng import derive, generator
from fedrec.wire.protocol import Setup

Federate = Callable[..., Any]

ITEMS, DIM, RANK, USERS, WARMUP, EVERY, ROUNDS = 100, 8, 2, 24, 2, 2, 14
MERGING = [f"strategy.rounds={ROUNDS}", f"strategy.merge_every={EVERY}", "evaluation.every=0"]
MERGING += [f"dataset.n_users={USERS}", "optim.solve_epochs=1"]
MERGES_AFTER = [4, 6, 8, 10, 12]  # and not after 14, the last round
ALL = ["checkpoint_every=1", "checkpoints_kept=99"]


def where(outcome: Any, round: int = ROUNDS) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((outcome.folder / f"checkpoints/round-{round:06d}.json").read_text())
    return {**found, **found["groups"][""]}


def setup_of(outcome: Any) -> Setup:
    enrolment = next(m for m in outcome.grid.sent if m.metadata.message_type == "query.enroll")
    return Setup.from_json(str(unpack(enrolment.content).fields["setup"]))


def correction(outcome: Any, packet: bytes) -> Tensor:
    """What a packet of a merge decodes to, multiplied out by hand (the scaling is 1)."""
    node = Node(setup_of(outcome), Place(0, 1))
    fmt = node.setup.merged_format(node.models[1].merging)
    factors = fmt.decode(packet).tensors
    return factors["embedding.A"].double() @ factors["embedding.B"].double()


@pytest.mark.parametrize("codec", ["float32", "int8"])
def test_versions_are_named_by_the_chain_of_packets_and_made_of_what_they_decode_to(
    federate: Federate, codec: str
) -> None:
    outcome = federate(*MERGING, *ALL, f"codec={codec}")
    packets = {name: packet for _, name, packet in outcome.grid.packets(outcome.grid.sent, MERGED)}
    assert len(packets) == len(MERGES_AFTER)
    for round in range(WARMUP + 1, ROUNDS + 1):
        before, after = outcome.checkpoint(round - 1), outcome.checkpoint(round)
        name, named = where(outcome, round - 1)["frozen_digest"], where(outcome, round)["frozen_digest"]
        if round not in MERGES_AFTER:
            same = after["frozen.base"] if round == WARMUP + 1 else before["frozen.base"]
            assert torch.equal(after["frozen.base"], same)
            assert after["trainable.embedding.B"].any()
            continue
        made = hashlib.sha256(name.encode() + b"\0" + hashlib.sha256(packets[named]).digest()).hexdigest()
        assert made == named
        folded = (before["frozen.base"].double() + correction(outcome, packets[named])).float()
        assert torch.equal(after["frozen.base"], folded)
        assert not torch.equal(after["frozen.base"], before["frozen.base"])
        assert not after["trainable.embedding.B"].any()
        assert float(after["trainable.embedding.A"].std()) == pytest.approx(0.1, rel=0.2)
        assert where(outcome, round)["merges"] == MERGES_AFTER.index(round) + 1
    assert [record["merges"] for record in outcome.metrics] == [
        sum(after <= round for after in MERGES_AFTER) for round in range(1, ROUNDS + 1)
    ]
    assert outcome.summary["merges"] == len(MERGES_AFTER)


def test_every_restart_is_another_and_the_rank_grows_beyond_that_of_one_correction(federate: Federate) -> None:
    outcome = federate(*MERGING, *ALL)
    starts = [outcome.checkpoint(round)["trainable.embedding.A"] for round in MERGES_AFTER]
    for number, start in enumerate(starts, start=1):
        rng = generator(setup_of(outcome).seed, "embedding", "peft", "merge", number)
        assert torch.equal(start, 0.1 * torch.randn(ITEMS, RANK, generator=rng))
    moved = outcome.checkpoint()["frozen.base"] - outcome.checkpoint(WARMUP + 1)["frozen.base"]
    assert torch.linalg.matrix_rank(moved, rtol=1e-3) == DIM > RANK
    without = federate(*MERGING, "strategy.merge_every=0")
    last = without.checkpoint()
    assert torch.linalg.matrix_rank(last["trainable.embedding.A"] @ last["trainable.embedding.B"]) == RANK
    assert without.summary["merges"] == 0


def test_the_servers_optimiser_starts_anew_and_the_backbone_goes_on(federate: Federate) -> None:
    fast = ["optim=fast", "optim.solve_steps=1", "optim.negatives=20", "backbone=fedncf"]
    outcome = federate(*MERGING, *ALL, *fast, "strategy.rounds=6")
    assert int(outcome.checkpoint(3)["optimiser.count"]) == 1
    assert not [name for name in outcome.checkpoint(4) if name.startswith("optimiser.")]
    assert int(outcome.checkpoint(5)["optimiser.count"]) == 1
    before, after = outcome.checkpoint(3), outcome.checkpoint(4)
    shared = [name for name in after if name.startswith("trainable.backbone.")]
    assert shared
    assert all((before[name] - after[name]).abs().max() < 0.1 for name in shared), "a step, and not a new start"


def test_a_loop_by_hand_that_merges_comes_to_the_same_table(federate: Federate) -> None:
    """No strategy, packets, nodes or stores: the one-at-a-time engine, a weighted mean, and a merge written out."""
    outcome = federate(*MERGING, *ALL, nodes=7)
    setup, config = setup_of(outcome), from_dict(yaml.safe_load((outcome.folder / "config.yaml").read_text()))
    node = Node(setup, Place(0, 1))
    cohort, model, backbone = node.users.training(np.arange(USERS)), node.models[1], node.models[1].backbone
    directory = Directory()
    directory.join(1, cohort.keys)
    sampling, roots = FixedCohort(FixedConfig("fixed")), Roots(setup.seed, 0)
    oracle = OracleEngine(node.engine.recipe, node.engine.sampler, setup.stages)
    private, found = node.private_store.load(cohort.keys, before=WARMUP + 1)
    start = backbone.init_private(setup.seed, cohort.keys)["user"]
    vectors = torch.where(torch.from_numpy(found)[:, None], private["user"], start)
    base = outcome.checkpoint(WARMUP)["trainable.embedding.items"].clone()
    rng = generator(setup.seed, "embedding", "peft")
    a, b = 0.1 * torch.randn(ITEMS, RANK, generator=rng), torch.zeros(RANK, DIM)
    merges = 0
    for round in range(WARMUP + 1, ROUNDS + 1):
        chosen = directory.cohort(sampling, round, config.federation.fraction, roots)
        received = GlobalModel(model, {"embedding.A": a, "embedding.B": b}, {"base": base})
        seed = derive(node.secret, "train", round)
        trained = oracle.train(received, cohort.select(chosen), {"user": vectors[chosen]}, seed)
        vectors[chosen] = trained.private["user"]
        a = a + trained.update.total["embedding.A"] / trained.update.weight
        b = b + trained.update.total["embedding.B"] / trained.update.weight
        if (round - WARMUP) % EVERY == 0 and round < ROUNDS:
            merges += 1
            base = base + a @ b
            rng = generator(setup.seed, "embedding", "peft", "merge", merges)
            a, b = 0.1 * torch.randn(ITEMS, RANK, generator=rng), torch.zeros(RANK, DIM)
    last = outcome.checkpoint()
    torch.testing.assert_close(last["frozen.base"], base, atol=2e-4, rtol=1e-4)
    torch.testing.assert_close(last["trainable.embedding.A"], a, atol=2e-4, rtol=1e-4)
    torch.testing.assert_close(last["trainable.embedding.B"], b, atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("codec", ["float32", "int8"])
def test_the_layout_changes_nothing(federate: Federate, codec: str) -> None:
    # With SGD where updates are rounded, so that the last bits of a sum do not become whole steps.
    sgd = ["optim=fast", "optim.server.kind=sgd", "optim.server.beta1=0.0"] if codec == "int8" else []
    overrides = [*MERGING, "strategy.rounds=8", "evaluation.every=2", f"codec={codec}", *sgd]
    one = federate(*overrides, nodes=1)
    for nodes in (2, 7, USERS) if codec == "float32" else (7,):
        many = federate(*overrides, nodes=nodes)
        expected = {name: t for name, t in one.checkpoint(8).items() if not name.startswith(("meter.", "merged."))}
        found = many.checkpoint(8)
        for name, tensor in expected.items():
            torch.testing.assert_close(found[name], tensor, atol=1e-4, rtol=1e-4, msg=f"{name} of {nodes} nodes")
        for before, after in zip(one.metrics, many.metrics, strict=True):
            assert before["bytes_per_user"] == after["bytes_per_user"]
            assert before["merges"] == after["merges"]
            assert before["bytes"] == after["bytes"]
            assert before["loss"] == pytest.approx(after["loss"], abs=1e-4)
        assert many.summary["test"]["ndcg@10"] == pytest.approx(one.summary["test"]["ndcg@10"], abs=1e-3)


@pytest.mark.parametrize("backbone", ["fedncf", "fedpergnn"])
def test_what_the_backbone_shares_or_froze_goes_on(federate: Federate, backbone: str) -> None:
    overrides = [*MERGING, *ALL, "strategy.rounds=8", f"backbone={backbone}"]
    one, many = federate(*overrides, nodes=1), federate(*overrides, nodes=7)
    for name, tensor in one.checkpoint(8).items():
        if not name.startswith(("meter.", "merged.")):
            torch.testing.assert_close(many.checkpoint(8)[name], tensor, atol=1e-4, rtol=1e-4, msg=name)
    assert [line["bytes_per_user"] for line in one.metrics] == [line["bytes_per_user"] for line in many.metrics]
    assert one.summary["merges"] == 2
    frozen = [name for name in one.checkpoint(8) if name.startswith("frozen.") and name != "frozen.base"]
    assert bool(frozen) == (backbone == "fedpergnn")
    assert all(torch.equal(one.checkpoint(3)[name], one.checkpoint(8)[name]) for name in frozen)


def test_a_ranking_that_rides_past_a_merge_ranks_the_same_model(federate: Federate) -> None:
    overrides = [*MERGING, "strategy.rounds=8", "evaluation.every=1", "strategy.patience=null"]
    alone, riding = federate(*overrides, "checkpoint_every=1"), federate(*overrides, "checkpoint_every=0")
    for before, after in zip(alone.metrics, riding.metrics, strict=True):
        for name in ("validation", "loss", "users", "examples", "bytes", "merges"):
            assert before[name] == after[name], f"{name} of round {before['round']}"
    assert alone.summary["test"] == riding.summary["test"]
    assert torch.equal(alone.checkpoint(8)["frozen.base"], riding.checkpoint(8)["frozen.base"])
