"""The contract of a strategy, and the loop over rounds that all strategies share.

A strategy says which phases a run has and which embedding each phase trains. The loop lets the conversation carry the
round's exchanges, takes the server's step, evaluates, and tells an observer.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, cast

from flwr.serverapp import Grid
from torch import Tensor

from exchanges import records
from exchanges.declaration import Regular
from federation.best_round import BestRound, RoundChoice
from federation.checkpoint import Checkpoint
from federation.contract import Deployed, Given, Observer, StrategyConfig
from federation.conversation import Conversation
from federation.directory import Directory
from federation.group_models import GroupModels
from federation.item_counts import Counting
from federation.kept_checkpoints import KeptCheckpoints
from federation.kinds import is_split, ranking_of, training_of
from federation.meter import Meter
from federation.plan import counted, plan_of
from federation.ranking import TEST, VALIDATION, Ranking, RankingOrder
from federation.rival import Rival
from federation.server_model import Phase, ServerModel, ServerState
from federation.training import Training, TrainingOrder
from federation.versions import Frozen, Merges
from fedrec.config.schema import RunConfig
from fedrec.core import registry
from fedrec.core.keys import simulation_secret
from fedrec.core.rng import derive
from fedrec.core.tensors import Tensors
from fedrec.networks.simulated import SimulatedNetwork
from fedrec.stages.base import Round
from fedrec.stages.draws import Draws
from fedrec.wire.item_labels import labels_packet
from fedrec.wire.item_list import item_list_packet
from fedrec.wire.lead import Lead
from fedrec.wire.protocol import Setup

__all__ = ["Deployed", "FederatedStrategy", "Given", "Observer", "Phase", "ServerState", "StrategyConfig"]

_CONNECTING = 60.0
"""Seconds in which the nodes of a simulation are there."""


class FederatedStrategy(ABC):
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
        labels: Tensors | None = None,
        texts: Tensors | None = None,
    ) -> None:
        """A strategy for one run.

        Args:
            config: The whole configuration.
            setup: What every client is told.
            base: The pre-trained table [items, dim].
            eligible: The public list of items that may be recommended, as it is sent.
            observer: Is told of rounds and checkpoints.
            deployed: What only a deployment has; None in a simulation.
            labels: The public labels of items, as they are sent; None where users are not grouped by them.
            texts: What the backbone makes of the items' texts; None for one that makes nothing.
        """
        self.config: Any = config.strategy
        self.setup = setup
        self.plan = plan_of(config)
        self.meter = Meter([phase.name for phase in self.plan])
        self.directory = Directory()
        self.rules = config.federation
        self._run = config
        self._observer = observer
        self._cohorts = registry.cohorts.get(config.cohort.name)(config.cohort)
        self._recipe = setup.recipe_of_run
        self.models = GroupModels(setup.groups, lambda: ServerModel(setup, self.plan, base, eligible, texts))
        self.ended: dict[str, Any] = {}
        """Once the run has ended: the metrics of the tested model by split, and the replies that were of no use."""
        self.rival: Rival | None = None
        """The baseline that a simulation's test is compared with; to be set before `start`."""
        self.lead: Lead | None = None  # how far the tested model is ahead of it, in the end
        # Who accounts for what updates give away has charged no metrics: then they choose nothing.
        chooses = setup.validation and not setup.stages.events(1)
        self.choice = RoundChoice(chooses, cast(StrategyConfig, config.strategy).patience)
        """The round whose models are tested, and are for use."""
        self._secret = deployed.secret if deployed else simulation_secret(setup.seed)
        self._deployed = deployed is not None
        self._item_list = deployed and records.wrap(item_list_packet(deployed.item_list))
        self._labels = None if labels is None else records.wrap(labels_packet(labels))
        self._resumes: Sequence[int] = ()
        self._checkpoints = KeptCheckpoints(config.checkpoints_kept)
        self.after = 0  # the last round that was trained
        self.pause: int | None = None
        """The round after which the run stops, to be resumed; to be set before `start`."""
        self.clock = 0.0  # simulated seconds since the start
        self._unranked: dict[str, Any] | None = None  # of a resumed run: the record of its last round, yet to be ranked

    @classmethod
    @abstractmethod
    def phases(cls, config: RunConfig) -> Sequence[Phase]:
        """The phases of a run, in order; their rounds add up to `rounds`."""

    @classmethod
    def problems(cls, config: RunConfig) -> list[str]:
        """What is wrong with a configuration as a whole, one line each; asked before anything starts."""
        return []

    @classmethod
    def regular(cls, config: RunConfig, setup: Setup) -> Sequence[Regular]:
        """What users move in exchanges beside training and ranking; `fedrec describe` and the totals have it.

        By default there are none. A strategy with exchanges of its own names them here, and carries them in `within`.
        """
        return []

    def resume(self, checkpoint: Checkpoint | None, kept: Sequence[int], resumes: Sequence[int]) -> None:
        """Go on from a checkpoint, or from the beginning if there is none; to be called before `start`.

        Args:
            checkpoint: The one to go on from.
            kept: What each checkpoint that is kept needs (`Checkpoint.needs`), this one the last.
            resumes: The round after which the run went on each time that it was resumed, this time included.
        """
        self._resumes = resumes
        if checkpoint is not None:
            self.after = checkpoint.round
            self.clock = checkpoint.clock
            self._checkpoints.restore(kept, checkpoint.round)
            self.directory.restore(checkpoint.users, checkpoint.groups)
            self.meter.restore(checkpoint.meter)
            self.models.restore(checkpoint.states, checkpoint.counts, checkpoint.reports)
            self.choice.best = checkpoint.best
            self._unranked = None if checkpoint.record is None else dict(checkpoint.record)

    @property
    def timed(self) -> bool:
        """Whether time is simulated."""
        return isinstance(self.setup.network_of_run, SimulatedNetwork)

    # The loop ------------------------------------------------------------------------------------------------------

    def start(self, grid: Grid) -> None:
        """Run the plan, or as much of it as `patience` lets; then test the best round's model."""
        talk = self._conversation(grid)
        if self._unranked is not None:
            self._rank_what_was_trained(talk, self._unranked)
        waiting: dict[str, Any] | None = None  # the record of a round whose ranking rides on the next one's messages
        try:
            for round in range(self.after + 1, self.config.rounds + 1):
                if self.choice.left == 0 or self.after == self.pause:
                    break
                riding = None if waiting is None else self._ranking(round - 1, round, [VALIDATION])
                record = self._round(talk, round, riding)
                self.after = round
                if waiting is not None and riding is not None:
                    self._tell(talk, waiting, riding)
                    waiting = None
                if not self._due(round, self._run.evaluation.every * self.setup.validation):
                    self._tell(talk, record, None)
                elif self._rides(round):
                    waiting = record
                else:
                    self._rank(talk, round, record)
                stops = self.choice.left == 0
                if round < self.config.rounds and (stops or self._due(round, self._run.checkpoint_every)):
                    self._checkpoint(round)
        finally:
            if waiting is not None:  # the run ends early: what is known of the round is not lost
                self._observer.on_round(waiting)
        if self.choice.best and self.choice.best.round < self.config.rounds and self.after != self.pause:
            self._test(talk, self.choice.best)

    def _conversation(self, grid: Grid) -> Conversation:
        directory, meter, eligible = self.directory, self.meter, self.models.eligible
        sent = (eligible, self._item_list, self._resumes, self._labels)
        talk = Conversation(grid, self.setup, self.rules, directory, meter, *sent)
        if (self.after < self.config.rounds or self._unranked) and self.setup.simulation is not None:
            talk.wait(self._run.simulation.nodes, _CONNECTING)
        return talk

    def _rank_what_was_trained(self, talk: Conversation, record: dict[str, Any]) -> None:
        """Rank the last round of a resumed run, which went no further than to a checkpoint before the test."""
        talk.gather()
        talk.losses.counts.update(record["dropped_replies"])
        talk.losses.wasted.update(record["wasted_bytes"])
        self._rank(talk, self.after, record)

    def _round(self, talk: Conversation, round: int, riding: Ranking | None) -> dict[str, Any]:
        """One round of training, with a ranking that rides on it if there is one; its record, without a ranking."""
        started = time.monotonic()
        talk.losses.clear()
        talk.elapsed = 0.0
        self.meter.begin_round()
        talk.gather()
        self._count_items(talk)
        self.models.advance(round)
        # A deployment that was resumed draws anew: the same users again would be another sampling.
        secret = derive(self._secret, "cohort", len(self._resumes) * self._deployed)
        kept, counts = self._kept(round), talk.losses.counts
        order = TrainingOrder(self.setup, self.models, self.rules, self._cohorts, secret, round, kept, counts)
        training = training_of(self.setup)(order)
        if self.setup.stages.noised_on_devices:
            self._release(round)
        training.carry(talk, [riding] if riding else [])
        moved = self._step(training, round)
        self.models.merge(round)
        self.within(talk, round)
        self.clock += talk.elapsed
        clock = {"simulated_round": talk.elapsed, "simulated_seconds": self.clock} if self.timed else {}
        return {
            "round": round,
            "rounds": self.config.rounds,
            "phase": self.models.phase_name,
            **training.record(),
            **({} if moved else {"unchanged": True}),
            "merges": self.models.merges,
            **talk.losses.record(),
            "bytes": self.meter.moved,
            "bytes_per_user": self.meter.per_user(),
            **clock,
            "seconds": time.monotonic() - started,
        }

    def _step(self, training: Training, round: int) -> bool:
        """The server's step on what the users of each group gave; whether any of it counts."""
        if not self.setup.stages.noised_on_devices:
            self._release(round)
        draws = Draws(derive(self._secret, "privacy", round), fresh=self._deployed)
        about = Round(round, self.rules.fraction, draws)
        given = {
            group: Given(round, self.setup.stages.on_sum(fold.sum(), about).mean(), fold.loss, fold.scalar("weight"))
            for group, fold in training.folds.items()
        }
        self.models.states = self.next(self.models.states, given)
        return any(each.mean is not None for each in given.values())

    def _release(self, round: int) -> None:
        """Tell the observer what the round is about to give away, before it leaves the devices or the server."""
        if releases := self.setup.stages.events(round):
            self._observer.on_release(round, releases)

    def next(self, states: Mapping[str, ServerState], given: Mapping[str, Given]) -> Mapping[str, ServerState]:
        """Where the groups' models stand after a round, given where they stood and what their users gave.

        By default each group's model takes the recipe's step by itself, if any of its users counts. A strategy that
        lets groups learn from one another does so here; it changes nothing but `trainable` and `optimiser`.
        """
        return {group: self._stepped(state, given[group].mean) for group, state in states.items()}

    def _stepped(self, state: ServerState, mean: Tensors | None) -> ServerState:
        if mean is None:
            return state
        if self.models.model.embedding.counts:
            return counted(self.models.model, state, mean, self.setup.stages.counted_length)
        moved, optimiser = self._recipe.server_update(state.trainable, mean, state.optimiser)
        return replace(state, trainable=moved, optimiser=optimiser)

    def _count_items(self, talk: Conversation) -> None:
        """Once, if the backbone wants it: how many users have each item, as they report it with noise."""
        counting = self.models.model.backbone.item_counting
        if counting is not None and self.models.counts is None:
            # What is frozen will follow from the counts.
            frozen = Frozen({self.setup.eligible: self.models.eligible}, Merges())
            asked = Counting(self.setup.n_items, counting, frozen, self.rules.max_failures)
            talk.carry(asked)
            self.models.freeze_counts(asked.estimate())

    def within(self, talk: Conversation, round: int) -> None:  # noqa: B027 (a hook, not a duty)
        """Carry what else belongs to a round, after the server's step; by default there is nothing."""

    def _ranking(self, after: int, sent: int, splits: Sequence[str]) -> Ranking:
        share = self.rules.node_limits(simulated=self.setup.simulation is not None).share
        about = (self.setup, self.models, after, sent, self._kept(sent), tuple(splits))
        return ranking_of(self.setup)(RankingOrder(*about, self.rules.max_failures, share, self.rival))

    def _rank(self, talk: Conversation, round: int, record: dict[str, Any]) -> None:
        """Rank after `round` in messages of its own, and tell the observer of the round.

        Models that are trained to the end are written down before, and outlive whatever comes after; and once more if
        they turn out to be better than those of an earlier round.
        """
        before = self.choice.best
        made = self._checkpoint(round, record) if round == self.config.rounds else None
        self._tell(talk, record, self._ranked(talk, round, record))
        if made and before and self.choice.best and self.choice.best.round == round:
            self._observer.on_checkpoint(replace(made, best=self.choice.best))

    def _ranked(self, talk: Conversation, round: int, record: dict[str, Any]) -> Ranking:
        """The ranking after `round` in messages of its own, the test with the last; what it cost goes into `record`."""
        started = time.monotonic()
        splits = [VALIDATION] * self.setup.validation + [TEST] * (round == self.config.rounds)
        ranking = self._ranking(round, round, splits)
        ranking.carry(talk)
        record |= talk.losses.record()
        record["seconds"] += time.monotonic() - started
        return ranking

    def _test(self, talk: Conversation, best: BestRound) -> None:
        """Test the models of a round before the last: that one is tested along with its validation."""
        talk.gather()
        trained, counts, reports = self.models.states, self.models.counts, self.models.reports
        self.models.restore(best.states, counts, reports)
        ranking = self._ranking(best.round, best.round, [TEST])
        ranking.carry(talk)
        self.models.restore(trained, counts, reports)
        self.lead = ranking.lead()
        groups = {"groups": best.with_validation(ranking.by_group())} if len(self.models) > 1 else {}
        self.ended = {VALIDATION: dict(best.validation), **ranking.means(), **groups, **talk.losses.record()}

    def _rides(self, round: int) -> bool:
        """Whether the ranking after `round` can ride on the next round's messages.

        They must bring the same model, which the first round of a phase does not, and come, whatever the ranking says.
        And a checkpoint is of a round of which nothing is still to come.
        """
        early = bool(self.rules.over_sampling)  # that round may end before everybody has answered
        return not (
            early
            or is_split(self.setup)  # a ranking has messages of its own then
            or self.choice.left == 1
            or self.models.enters(round + 1)
            or self._due(round, self._run.checkpoint_every)
        )

    def _tell(self, talk: Conversation, record: dict[str, Any], ranking: Ranking | None) -> None:
        """Tell the observer of a round, with its ranking if one was due."""
        if ranking is not None:
            ranked = ranking.means()
            groups = {"groups": ranking.by_group()} if len(self.models) > 1 else {}
            record["bytes_per_user"]["evaluation"] = self.meter.evaluation
            if VALIDATION in ranked:
                record |= {VALIDATION: ranked[VALIDATION], **groups}
                by_group = groups.get("groups", {})
                self.choice.compare(BestRound(ranking.round, ranked[VALIDATION], ranking.states, by_group))
            self.ended = {**ranked, **groups, **talk.losses.record()} if TEST in ranked else {}
            self.lead = ranking.lead()
        self._observer.on_round(record)

    def _kept(self, round: int) -> int:
        # Without checkpoints there is nothing to go back to but the best round; no older private tensors are needed.
        oldest = self._checkpoints.oldest if self._run.checkpoint_every else round - 1
        return min(oldest, self.choice.best.round) if self.choice.best else oldest

    def _due(self, round: int, every: int) -> bool:
        return round in (self.config.rounds, self.pause) or bool(every and round % every == 0)

    def _checkpoint(self, round: int, record: dict[str, Any] | None = None) -> Checkpoint:
        """Have the run written down as it is after `round`; `record`: that of the round, if it is yet to be ranked."""
        models, users, groups = self.models, self.directory.keys.copy(), self.directory.groups.copy()
        about = (models.states, self.meter.state(), users, groups, models.counts, models.reports)
        made = Checkpoint(round, *about, record, self.clock, self.choice.best)
        self._observer.on_checkpoint(made)
        self._checkpoints.add(made)
        return made
