"""`fedrec audit recovery --of sums`: what the sums of a run tell of single users' items, beyond what is popular.

Somebody has every sum that the run has released, noised or not: the server where masks and shares of noise keep it from
the parts, or whoever has all models, from which the sums follow. It knows whose updates are in which sum, the public
seed and users' keys, and of half of the audited users it knows the items as well, and learns from them how to weigh
what it sees: by logistic regression, over all items of all of these users. The other half is attacked.

What it sees of an item, for a user, is how far the sums that the user is in move the item's vector: in all, beyond the
mean of all sums, and both along where the user's own vector starts. All sums together say first of all what is
popular, which is no secret of anybody's. So the attack is compared with one that knows the popularity of items and
nothing else: what the sums tell is what they add to that.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from flwr.app import Message
from numpy.typing import NDArray
from rich.console import Console
from torch import Tensor
from typing_extensions import override

from client_app.answers.app import app as client_app
from commands.audit.audited import of_statistics, require, show
from commands.audit.curious import moves
from commands.audit.learned import Case, attacked
from commands.audit.recovery import LAST
from commands.local_grid import LocalGrid
from commands.progress import RunProgress
from exchanges.records import KEYS, SLOTS, TRAIN, unpack
from federation.server_model import ServerState
from fedrec.config.schema import RunConfig
from fedrec.core.errors import ConfigError
from fedrec.core.keys import opaque_keys, simulation_secret
from fedrec.core.tensors import Tensors
from fedrec.data import split
from fedrec.data.prepare import load
from fedrec.datasets.base import DatasetConfig
from fedrec.groupings.base import EVERYBODY
from fedrec.optim.fast import FastConfig
from fedrec.optim.server import ServerOptimiser
from fedrec.wire.protocol import Setup
from peft_embeddings.model import Model, models_of
from server_app.checkpoints import Checkpoints
from server_app.run import run

_AUDITOR_SEED = 0


class Cohorts(LocalGrid):
    """A grid of one node, on which everybody lives, that takes down who is in which sum.

    Attributes:
        setup: What the node was told.
        keys: uint64 [users], by slot.
        slots: Who trained in each round.
    """

    def __init__(self) -> None:
        super().__init__(client_app, 1)
        self.setup: Setup | None = None
        self.keys = np.zeros(0, dtype=np.uint64)
        self.slots: dict[int, NDArray[np.int64]] = {}

    @override
    def answer(self, message: Message) -> Message:
        reply = super().answer(message)
        sent = unpack(message.content)
        if "setup" in sent.fields:
            self.setup = Setup.from_json(sent.text("setup"))
        if reply.has_content() and KEYS in (answer := unpack(reply.content)).arrays:
            self.keys = answer.array(KEYS).astype(np.uint64)
        if message.metadata.message_type == TRAIN:
            self.slots[sent.integer("round")] = sent.array(SLOTS).astype(np.int64)
        return reply


def recovery_from_sums(config: RunConfig, overrides: Sequence[str], users: int, *, console: Console) -> dict[str, Any]:
    """Carry out a run and say what its sums tell of some users' items; `config` has its folders settled.

    Args:
        config: Of the run. It is ranked at its end alone, and keeps a checkpoint of each round.
        overrides: What makes the same configuration.
        users: How many are audited, drawn at random: half of them are known, half are attacked.
        console: Where progress is shown.

    Returns:
        For `history` and `last`, the items of a user's training history and its latest ten, each attack's mean AUC over
        the attacked users, and the `gain` of both over popularity alone with its 95 % interval over these users.

    Raises FedrecError for whatever the user can mend.
    """
    torch.set_num_threads(1)  # as `train`
    _require_audited(config)
    dataset = load(cast(DatasetConfig, config.dataset), lambda *_: None)
    known = np.flatnonzero(split.evaluated(dataset.interactions, of="test"))
    if not 4 <= users <= len(known):
        raise ConfigError([f"--users {users}: give from 4 to {len(known)}, who have something to train on"])
    config, overrides = _kept_every_round(config, overrides)
    grid = Cohorts()
    with RunProgress(console) as progress, progress.warnings():
        summary = run(config, overrides, grid, progress)
    chosen = np.random.default_rng(_AUDITOR_SEED).permutation(known)[:users]
    seen = _seen(config, grid, Path(summary["run"]))
    ids = dataset.interactions.user_ids
    keys = opaque_keys(simulation_secret(config.seed), (ids[user] for user in chosen)).tolist()
    slot_of = {key: slot for slot, key in enumerate(grid.keys.tolist())}
    counts = np.bincount(dataset.interactions.items, minlength=len(dataset.catalogue)).astype(np.float64)
    histories = split.histories(dataset.interactions, "train", chosen)
    cases = [
        Case(_features(seen, slot_of[key], counts), histories.of(n).astype(np.int64))
        for n, key in enumerate(keys)
        if seen.took_part(slot_of[key])
    ]
    if len(cases) < 4:
        raise ConfigError([f"{len(cases)} of {users} audited users were in any sum: give more of them, or more rounds"])
    return {
        "run": summary["run"],
        "users": len(cases),
        "sums": len(seen.sums),
        "users_a_sum": float(np.mean([len(slots) for slots in seen.slots])),
        "account": summary.get("privacy", {}).get("epsilon"),
        "history": attacked(cases, latest=False),
        "last": attacked(cases, latest=True),
        "test": summary["test"],
        "warnings": summary["warnings"],
    }


def show_sums(found: Mapping[str, Any], console: Console) -> None:
    """Print what `recovery_from_sums` has found in words."""
    lines = [
        f"{found['sums']} sums over {found['users_a_sum']:,.0f} users each; {found['users']} users audited, half of "
        "them known to the attacker"
    ]
    for name, title in (("history", "their items"), ("last", f"the last {LAST} of them")):
        figures = found[name]
        low, high = figures["interval"]
        lines.append(
            f"{title}: AUC {figures['both']:.3f} from popularity and the sums, {figures['popularity']:.3f} from "
            f"popularity alone, {figures['sums']:.3f} from the sums alone; the sums add {figures['gain']:+.4f} "
            f"({low:+.4f} to {high:+.4f}, 95 %)"
        )
    show(lines, found, console)


def _require_audited(config: RunConfig) -> None:
    problems, strategy = of_statistics(config), config.strategy
    by = getattr(config.dataset, "split", "leave_one_out")
    if not isinstance(config.optim, FastConfig) or config.optim.server.kind == "adagrad":
        problems.append(
            "optim: sums are told from the server's optimiser, which has to keep a mean of them; give optim=fast with "
            "optim.server.kind=adam, yogi or sgd"
        )
    require(
        (
            ("runtime", config.runtime, "simulation", "an audit simulates all users"),
            ("aggregation", config.aggregation.name, "plain", "the sums are the same with masks, and audited without"),
            ("grouping", config.grouping.name, "one", "the attack reads the sum over everybody"),
            ("downlink", config.downlink.name, "dense", "the attack reads each sum beside the model that it is of"),
            ("resume", config.resume, None, "an audit is a run of its own"),
            ("dataset.split", by, "leave_one_out", "the attack knows what is popular"),
            ("strategy.merge_every", getattr(strategy, "merge_every", 0), 0, "a merge forgets what the sums were"),
        ),
        problems,
    )


def _kept_every_round(config: RunConfig, overrides: Sequence[str]) -> tuple[RunConfig, list[str]]:
    """With everybody on one node, a checkpoint of each round, and no ranking but the last."""
    strategy: Any = config.strategy
    config = dataclasses.replace(
        config,
        simulation=dataclasses.replace(config.simulation, nodes=1),
        evaluation=dataclasses.replace(config.evaluation, every=0, baselines=False),
        checkpoint_every=1,
        checkpoints_kept=strategy.rounds + 1,
    )
    changes = {
        "simulation.nodes": "1",
        "evaluation.every": "0",
        "evaluation.baselines": "false",
        "checkpoint_every": "1",
        "checkpoints_kept": str(strategy.rounds + 1),
    }
    rest = [text for text in overrides if text.partition("=")[0].lstrip("+") not in changes]
    return config, [*rest, *(f"{key}={value}" for key, value in changes.items())]


class SumsSeen(NamedTuple):
    """What somebody has of a run's last phase.

    Attributes:
        sums: Of each round, how far its sum moves each item's vector, in the unit of the round's mean: [items, dim].
        slots: int64, who is in each.
        mean: Their mean [items, dim].
        starts: float32 [users, dim], where each user's own vector starts, by slot; None for a backbone that has none.
    """

    sums: list[Tensor]
    slots: list[NDArray[np.int64]]
    mean: Tensor
    starts: Tensor | None

    def took_part(self, user: int) -> list[int]:
        """The sums that the user in a slot is in."""
        return [n for n, slots in enumerate(self.slots) if user in slots]


def _seen(config: RunConfig, grid: Cohorts, folder: Path) -> SumsSeen:
    setup = grid.setup
    assert setup is not None, "a node is told the setup before anything else"
    rule = cast(FastConfig, config.optim).server
    checkpoints, models = Checkpoints(folder / "checkpoints"), models_of(setup)
    sums, slots = [], []
    before: ServerState | None = None
    for round, chosen in sorted(grid.slots.items()):
        after = checkpoints.after(round).states[EVERYBODY]
        if after.phase == len(models) - 1:
            begun = before is not None and before.phase == after.phase
            mean = stepped_on(rule, before.optimiser if before and begun else {}, after.optimiser)
            sums.append(_moved(models[-1], after, mean))
            slots.append(chosen)
        before = after
    init = models[-1].backbone.init_private(setup.seed, grid.keys)
    return SumsSeen(sums, slots, torch.stack(sums).mean(0), init.get("user"))


def stepped_on(rule: ServerOptimiser, before: Tensors, after: Tensors) -> Tensors:
    """The mean of a round, told from the optimiser's states before and after it; zeros if no step was taken.

    Of a rule that keeps a running mean, or has none to keep (`fedrec.optim.server.server_step`).
    """
    share = 1.0 if rule.kind == "sgd" else 1 - rule.beta1
    names = [name.removeprefix("first.") for name in after if name.startswith("first.")]
    if int(after.get("count", torch.zeros(()))) == int(before.get("count", torch.zeros(()))):
        return {name: torch.zeros_like(after[f"first.{name}"]) for name in names}
    earlier = {name: before.get(f"first.{name}", torch.zeros_like(after[f"first.{name}"])) for name in names}
    return {name: (rule.beta1 * earlier[name] - after[f"first.{name}"]) / share for name in names}


def _moved(model: Model, after: ServerState, mean: Mapping[str, Tensor]) -> Tensor:
    """How far a mean moves each item's vector [items, dim] from the model after it: close to that before it."""
    return moves(model, after.trainable, dict(mean), after.frozen)


def _features(seen: SumsSeen, user: int, counts: NDArray[np.float64]) -> NDArray[np.float64]:
    """What is known of each item for the user in a slot, who is in some sum: float64 [items, 7].

    Popularity has three columns, its powers, or what sums say of it would be taken for what they add to it. Each column
    has the mean 0 and the variance 1 over the items.
    """
    mine = seen.took_part(user)
    together = torch.stack([seen.sums[n] for n in mine]).sum(0)
    beyond = together - len(mine) * seen.mean
    popularity = np.log1p(counts) / np.log1p(counts).max()
    columns = [popularity, popularity**2, popularity**3]
    for moved in (together, beyond):
        columns.append(moved.norm(dim=1).double().numpy())
        start = torch.zeros(moved.shape[1]) if seen.starts is None else seen.starts[user]
        columns.append((moved @ start).double().numpy())
    table = np.stack(columns, axis=1)
    spread = table.std(0)
    standard: NDArray[np.float64] = (table - table.mean(0)) / np.where(spread > 1e-12 * np.abs(table).max(0), spread, 1)
    return standard
