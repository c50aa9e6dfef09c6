"""Runs with secure aggregation: to the bit those without masks, whoever is lost, and nothing to see on the way."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from flwr.app import Context, Message
from rich.console import Console
from safetensors.torch import load_file

from client_app.answers.app import app as client_app
from commands.describe import describe, show_sizes
from commands.local_grid import LocalGrid
from exchanges import records
from exchanges.records import unpack
from federation.secure import training
from fedrec.config.compose import compose
from fedrec.config.describe import from_dict
from fedrec.config.paths import settle
from fedrec.core.errors import ConfigError, FederationError, PacketError
from fedrec.secure import keys
from fedrec.secure.graph import graph_of
from fedrec.secure.keys import Announced
from fedrec.wire.protocol import UPDATE_SCALARS
from server_app.run import run

Federate = Callable[..., Any]

FEW = ["strategy.rounds=2", "strategy.warmup_rounds=1", "evaluation.baselines=false", "dataset.n_items=60"]
ONCE = [*FEW, "strategy.rounds=1", "strategy.warmup_rounds=0", "evaluation.every=0", "federation.fraction=1.0"]
FAST = ["optim=fast", "federation.max_row_norm=10"]
NOISE = ["privacy=distributed_gaussian", "federation.fraction=1.0", "privacy.epsilon=200", "dataset.n_users=20"]


def assert_same(masked: Any, plain: Any, *, losses: bool = True) -> None:
    """The same model and metrics, to the bit."""
    mine, theirs = masked.checkpoint(), plain.checkpoint()
    for name in theirs:
        if not name.startswith("meter."):
            assert torch.equal(mine[name], theirs[name]), name
    for here, there in zip(masked.metrics, plain.metrics, strict=True):
        for name in ("users", "cohort", *(("loss", "examples", "cold_users", "dropped_users") if losses else ())):
            assert here.get(name) == there.get(name), name
    assert masked.summary["test"] == plain.summary["test"]


@pytest.mark.parametrize(
    ("overrides", "nodes"),
    [
        ([], 3),
        (["engine=oracle", "codec=int8"], 5),
        (["embedding=hash", "embedding.buckets=16", "codec=int4"], 4),
        (["embedding=rqvae", "embedding.levels=2", "embedding.codes=8", "embedding.steps=5"], 3),
        (["backbone=fedncf", "codec=float16"], 6),
        (["backbone=pfedrec", "strategy.merge_every=1"], 3),
        (["backbone=fedpergnn", "privacy=pseudo_items"], 3),
        (["backbone=sasrec", "base_table.start=random", *FAST], 4),
    ],
)
def test_a_run_with_masks_is_the_run_without(federate: Federate, overrides: list[str], nodes: int) -> None:
    plain = federate("aggregation=grid", *FEW, *overrides, nodes=nodes)
    masked = federate("aggregation=secagg", *FEW, *overrides, nodes=nodes)
    assert_same(masked, plain)
    assert plain.metrics[0]["loss"] is not None


@pytest.mark.parametrize(("nodes", "survivors"), [(3, 11), (20, 16)])
def test_with_distributed_noise_it_is_the_noised_run_without(federate: Federate, nodes: int, survivors: int) -> None:
    """Whose shares are larger: a third of three nodes may tell the server its noise, two of twenty."""
    plain = federate(*NOISE, *FEW, f"privacy.survivors={survivors}", nodes=nodes)
    masked = federate("aggregation=secagg", *NOISE, *FEW, nodes=nodes)
    assert_same(masked, plain, losses=False)
    assert not masked.metrics[0].get("unchanged")
    assert masked.metrics[0]["releases"] == plain.metrics[0]["releases"], "the account is the same"


def test_the_layout_changes_the_bytes_of_no_model_and_no_part(federate: Federate) -> None:
    few, many = (federate("aggregation=secagg", *FEW, nodes=nodes) for nodes in (3, 60))
    few.must_equal(many)


def test_on_the_grid_a_model_learns_as_without(federate: Federate) -> None:
    """Rounded without bias, and finely: the models of the two runs are close."""
    plain, grid = federate(*FEW, nodes=3), federate("aggregation=grid", *FEW, nodes=3)
    for name, tensor in plain.checkpoint().items():
        if name.startswith("trainable."):
            torch.testing.assert_close(grid.checkpoint()[name], tensor, atol=2e-3, rtol=0, msg=name)


# Who is lost ----------------------------------------------------------------------------------------------------------

STAGES = {"announce": records.ANNOUNCE, "share": records.SHARE, "train": records.TRAIN, "unmask": records.UNMASK}


def losing(stages: Mapping[str, int], round: int = 1) -> Callable[[Message, Context], Message]:
    """A client whose nodes fail in a round at some stage: the first ones at the first stage, and so on."""
    lost: dict[int, str] = {}
    for stage, count in stages.items():
        lost |= {len(lost) + number: STAGES[stage] for number in range(count)}

    def client(message: Message, context: Context) -> Message:
        kind, fields = message.metadata.message_type, unpack(message.content).fields
        if lost.get(int(context.node_config["partition-id"])) == kind and fields["round"] == round:
            raise RuntimeError("lost")
        return client_app(message, context)

    return client


@pytest.mark.parametrize(
    "stages",
    [
        *({stage: count} for stage in STAGES for count in (1, 4)),
        {"announce": 1, "share": 1, "train": 1, "unmask": 1},
        {"share": 2, "train": 2},
    ],
    ids=str,
)
def test_whoever_is_lost_the_sum_is_that_of_those_whose_part_has_come(
    federate: Federate, stages: dict[str, int]
) -> None:
    nodes = 10  # everybody is everybody's neighbour, and five of nine are needed
    masked = federate("aggregation=secagg", *ONCE, nodes=nodes, client=losing(stages))
    silent = sum(count for stage, count in stages.items() if stage != "unmask")
    plain = federate("aggregation=grid", *ONCE, nodes=nodes, client=losing({"train": silent}))
    assert_same(masked, plain)
    assert masked.metrics[0]["users"] == 60 - 6 * silent


@pytest.mark.parametrize("stage", STAGES)
def test_of_too_few_nothing_is_known(federate: Federate, stage: str) -> None:
    """Past the threshold the round changes nothing, and says why; without `min_users` the run goes on."""
    lost = {"announce": 8, "share": 6}.get(stage, 5)
    rules = ["federation.max_failures=1.0", "federation.min_users=0"]
    found = federate("aggregation=secagg", *ONCE, *rules, nodes=10, client=losing({stage: lost}))
    assert found.metrics[0]["unchanged"] is True
    assert found.metrics[0]["users"] == 0
    why = {"unmask": "masks_left"}.get(stage, "too_few_for_a_sum")
    assert found.metrics[0]["dropped_replies"][why] >= 1
    with pytest.raises(FederationError, match="0 of 60 chosen users count"):
        federate("aggregation=secagg", *ONCE, *rules[:1], nodes=10, client=losing({stage: lost}))


def test_with_too_few_for_their_noise_nobody_is_asked_to_unmask(federate: Federate) -> None:
    kept = [*NOISE, "privacy.dropouts=0.0"]
    found = federate("aggregation=secagg", *ONCE, *kept, nodes=10, client=losing({"train": 1}))
    assert found.metrics[0]["unchanged"] is True
    assert found.metrics[0]["dropped_replies"]["too_few_for_a_sum"] == 1
    assert not any(message.metadata.message_type == records.UNMASK for message in found.grid.sent)


def test_where_the_server_may_lie_all_who_announced_themselves_have_to_share(federate: Federate) -> None:
    """Or there is no sum; who is lost after that costs no more than elsewhere."""
    rules = [*ONCE, "aggregation.server=lying", "federation.max_failures=1.0", "federation.min_users=0"]
    found = federate("aggregation=secagg", *rules, nodes=10, client=losing({"share": 1}))
    assert found.metrics[0]["unchanged"] is True
    assert found.metrics[0]["dropped_replies"]["too_few_for_a_sum"] == 1
    assert not any(message.metadata.message_type == records.TRAIN for message in found.grid.sent)
    found = federate("aggregation=secagg", *rules, nodes=10, client=losing({"train": 1}))
    assert found.metrics[0]["users"] == 54


@pytest.mark.parametrize("which", ["channel", "mask"])
def test_a_key_with_which_nobody_can_agree_leaves_out_its_owner_alone(
    federate: Federate, monkeypatch: pytest.MonkeyPatch, which: str
) -> None:
    """And not the neighbours, who would fail over it."""
    announced = keys.announced

    def of_low_order(identity: Any, *args: Any) -> Announced:
        line = announced(identity, *args)._replace(**{which: bytes(32)})
        return line._replace(signature=identity.sign(args[-1] + line._signed()))

    def client(message: Message, context: Context) -> Message:
        with monkeypatch.context() as patched:
            if context.node_config["partition-id"] == 0:
                patched.setattr(keys, "announced", of_low_order)
            return client_app(message, context)

    found = federate("aggregation=secagg", *ONCE, nodes=10, client=client)
    assert found.metrics[0]["users"] == 54
    assert found.metrics[0]["dropped_replies"] == {"wrong_key": 1}


def test_masks_that_cannot_be_taken_off_cost_the_round_and_not_the_run(
    federate: Federate, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> int:
        raise PacketError("wrong_key", "no X25519 key")

    monkeypatch.setattr(training, "unmasked", fail)
    found = federate("aggregation=secagg", *ONCE, "federation.min_users=0", nodes=4)
    assert found.metrics[0]["unchanged"] is True
    assert found.metrics[0]["dropped_replies"] == {"wrong_key": 1}


# What crosses ---------------------------------------------------------------------------------------------------------


def test_what_is_counted_is_what_crosses_where_each_user_has_a_device(federate: Federate) -> None:
    found = federate("aggregation=secagg", *FEW, "federation.fraction=0.3", "evaluation.every=0", nodes=60)
    up = down = 0
    for round in (1, 2):
        asked = [m for m in found.grid.sent if unpack(m.content).fields.get("round") == round]
        stages = [m for m in asked if m.metadata.message_type in STAGES.values()]
        ids = {m.metadata.message_id for m in stages}
        names = (records.MODEL, records.ROLL, records.SEALED, records.STATUS)
        down += sum(
            unpack(m.content).arrays[name].nbytes for m in stages for name in names if name in unpack(m.content).arrays
        )
        up += sum(
            array.nbytes
            for reply in found.grid.received
            if reply.metadata.reply_to_message_id in ids
            for array in unpack(reply.content).arrays.values()
        )
    moved = found.metrics[-1]["bytes_per_user"]
    assert round_up(moved["up"] * 60) == up
    assert round_up(moved["down"] * 60) == down


def test_it_is_what_describe_says_beforehand(federate: Federate) -> None:
    found = federate("aggregation=secagg", *ONCE, *NOISE, nodes=20)
    config = from_dict(yaml.safe_load((found.folder / "config.yaml").read_text()))
    said = describe(config, None)
    (phase,) = said.phases
    moved = found.metrics[0]["bytes_per_user"]
    assert (phase.up, phase.down) == (moved["up"], moved["down"])
    assert phase.masks is not None
    assert (phase.masks.devices, phase.masks.degree, phase.masks.threshold) == (
        20,
        *graph_of(20, 0.1, 0.1, lying=False),
    )
    shown = io.StringIO()
    show_sizes(said, Console(width=400, file=shown))
    assert f"a secure sum of 20 devices, each with {phase.masks.degree} neighbours" in shown.getvalue()
    assert describe(config, 60).phases[0].masks.devices == 1000, "where no data is read a round is imagined"


def round_up(value: float) -> int:
    assert value == pytest.approx(round(value))
    return round(value)


def test_a_server_that_records_everything_sees_uniform_numbers(federate: Federate) -> None:
    """Each byte of a part is as likely as any other, and the same part is another each time."""
    parts = []
    for _ in range(2):
        found = federate("aggregation=secagg", *ONCE, "embedding.rank=8", nodes=10)
        sent = [unpack(m.content).arrays for m in found.grid.received]
        parts.append([arrays[records.UPDATE].tobytes()[36:] for arrays in sent if records.UPDATE in arrays])
    beside = 8 * len(UPDATE_SCALARS)  # at the end of a packet, whose tensors go by name: numbers, then scalars
    numbers = np.frombuffer(b"".join(part[:-beside] for part in parts[0] + parts[1]), np.uint8)
    counts = np.bincount(numbers, minlength=256)
    expected = len(numbers) / 256
    chi_square = float(((counts - expected) ** 2 / expected).sum())
    assert abs(chi_square - 255) < 6 * (2 * 255) ** 0.5
    assert all(first != second for first, second in zip(*parts, strict=True))
    scalars = np.frombuffer(b"".join(part[-beside:] for part in parts[0] + parts[1]), np.uint8)
    counts = np.bincount(scalars, minlength=256)
    assert counts.max() < 8 * len(scalars) / 256, "weights and counts are hidden too: most of their bytes would be 0"


# Resuming, and what is refused ----------------------------------------------------------------------------------------


class Mortal(LocalGrid):
    """Ends the process before it delivers some messages."""

    def __init__(self, deliveries: int, nodes: int) -> None:
        super().__init__(client_app, nodes)
        self._left = deliveries

    def push_messages(self, messages: Any) -> Any:
        self._left -= 1
        if self._left < 0:
            raise KeyboardInterrupt
        return super().push_messages(messages)


@pytest.mark.parametrize("deliveries", [6, 7, 8, 9, 10])
def test_wherever_it_is_killed_a_run_that_is_resumed_ends_as_if_it_had_not_been(
    tmp_path: Path, deliveries: int
) -> None:
    texts = [*FEW, "base_table.start=random", "base_table.dim=4", "strategy.rounds=3", "evaluation.every=0"]
    texts = [text for text in texts if text != "strategy.rounds=2"]
    texts += ["dataset.n_users=20", "aggregation=secagg", "simulation.nodes=4", "checkpoint_every=1"]
    texts += ["federation.fraction=0.8"]
    for name in ("whole", "killed"):
        where = [f"runs_dir={tmp_path}/{name}", f"cache_dir={tmp_path}/cache"]
        given = [*texts, *where, "run_id=r"]
        grid = Mortal(deliveries if name == "killed" else 10**6, 4)
        with suppress(KeyboardInterrupt):
            run(settle(compose(given, base=None), None), given, grid)
        if name == "killed":
            assert not (tmp_path / "killed/r/summary.json").exists()
            again = ["resume=r", *where]
            run(settle(compose(again, base=None), None), again, LocalGrid(client_app, 4))
    ends = [load_file(tmp_path / name / "r/checkpoints/round-000003.safetensors") for name in ("whole", "killed")]
    assert all(torch.equal(ends[1][name], tensor) for name, tensor in ends[0].items())


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["uplink=sparse"], "no tensors of one layout"),
        (["strategy=fedras"], "no tensors of one layout"),
        (["grouping=key"], "take grouping=one"),
        (["network=mobile"], "take network=none"),
        (["federation.repeats=1"], r"give federation\.repeats=0"),
        (["federation.max_node_share=0.5"], r"give federation\.max_node_share=1\.0"),
        (["privacy=central_gaussian"], "the server draws the noise"),
        (["privacy=distributed_gaussian", "privacy.drawn=sum"], "the server draws the noise"),
        (["privacy=local_gaussian"], "leaves its device noised by itself"),
        (["optim=fast"], r"give federation\.max_row_norm=10"),
        (["federation.max_row_norm=null"], r"give federation\.max_row_norm=10"),
        (["simulation.nodes=2"], "no graph of 2 participants"),
        (["simulation.nodes=257", "aggregation.server=lying"], "have at most 256 participants"),
        (["runtime=deployment", "dataset=table", "dataset.item_table=/i.csv"], r"give federation\.min_nodes=3"),
    ],
)
def test_what_cannot_be_added_up_in_secret_is_refused_before_anything_starts(overrides: list[str], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        compose(["aggregation=secagg", *overrides], base=Path("/somewhere"))
