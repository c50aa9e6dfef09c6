"""The contract of a strategy, and the loop over rounds that all strategies share.

A strategy says which phases a run has and which embedding each phase trains. The loop chooses the cohort, sends each
node the model and what it lacks, folds the replies, takes the server's step, evaluates, and tells an observer. It keeps
Flower's `Strategy` interface and overrides `start`.
"""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar, Protocol

import torch
from annotated_types import Ge, Gt, Le
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result, Strategy
from torch import Tensor

from fedrec import registry
from fedrec.config.schema import RunConfig
from fedrec.errors import FederationError, PacketError
from fedrec.keys import simulation_secret
from fedrec.protocol import Setup, frozen_format
from fedrec.registry import MemberConfig
from fedrec.rng import derive, generator
from fedrec.tensors import Tensors, content_digest, spec_of
from fedrec.updates import DROPPED
from peft_embeddings.base import ItemEmbedding
from peft_embeddings.model import Model
from strategies import records
from strategies.aggregation import UpdateFold, check_sums
from strategies.directory import Share
from strategies.item_counts import count_items
from strategies.meter import Meter
from strategies.nodes import Nodes


@dataclass(frozen=True)
class StrategyConfig(MemberConfig):
    """What every strategy's configuration has.

    Attributes:
        rounds: Rounds of the whole run.
        fraction: Share of the users who train in a round.
        weight_cap: A user's weight in the average is the number of its training items, at most this.
        max_update_norm: A user's delta of a larger norm is dropped (and counted).
        max_failures: Share of the asked nodes that may fail in a round before the run is given up.
        round_timeout: Seconds after which a round goes on without those that have not answered.
    """

    rounds: Annotated[int, Ge(1)]
    fraction: Annotated[float, Gt(0), Le(1)]
    weight_cap: Annotated[int, Ge(1), Le(1_000_000)]
    max_update_norm: Annotated[float, Gt(0), Le(1e6)]
    max_failures: Annotated[float, Ge(0), Le(1)]
    round_timeout: Annotated[float, Gt(0)]


@dataclass(frozen=True)
class Phase:
    """Consecutive rounds in which the same tensors are trained."""

    name: str
    rounds: int
    embedding: MemberConfig


@dataclass
class ServerState:
    """The global model between two rounds.

    Attributes:
        phase: Number of the phase in the plan.
        trainable: What is trained and sent.
        frozen: What was sent once.
        frozen_digest: Names the content of `frozen`; empty if nothing is frozen.
        optimiser: The server optimiser's own tensors.
    """

    phase: int
    trainable: Tensors
    frozen: Tensors
    frozen_digest: str
    optimiser: Tensors


_ITEMS_AT_ONCE = 65_536


class Observer(Protocol):
    """Is told what happens; writes it down or shows it."""

    def on_round(self, record: dict[str, Any]) -> None:
        """A round has ended; `record` is its metrics, one JSON object."""

    def on_checkpoint(self, round: int, state: ServerState, meter: Meter) -> None:
        """The global model after `round` is to be kept."""


