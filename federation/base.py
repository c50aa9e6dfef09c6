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
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar, cast

from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result, Strategy
from torch import Tensor

from exchanges import records
from federation.checkpoint import Checkpoint
from federation.contract import Deployed, Observer, StrategyConfig
from federation.expansion import Exchanges
from federation.item_counts import count_items
from federation.meter import Meter
from federation.nodes import Nodes
from federation.ranking import TEST, VALIDATION, Ranking
from federation.repeats import repeated
from federation.server_model import Phase, ServerModel, ServerState
from federation.training import Training
from fedrec.config.schema import RunConfig
from fedrec.core import registry
from fedrec.core.keys import simulation_secret
from fedrec.core.rng import derive
from fedrec.core.tensors import Tensors, spec_of
from fedrec.stages.base import Round
from fedrec.stages.draws import Draws
from fedrec.wire.item_list import item_list_packet
from fedrec.wire.protocol import Setup, counts_format, frozen_format

__all__ = ["Deployed", "FederatedStrategy", "Observer", "Phase", "ServerState", "StrategyConfig"]


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
        strategy: Any = config.strategy
        patience = strategy.patience(simulated=setup.simulation is not None)
        self.config: Any = replace(strategy, round_timeout=patience)
        self.setup = setup
        self.plan = self.phases(config)
        self.meter = Meter([phase.name for phase in self.plan])
        self._run = config
        self._observer = observer
        self._cohorts = registry.cohorts.get(config.cohort.name)(config.cohort)
        backbone = registry.backbones.get(config.backbone.name)(config.backbone, setup.dim)
        self._recipe = registry.optims.get(config.optim.name)(config.optim, backbone.advice)
        self.model = ServerModel(setup, self.plan, backbone, base)
        self.ended: dict[str, Any] = {}
        """Once the last round has ended: its metrics by split, and the replies of it that were of no use."""
        self._secret = deployed.secret if deployed else simulation_secret(setup.seed)
        self._deployed = deployed is not None
        item_list = deployed and records.wrap(item_list_packet(deployed.item_list))
        self._nodes = Nodes(setup, item_list, strategy.silent_rounds)
        self._exchanges = Exchanges(setup, self._nodes, backbone.expansion, self.config, self.meter)
        self._eligible = records.wrap(frozen_format(spec_of(eligible)).encode(0, 0, eligible))
        self._training: Training | None = None
        self._ranking: Ranking | None = None
        self._bytes: dict[str, int] = {}
        self._checkpoints: deque[int] = deque([0], maxlen=config.checkpoints_kept)
        self._after = 0
        self._unranked: dict[str, Any] | None = None  # of a resumed run: the record of its last round, yet to be ranked

    @classmethod
    @abstractmethod
    def phases(cls, config: RunConfig) -> Sequence[Phase]:
        """The phases of a run, in order; their rounds add up to `rounds`."""

    @classmethod
    def problems(cls, config: RunConfig) -> list[str]:
        """What is wrong with a configuration as a whole, one line each; asked before anything starts."""
        return []

    def resume(self, checkpoint: Checkpoint | None, kept: Sequence[int], resumes: Sequence[int]) -> None:
        """Go on from a checkpoint, or from the beginning if there is none; to be called before `start`.

        Args:
            checkpoint: The one to go on from.
            kept: Rounds of the checkpoints that are kept, this one the last.
            resumes: The round after which the run went on each time that it was resumed, this time included.
        """
        self._nodes.roster.resumes = tuple(resumes)
        if checkpoint is not None:
            self._after = checkpoint.round
            self._checkpoints.extend(kept)
            self._nodes.directory.restore(checkpoint.users)
            self.meter.restore(checkpoint.meter)
            self.model.restore(checkpoint.state, checkpoint.counts, checkpoint.reports)
            self._unranked = None if checkpoint.record is None else dict(checkpoint.record)

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
        if (self._after < self.config.rounds or self._unranked) and self.setup.simulation is not None:
            self._nodes.roster.wait(grid, self._run.simulation.nodes, timeout)
        if self._unranked is not None:
            self._rank_what_was_trained(grid, result, self._unranked)
        try:
            for round in range(self._after + 1, self.config.rounds + 1):
                record = self._train(grid, round)
                if waiting is not None:
                    self._tell(result, waiting, self._ranked())
                    waiting = None
                if not self._due(round, self._run.evaluation.every * self.setup.validation):
                    self._tell(result, record, {})
                elif self._rides(round):
                    waiting = record
                    self._ranking = Ranking(self.setup, self._nodes, self.state.phase, round, [VALIDATION])
                else:
                    if round == self.config.rounds:  # a model that is trained to the end outlives what comes after it
                        self._checkpoint(round, record)
                    self._tell(result, record, self._evaluated(grid, round, record))
                if round < self.config.rounds and self._due(round, self._run.checkpoint_every):
                    self._checkpoint(round)
        finally:
            if waiting is not None:  # the run ends early: what is known of the round is not lost
                self._observer.on_round(waiting)
        result.arrays = ArrayRecord({name: Array(tensor.numpy()) for name, tensor in self.state.trainable.items()})
        return result

    def _rank_what_was_trained(self, grid: Grid, result: Result, record: dict[str, Any]) -> None:
        """Rank the last round of a resumed run, which went no further than to the checkpoint before its ranking."""
        self._gather(grid)
        self._offer()
        self._nodes.counts.update(record["dropped_replies"])
        self._nodes.losses.wasted.update(record["wasted_bytes"])
        self._tell(result, record, self._evaluated(grid, self._after, record))

    def _train(self, grid: Grid, round: int) -> dict[str, Any]:
        """One round of training, repeated if too few took part; its record, without a ranking."""
        started = time.monotonic()
        self._nodes.losses.clear()
        self._bytes = dict.fromkeys(self._bytes, 0)
        self._gather(grid)
        self._repeated("round", grid, partial(self._try_to_train, grid, round))
        assert self._training is not None
        if self.model.merge(round):
            self._offer()
        moved = self._exchanges.after(grid, self.state.phase, round, self._kept(round))
        self._bytes = {name: count + moved.get(name, 0) for name, count in self._bytes.items()}
        return {
            "round": round,
            "rounds": self.config.rounds,
            "phase": self.model.phase_name,
            **self._training.record(),
            "merges": self.state.merges.count,
            **self._losses,
            "bytes": self._bytes,
            "bytes_per_user": self.meter.per_user(),
            "seconds": time.monotonic() - started,
        }

    def _try_to_train(self, grid: Grid, round: int) -> None:
        self._count_items(grid)
        self.model.advance(round)
        self._offer()
        messages = self.configure_train(round, ArrayRecord(), ConfigRecord(), grid)
        enough = cast(Training, self._training).enough
        self.aggregate_train(round, self._nodes.collect(grid, messages, self.config.round_timeout, enough))

    def _repeated(self, what: str, grid: Grid, work: Callable[[], None]) -> None:
        repeated(what, self.config.repeats, self._nodes.counts, work, partial(self._gather, grid))

    def _gather(self, grid: Grid) -> None:
        self._nodes.roster.gather(grid, self.config.min_nodes, self.config.node_timeout)
        joining = self._nodes.roster.enrolment_bytes + records.size(self._eligible)
        self.meter.grow(len(self._nodes.directory), joining)

    def _offer(self) -> None:
        """From here on a node gets what it lacks of what is frozen now."""
        self._nodes.once = {self.setup.eligible: self._eligible, **self.model.once}
        self._nodes.merges = self.state.merges

    def _count_items(self, grid: Grid) -> None:
        """Once, if the backbone wants it: how many users have each item, as they report it with noise."""
        counting = self.model.model.backbone.item_counting
        if counting is not None and self.model.counts is None:
            self._nodes.once = {self.setup.eligible: self._eligible}  # what is frozen will follow from the counts
            self._nodes.largest_reply = counts_format(self.setup.n_items).size() + records.SLACK
            counts = count_items(self._nodes, grid, self.setup.n_items, counting, self.config, self.meter)
            self.model.freeze_counts(counts)

    def _rides(self, round: int) -> bool:
        """Whether the ranking after `round` can ride on the next round's messages.

        They must bring the same model, which the first round of a phase does not. And a checkpoint is of a round of
        which nothing is still to come.
        """
        early = bool(self.config.over_sampling)  # that round may end before everybody has answered
        return not (early or self.model.enters(round + 1) or self._due(round, self._run.checkpoint_every))

    def _evaluated(self, grid: Grid, round: int, record: dict[str, Any]) -> dict[str, dict[str, float]]:
        """The ranking after `round` in messages of its own, the test with the last; what it cost goes into `record`."""
        started = time.monotonic()
        splits = [VALIDATION] * self.setup.validation + [TEST] * (round == self.config.rounds)
        self._repeated("ranking", grid, partial(self._try_to_rank, grid, round, splits))
        record |= self._losses
        record["seconds"] += time.monotonic() - started
        return self._ranked()

    def _try_to_rank(self, grid: Grid, round: int, splits: list[str]) -> None:
        messages = self.configure_evaluate(round, ArrayRecord(), ConfigRecord({"splits": splits}), grid)
        self.aggregate_evaluate(round, self._nodes.collect(grid, messages, self.config.round_timeout))

    def _ranked(self) -> dict[str, dict[str, float]]:
        """The metrics, by split, of the ranking whose replies are all in."""
        assert self._ranking is not None
        ranking, self._ranking = self._ranking, None
        return ranking.means(self.config.max_failures)

    def _tell(self, result: Result, record: dict[str, Any], ranked: dict[str, dict[str, float]]) -> None:
        """Tell the observer of a round, with its ranking if one was due."""
        if ranked:
            record["bytes_per_user"]["evaluation"] = self.meter.evaluation
            if VALIDATION in ranked:
                record["validation"] = ranked[VALIDATION]
                result.evaluate_metrics_clientapp[record["round"]] = MetricRecord(dict(ranked[VALIDATION]))
            self.ended = {**ranked, **self._losses} if TEST in ranked else {}
        self._observer.on_round(record)

    @property
    def _losses(self) -> dict[str, dict[str, int]]:
        """Replies and bytes of no use, by reason, since the last round began; no user is charged with them."""
        return self._nodes.losses.record()

    # Flower's interface ----------------------------------------------------------------------------------------------

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Choose the cohort; one message to each node that holds some of it. The model is the strategy's own state.

        A ranking that rides on this round is asked of every node: of those that train in the same message.
        """
        trainable, phase = self.model.model.trainable, self.state.phase
        # A deployment that was resumed draws anew: the same users again would be another sampling.
        secret = derive(self._secret, "cohort", len(self._nodes.roster.resumes) * self._deployed)
        self._training = training = Training(
            self.setup, self._nodes, self.config, self._cohorts, secret, trainable, phase, server_round
        )
        model, users = self.model.packet(server_round, self._kept(server_round)), training.users
        moved = self.meter.downloaded(phase, users, records.size(model), self.model.frozen_bytes)
        self._bytes = {name: self._bytes.get(name, 0) + count for name, count in moved.items()}
        self._nodes.largest_reply = self.setup.update_format(trainable, 2).size() + records.SLACK
        packets, fields = {records.MODEL: model}, self.model.fields(server_round)
        also: list[Message] = []
        if self._ranking is not None:
            fields |= self._ranking.fields
            self._ranking.ask(self.meter, len(users), records.size(model), self.model.frozen_bytes)
            others = [node for node in self._nodes.directory.nodes if node not in training.shares]
            also = [self._nodes.message(node, records.EVALUATE, fields, packets) for node in others]
        return also + [
            self._nodes.message(node, records.TRAIN, fields, packets, {records.SLOTS: share.slots})
            for node, share in training.shares.items()
        ]

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Fold the replies as they come, each whole or not at all, and take the server's step on their mean.

        A reply's update and its metrics, if a ranking rides on the round, are judged apart. Raises RoundError, with the
        model as it was, if too few updates, or too few nodes' metrics, are of use.
        """
        training = self._training
        assert training is not None
        for reply in replies:
            if self._ranking is not None:
                self._ranking.take(self.meter, reply)
            self._bytes["up"] += training.take(self.meter, reply)
        training.require_enough()
        if self._ranking is not None:
            self._ranking.require_enough(self.config.max_failures)
        if releases := self.setup.stages.events(server_round):
            self._observer.on_release(server_round, releases)
        draws = Draws(derive(self._secret, "privacy", server_round), fresh=self._deployed)
        about = Round(server_round, self.config.fraction, draws)
        if (mean := self.setup.stages.on_sum(training.fold.sum(), about).mean()) is not None:
            moved, optimiser = self._recipe.server_update(self.state.trainable, mean, self.state.optimiser)
            self.model.state = replace(self.state, trainable=moved, optimiser=optimiser)
        return None, None

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """One message to every node: all its users are ranked, for each of the config's `splits`."""
        splits = cast(list[str], config["splits"])
        self._ranking = Ranking(self.setup, self._nodes, self.state.phase, server_round, splits)
        model = self.model.packet(server_round, self._kept(server_round))
        self._ranking.ask(self.meter, 0, records.size(model), self.model.frozen_bytes)
        fields = {**self.model.fields(server_round), **self._ranking.fields}
        packets = {records.MODEL: model}
        return [self._nodes.message(node, records.EVALUATE, fields, packets) for node in self._nodes.directory.nodes]

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """Means over users of the nodes' sums, each named `<split>/<metric>`."""
        assert self._ranking is not None
        for reply in replies:
            self._ranking.take(self.meter, reply)
        means = self._ranking.means(self.config.max_failures).items()
        return MetricRecord({f"{split}/{name}": x for split, found in means for name, x in found.items()})

    def summary(self) -> None:
        """Nothing: the run's own report says it all."""

    # Details ---------------------------------------------------------------------------------------------------------

    @property
    def state(self) -> ServerState:
        """The global model, as it stands."""
        return self.model.state

    def _kept(self, round: int) -> int:
        # Without checkpoints there is nothing to go back to, and no older private tensors need be kept.
        return self._checkpoints[0] if self._run.checkpoint_every else round - 1

    def _due(self, round: int, every: int) -> bool:
        return bool(round == self.config.rounds or (every and round % every == 0))

    def _checkpoint(self, round: int, record: dict[str, Any] | None = None) -> None:
        """Have the run written down as it is after `round`; `record`: that of the round, if it is yet to be ranked."""
        users, meter, model = self._nodes.directory.keys.copy(), self.meter.state(), self.model
        made = Checkpoint(round, self.state, meter, users, model.counts, model.reports, record)
        self._observer.on_checkpoint(made)
        self._checkpoints.append(round)
