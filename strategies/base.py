"""The contract of a strategy, and the loop over rounds that all strategies share.

A strategy says which phases a run has and which embedding each phase trains. The loop chooses the cohort, sends each
node the model and what it lacks, folds the replies, takes the server's step, evaluates, and tells an observer. It keeps
Flower's `Strategy` interface and overrides `start`.
"""

from __future__ import annotations

import time
from abc import abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar, cast

from annotated_types import Ge, Gt, Le
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result, Strategy
from torch import Tensor

from fedrec import registry
from fedrec.config.schema import RunConfig
from fedrec.errors import PacketError
from fedrec.item_list import item_list_packet
from fedrec.keys import simulation_secret
from fedrec.protocol import Setup, frozen_format
from fedrec.registry import MemberConfig
from fedrec.rng import derive
from fedrec.tensors import Tensors, spec_of
from fedrec.updates import DROPPED
from strategies import records
from strategies.aggregation import UpdateFold, weighted
from strategies.deployed import Deployed
from strategies.directory import Share
from strategies.item_counts import count_items
from strategies.meter import Meter
from strategies.nodes import Nodes
from strategies.observer import Observer
from strategies.ranking import TEST, VALIDATION, Ranking
from strategies.server_model import Phase, ServerModel, ServerState

__all__ = ["Deployed", "FederatedStrategy", "Observer", "Phase", "ServerState", "StrategyConfig"]


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