class FederatedStrategy(Strategy):
    """A member of the family `strategy`: its phases, and the loop over rounds."""

    config_class: ClassVar[type[StrategyConfig]]

    def __init__(self, config: RunConfig, setup: Setup, base: Tensor, eligible: Tensors, observer: Observer) -> None:
        """A strategy for one run.

        Args:
            config: The whole configuration.
            setup: What every client is told.
            base: The pre-trained table [items, dim].
            eligible: The public list of items that may be recommended, as it is sent.
            observer: Is told of rounds and checkpoints.
        """
        self.config: Any = config.strategy
        self.setup = setup
        self.plan = self.phases(config)
        self.meter = Meter([phase.name for phase in self.plan])
        self._run = config
        self._observer = observer
        self._recipe = registry.optims.get(config.optim.name)(config.optim)
        self._privacy = registry.privacies.get(config.privacy.name)(config.privacy)
        self._backbone = registry.backbones.get(config.backbone.name)(config.backbone, setup.dim)
        self._models = [Model(self._embedding(phase), self._backbone) for phase in self.plan]
        self._nodes = Nodes(setup)
        self._eligible = frozen_format(spec_of(eligible)).encode(0, 0, eligible)
        self._counts: Tensor | None = None
        self._shares: dict[int, Share] = {}
        self._asked_to_rank = 0
        self._bytes: dict[str, int] = {}
        self._checkpoint_round = 0
        shared = self._backbone.init_shared(generator(setup.seed, "shared"))
        self._enter(0, base, shared)

    @classmethod
    @abstractmethod
    def phases(cls, config: RunConfig) -> Sequence[Phase]:
        """The phases of a run, in order; their rounds add up to `rounds`."""

    @classmethod
    def problems(cls, config: RunConfig) -> list[str]:
        """What is wrong with a configuration as a whole, one line each; asked before anything starts."""
        return []

    # The loop ------------------------------------------------------------------------------------------------------

    def start(
        self,
        grid: Grid,
        initial_arrays: ArrayRecord | None = None,
        num_rounds: int = 0,
        timeout: float = 60.0,
        train_config: ConfigRecord | None = None,
        evaluate_config: ConfigRecord | None = None,
        evaluate_fn: Callable[[int, ArrayRecord], MetricRecord | None] | None = None,
    ) -> Result:
        """Run all rounds of the plan; model, rounds and deadlines come from the configuration, not from here."""
        result, arrays, config = Result(), ArrayRecord(), ConfigRecord()
        self._nodes.wait(grid, self._run.simulation.nodes, timeout)
        for round in range(1, self.config.rounds + 1):
            started = time.monotonic()
            self._nodes.counts.clear()
            self._nodes.enrol(grid)
            self.meter.grow(len(self._nodes.directory), self._nodes.enrolment_bytes + len(self._eligible))
            self._count_items(grid)
            self._advance(round)
            messages = self.configure_train(round, arrays, config, grid)
            _, trained = self.aggregate_train(round, self._nodes.collect(grid, messages, self.config.round_timeout))
            assert trained is not None
            record = self._record(round, trained)
            if self._due(round, self._run.evaluation.every):
                record["validation"] = self.evaluate(grid, round, "validation")
                result.evaluate_metrics_clientapp[round] = MetricRecord(record["validation"])
            if self._due(round, self._run.checkpoint_every):
                self._checkpoint(round)
            record["dropped_replies"] = self.dropped_replies
            record["bytes"] = self._bytes
            record["bytes_per_user"] = self.meter.per_user()
            record["seconds"] = time.monotonic() - started
            self._observer.on_round(record)
        result.arrays = ArrayRecord({name: Array(tensor.numpy()) for name, tensor in self.state.trainable.items()})
        return result

    def _record(self, round: int, trained: MetricRecord) -> dict[str, Any]:
        values: dict[str, Any] = dict(trained)
        dropped = {name: int(values.pop(name)) for name in DROPPED}
        return {
            "round": round,
            "rounds": self.config.rounds,
            "phase": self.plan[self.state.phase].name,
            "cohort": self._cohort_size,
            **values,
            "dropped_users": {name: count for name, count in dropped.items() if count},
        }

    @property
    def dropped_replies(self) -> dict[str, int]:
        """Replies that were of no use, by reason, since the last round began."""
        return dict(self._nodes.counts)

    def evaluate(self, grid: Grid, round: int, split: str) -> dict[str, float]:
        """Rank every user's held-out item of `split` (validation or test) with the model after `round`."""
        messages = self.configure_evaluate(round, ArrayRecord(), ConfigRecord({"split": split}), grid)
        metrics = self.aggregate_evaluate(round, self._nodes.collect(grid, messages, self.config.round_timeout))
        if metrics is None:
            raise FederationError(
                f"no user could be ranked after round {round}: none has three interactions or more, or the model has "
                "diverged (then lower optim.lr)"
            )
        return {name: value for name, value in metrics.items() if isinstance(value, int | float)}

    def _advance(self, round: int) -> None:
        """Enter the phase to which `round` belongs, if it is the first of it: its base is what was trained so far."""
        if round == 1 + sum(phase.rounds for phase in self.plan[: self.state.phase + 1]):
            model, state = self._models[self.state.phase], self.state
            parts = torch.split(torch.arange(self.setup.n_items), _ITEMS_AT_ONCE)
            base = torch.cat([model.item_vectors(state.trainable, state.frozen, part) for part in parts])
            self._enter(state.phase + 1, base, model.shared(state.trainable))

    def _enter(self, phase: int, base: Tensor, shared: Tensors) -> None:
        rng = generator(self.setup.seed, "embedding", self.plan[phase].name)
        trainable, frozen = self._models[phase].init(base, shared, rng, self._counts)
        self._freeze(ServerState(phase, trainable, frozen, "", {}))

    def _freeze(self, state: ServerState) -> None:
        digest = content_digest(state.frozen) if state.frozen else ""
        self.state = replace(state, frozen_digest=digest)
        self._nodes.once = {self.setup.eligible: self._eligible}
        if digest:
            self._nodes.once[digest] = frozen_format(spec_of(state.frozen)).encode(state.phase, 0, state.frozen)

    def _count_items(self, grid: Grid) -> None:
        """Once, if the backbone wants it: how many users have each item, as they report it with noise."""
        counting = self._backbone.item_counting
        if counting is not None and self._counts is None:
            self._nodes.once = {self.setup.eligible: self._eligible}  # what is frozen will follow from the counts
            self._counts = count_items(self._nodes, grid, self.setup.n_items, counting, self.config, self.meter)
            frozen = self._models[self.state.phase].backbone_frozen(self._counts)
            self._freeze(replace(self.state, frozen=self.state.frozen | frozen))

    # Flower's interface ----------------------------------------------------------------------------------------------

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Choose the cohort; one message to each node that holds some of it. The model is the strategy's own state."""
        directory, phase = self._nodes.directory, self.state.phase
        users = directory.cohort(self.setup.seed, server_round, self.config.fraction)
        self._shares = directory.shares(users)
        packet = self._model_packet(server_round)
        self._bytes = self.meter.downloaded(phase, users, len(packet), self._frozen_bytes())
        fields = self._fields(server_round)
        return [
            self._nodes.message(node, records.TRAIN, fields, {records.MODEL: packet}, {records.SLOTS: share.slots})
            for node, share in self._shares.items()
        ]

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Fold the replies as they come, each whole or not at all, and take the server's step on their mean."""
        model, phase = self._models[self.state.phase], self.state.phase
        fmt = self.setup.update_format(model.trainable)
        fold = UpdateFold(model.trainable, self._cohort_size, self.config.weight_cap, self.config.max_update_norm)
        accepted = 0
        for reply in replies:
            share = self._shares[self._nodes.sender(reply)]
            try:
                packet = records.unpack(reply.content).packet(records.UPDATE)
                fold.add(fmt.decode(packet, phase=phase, round=server_round), len(share.users))
            except PacketError as error:
                self._nodes.refuse(self._nodes.sender(reply), error)
                continue
            accepted += 1
            self._bytes["up"] += self.meter.uploaded(phase, share.users, len(packet))
        mean = fold.mean()
        if mean is not None:
            noise = derive(simulation_secret(self.setup.seed), "privacy", server_round)
            mean = self._privacy.protect_mean(mean, int(fold.scalar("users")), noise)
            trainable, optimiser = self._recipe.server_update(self.state.trainable, mean, self.state.optimiser)
            self.state = replace(self.state, trainable=trainable, optimiser=optimiser)
        self._nodes.give_up_if_too_many_failed(server_round, len(self._shares), accepted, self.config.max_failures)
        return None, MetricRecord({**fold.summary()})

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """One message to every node: all its users are ranked."""
        packet = self._model_packet(server_round)
        fields = {**self._fields(server_round), "split": str(config["split"])}
        nodes = self._nodes.directory.nodes
        self._asked_to_rank = len(nodes)
        return [self._nodes.message(node, records.EVALUATE, fields, {records.MODEL: packet}) for node in nodes]

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """Means over users of the nodes' sums; None if nobody was evaluated."""
        fmt, names = self.setup.metrics_format(), self.setup.metric_names()
        sums: list[tuple[float, ...]] = []
        for reply in replies:
            try:
                packet = records.unpack(reply.content).packet(records.METRICS)
                scalars = fmt.decode(packet, phase=self.state.phase, round=server_round).scalars
                sums.append(check_sums(scalars, self._nodes.directory.users_of(self._nodes.sender(reply))))
            except PacketError as error:
                self._nodes.refuse(self._nodes.sender(reply), error)
        self._nodes.give_up_if_too_many_failed(server_round, self._asked_to_rank, len(sums), self.config.max_failures)
        # Sorted before they are added, so that the sum does not depend on which reply came first.
        users, cold, diverged, *totals = map(sum, zip(*sorted(sums), strict=True)) if sums else (0.0, 0.0, 0.0)
        if not users:
            return None
        model = self.setup.model_format(self._models[self.state.phase].trainable)
        self.meter.evaluated(self.state.phase, int(users), model.size(), self._frozen_bytes(), fmt.size())
        means = {name: total / users for name, total in zip(names, totals, strict=True)}
        return MetricRecord({**means, "users": int(users), "cold_users": int(cold), "diverged_users": int(diverged)})

    def summary(self) -> None:
        """Nothing: the run's own report says it all."""

    def _embedding(self, phase: Phase) -> ItemEmbedding:
        member = registry.embeddings.get(phase.embedding.name)
        made: ItemEmbedding = member(phase.embedding, self.setup.n_items, self.setup.dim)
        return made

    @property
    def _cohort_size(self) -> int:
        return sum(len(share.users) for share in self._shares.values())

    def _model_packet(self, round: int) -> bytes:
        fmt = self.setup.model_format(self._models[self.state.phase].trainable)
        seed = derive(self.setup.seed, "codec", round)
        # Without checkpoints there is nothing to go back to, and no older private tensors need be kept.
        kept = self._checkpoint_round if self._run.checkpoint_every else round - 1
        return fmt.encode(self.state.phase, round, self.state.trainable, [float(kept)], seed)

    def _fields(self, round: int) -> dict[str, records.Field]:
        return {"phase": self.state.phase, "round": round, "frozen": self.state.frozen_digest}

    def _frozen_bytes(self) -> int:
        return len(self._nodes.once.get(self.state.frozen_digest, b""))

    def _due(self, round: int, every: int) -> bool:
        return bool(round == self.config.rounds or (every and round % every == 0))

    def _checkpoint(self, round: int) -> None:
        self._observer.on_checkpoint(round, self.state, self.meter)
        self._checkpoint_round = round