class FederatedStrategy(Strategy):
    """A member of the family `strategy`: its phases, and the loop over rounds."""

    config_class: ClassVar[type[StrategyConfig]]

    def __init__(
        self,
        config: RunConfig,
        setup: Setup,
        base: Tensor,
        eligible: Tensors,
        observer: Observer,
        deployed: Deployed | None = None,
    ) -> None:
        """A strategy for one run.

        Args:
            config: The whole configuration.
            setup: What every client is told.
            base: The pre-trained table [items, dim].
            eligible: The public list of items that may be recommended, as it is sent.
            observer: Is told of rounds and checkpoints.
            deployed: What only a deployment has; None in a simulation.
        """
        self.config: Any = config.strategy
        self.setup = setup
        self.plan = self.phases(config)
        self.meter = Meter([phase.name for phase in self.plan])
        self._run = config
        self._observer = observer
        self._privacy = registry.privacies.get(config.privacy.name)(config.privacy)
        backbone = registry.backbones.get(config.backbone.name)(config.backbone, setup.dim)
        self._recipe = registry.optims.get(config.optim.name)(config.optim, backbone.advice)
        self.model = ServerModel(setup, self.plan, backbone, base)
        self.test: dict[str, float] = {}
        """Metrics at test, once the last round has ended."""
        self._secret = deployed.secret if deployed else simulation_secret(setup.seed)
        self._nodes = Nodes(setup, deployed and records.wrap(item_list_packet(deployed.item_list)))
        self._eligible = records.wrap(frozen_format(spec_of(eligible)).encode(0, 0, eligible))
        self._shares: dict[int, Share] = {}
        self._ranking: Ranking | None = None
        self._bytes: dict[str, int] = {}
        self._checkpoints: deque[int] = deque([0], maxlen=config.checkpoints_kept)

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
        result = Result()
        waiting: dict[str, Any] | None = None  # the record of a round whose ranking rides on the next one's messages
        self._nodes.wait(grid, self._run.simulation.nodes, timeout)
        try:
            for round in range(1, self.config.rounds + 1):
                record = self._train(grid, round)
                if waiting is not None:
                    self._tell(result, waiting, self._ranked())
                    waiting = None
                if not self._due(round, self._run.evaluation.every):
                    self._tell(result, record, {})
                elif self._rides(round):
                    waiting = record
                    self._ranking = Ranking(self.setup, self._nodes, self.state.phase, round, [VALIDATION])
                else:
                    self._tell(result, record, self._evaluated(grid, round, record))
                if self._due(round, self._run.checkpoint_every):
                    self._checkpoint(round)
        finally:
            if waiting is not None:  # the run ends early: what is known of the round is not lost
                self._observer.on_round(waiting)
        result.arrays = ArrayRecord({name: Array(tensor.numpy()) for name, tensor in self.state.trainable.items()})
        return result

    def _train(self, grid: Grid, round: int) -> dict[str, Any]:
        """One round of training; its record, without a ranking."""
        started = time.monotonic()
        self._nodes.counts.clear()
        self._nodes.enrol(grid)
        self.meter.grow(len(self._nodes.directory), self._nodes.enrolment_bytes + records.size(self._eligible))
        self._count_items(grid)
        self.model.advance(round)
        self._offer()
        messages = self.configure_train(round, ArrayRecord(), ConfigRecord(), grid)
        _, trained = self.aggregate_train(round, self._nodes.collect(grid, messages, self.config.round_timeout))
        assert trained is not None
        if self.model.merge(round):
            self._offer()
        return {
            **self._record(round, trained),
            "merges": self.state.merges.count,
            "dropped_replies": self.dropped_replies,
            "bytes": self._bytes,
            "bytes_per_user": self.meter.per_user(),
            "seconds": time.monotonic() - started,
        }

    def _offer(self) -> None:
        """From here on a node gets what it lacks of what is frozen now."""
        self._nodes.once = {self.setup.eligible: self._eligible, **self.model.once}
        self._nodes.merges = self.state.merges

    def _count_items(self, grid: Grid) -> None:
        """Once, if the backbone wants it: how many users have each item, as they report it with noise."""
        counting = self.model.model.backbone.item_counting
        if counting is not None and self.model.counts is None:
            self._nodes.once = {self.setup.eligible: self._eligible}  # what is frozen will follow from the counts
            counts = count_items(self._nodes, grid, self.setup.n_items, counting, self.config, self.meter)
            self.model.freeze_counts(counts)

    def _rides(self, round: int) -> bool:
        """Whether the ranking after `round` can ride on the next round's messages.

        They must bring the same model, which the first round of a phase does not. And a checkpoint is of a round of
        which nothing is still to come.
        """
        return not (self.model.enters(round + 1) or self._due(round, self._run.checkpoint_every))

    def _evaluated(self, grid: Grid, round: int, record: dict[str, Any]) -> dict[str, dict[str, float]]:
        """The ranking after `round` in messages of its own, the test with the last; what it cost goes into `record`."""
        started = time.monotonic()
        splits = [VALIDATION, TEST] if round == self.config.rounds else [VALIDATION]
        messages = self.configure_evaluate(round, ArrayRecord(), ConfigRecord({"splits": splits}), grid)
        self.aggregate_evaluate(round, self._nodes.collect(grid, messages, self.config.round_timeout))
        record["dropped_replies"] = self.dropped_replies
        record["seconds"] += time.monotonic() - started
        return self._ranked()

    def _ranked(self) -> dict[str, dict[str, float]]:
        """The metrics, by split, of the ranking whose replies are all in."""
        assert self._ranking is not None
        ranking, self._ranking = self._ranking, None
        return ranking.means(self.config.max_failures)

    def _tell(self, result: Result, record: dict[str, Any], ranked: dict[str, dict[str, float]]) -> None:
        """Tell the observer of a round, with its ranking if one was due."""
        if ranked:
            record["validation"] = ranked[VALIDATION]
            record["bytes_per_user"]["evaluation"] = self.meter.evaluation
            result.evaluate_metrics_clientapp[record["round"]] = MetricRecord(dict(ranked[VALIDATION]))
            self.test = ranked.get(TEST, {})
        self._observer.on_round(record)

    def _record(self, round: int, trained: MetricRecord) -> dict[str, Any]:
        values: dict[str, Any] = dict(trained)
        dropped = {name: int(values.pop(name)) for name in DROPPED}
        return {
            "round": round,
            "rounds": self.config.rounds,
            "phase": self.model.phase_name,
            "cohort": self._cohort_size,
            **values,
            "dropped_users": {name: count for name, count in dropped.items() if count},
        }

    @property
    def dropped_replies(self) -> dict[str, int]:
        """Replies that were of no use, by reason, since the last round began."""
        return dict(self._nodes.counts)

    # Flower's interface ----------------------------------------------------------------------------------------------

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Choose the cohort; one message to each node that holds some of it. The model is the strategy's own state.

        A ranking that rides on this round is asked of every node: of those that train in the same message.
        """
        directory, phase = self._nodes.directory, self.state.phase
        users = directory.cohort(self.setup.seed, server_round, self.config.fraction)
        self._shares = directory.shares(users)
        model = self._packet(server_round)
        self._bytes = self.meter.downloaded(phase, users, records.size(model), self.model.frozen_bytes)
        packets, fields = {records.MODEL: model}, self.model.fields(server_round)
        also: list[Message] = []
        if self._ranking is not None:
            fields |= self._ranking.fields
            self._ranking.ask(self.meter, len(users), records.size(model), self.model.frozen_bytes)
            others = [node for node in directory.nodes if node not in self._shares]
            also = [self._nodes.message(node, records.EVALUATE, fields, packets) for node in others]
        return also + [
            self._nodes.message(node, records.TRAIN, fields, packets, {records.SLOTS: share.slots})
            for node, share in self._shares.items()
        ]

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Fold the replies as they come, each whole or not at all, and take the server's step on their mean.

        A reply's update and its metrics, if a ranking rides on the round, are judged apart.
        """
        trainable, phase = self.model.model.trainable, self.state.phase
        of_a_device = self.setup.update_format(trainable, users=1).size()
        fold = UpdateFold(trainable, self._cohort_size, self.config.weight_cap, self.config.max_update_norm)
        accepted = 0
        for reply in replies:
            node = self._nodes.sender(reply)
            if self._ranking is not None:
                self._ranking.take(self.meter, reply)
            if (share := self._shares.get(node)) is None:
                continue
            try:
                users = len(share.users)
                data = records.unpack(reply.content).packet(records.UPDATE)
                packet = self.setup.update_format(trainable, users).decode(data, phase=phase, round=server_round)
                fold.add(weighted(packet) if self.setup.lone(users) else packet, users)
            except PacketError as error:
                self._nodes.refuse(node, error)
                continue
            accepted += 1
            self._bytes["up"] += self.meter.uploaded(phase, share.users, of_a_device)
        mean = fold.mean()
        if mean is not None:
            taken = int(fold.scalar("users"))
            noise = derive(self._secret, "privacy", server_round)
            mean = self._privacy.protect_mean(mean, taken, noise)
            moved, optimiser = self._recipe.server_update(self.state.trainable, mean, self.state.optimiser)
            self.model.state = replace(self.state, trainable=moved, optimiser=optimiser)
        asked, most = len(self._shares), self.config.max_failures
        self._nodes.give_up_if_too_many_failed(f"round {server_round}", asked, accepted, most)
        return None, MetricRecord({**fold.summary()})

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """One message to every node: all its users are ranked, for each of the config's `splits`."""
        self._ranking = Ranking(
            self.setup, self._nodes, self.state.phase, server_round, cast(list[str], config["splits"])
        )
        model = self._packet(server_round)
        self._ranking.ask(self.meter, 0, records.size(model), self.model.frozen_bytes)
        fields = {**self.model.fields(server_round), **self._ranking.fields}
        nodes = self._nodes.directory.nodes
        return [self._nodes.message(node, records.EVALUATE, fields, {records.MODEL: model}) for node in nodes]

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """Means over users of the nodes' sums, each named `<split>/<metric>`."""
        assert self._ranking is not None
        for reply in replies:
            self._ranking.take(self.meter, reply)
        means = self._ranking.means(self.config.max_failures)
        return MetricRecord({f"{split}/{name}": x for split, found in means.items() for name, x in found.items()})

    def summary(self) -> None:
        """Nothing: the run's own report says it all."""

    # Details ---------------------------------------------------------------------------------------------------------

    @property
    def state(self) -> ServerState:
        """The global model, as it stands."""
        return self.model.state

    @property
    def _cohort_size(self) -> int:
        return sum(len(share.users) for share in self._shares.values())

    def _packet(self, round: int) -> Array:
        # Without checkpoints there is nothing to go back to, and no older private tensors need be kept.
        return self.model.packet(round, self._checkpoints[0] if self._run.checkpoint_every else round - 1)

    def _due(self, round: int, every: int) -> bool:
        return bool(round == self.config.rounds or (every and round % every == 0))

    def _checkpoint(self, round: int) -> None:
        self._observer.on_checkpoint(round, self.state, self.meter)
        self._checkpoints.append(round)
