"""The schema of a run's configuration: one frozen dataclass, a field per family and a few sections."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

from annotated_types import Ge, Gt, Le, Lt
from pydantic import Strict

from fedrec.core.bounds import (
    LARGEST_SEED,
    LARGEST_START,
    MOST_DIMENSIONS,
    MOST_ITEMS,
    MOST_NEGATIVES,
    MOST_ROUNDS,
    MOST_WIDTH,
    CutOffs,
)
from fedrec.core.registry import MemberConfig

_STRICT: Mapping[str, Any] = {"extra": "forbid", "strict": True}
_FIXED = MemberConfig("fixed")
"""The cohorts of all runs from before there was a choice."""
_ONE = MemberConfig("one")
"""Their groups."""
_NONE = MemberConfig("none")
"""Their network."""
_DENSE = MemberConfig("dense")
"""Their uplink, if nothing says another (`fedrec.config.describe`), and their downlink."""
_PLAIN = MemberConfig("plain")
"""How updates are added up, if nothing says another."""


@dataclass(frozen=True)
class BaseTableConfig:
    """The pre-trained item table.

    Attributes:
        start: Made from the items' `text`, or `random`: normal numbers, for a catalogue without text.
        dim: Numbers in an item vector.
        norm: Root mean square length of the rows (of the items that have text) after scaling.
    """

    __pydantic_config__: ClassVar[Mapping[str, Any]] = _STRICT

    start: Literal["text", "random"]
    dim: Annotated[int, Ge(1), Le(MOST_DIMENSIONS)]
    norm: Annotated[float, Ge(0), Le(LARGEST_START)]


@dataclass(frozen=True)
class EvaluationConfig:
    """How models are ranked.

    Attributes:
        every: Rounds between two validations (0: none during the run).
        validation: Whether an item of every user is held out for validation. False: users train on it too, and there is
            only the test; for a last run, whose settings were chosen with validation.
        ks: Cut-offs of HR@k, NDCG@k and Recall@k.
        sampled_negatives: Also rank against this many sampled items, labelled `sampled<n>/` (0: full ranking only).
        baselines: Whether to compute the baselines (they need all interactions in one place: simulation only).
        beyond_accuracy: Whether to say at the end how much of the catalogue is recommended, how popular and how various
            (simulation only, too: the lists of a site's users are nobody else's business).
    """

    __pydantic_config__: ClassVar[Mapping[str, Any]] = _STRICT

    every: Annotated[int, Ge(0), Le(MOST_ROUNDS)]
    validation: bool
    ks: Annotated[CutOffs, Strict(False)]
    sampled_negatives: Annotated[int, Ge(0), Le(MOST_NEGATIVES)]
    baselines: bool
    beyond_accuracy: bool = True  # a run of old has no such key in its folder


@dataclass(frozen=True)
class SimulationConfig:
    """Where the simulated users live; the result does not depend on any of it.

    Attributes:
        nodes: SuperNodes that share the users between them.
        workers: Processes that run the nodes (a running Ray cluster has as many as fit on it).
        cpus_per_worker: Cores a worker asks for.
        gpus_per_worker: GPUs a worker asks for, whole ones or a fraction of one.
    """

    __pydantic_config__: ClassVar[Mapping[str, Any]] = _STRICT

    nodes: Annotated[int, Ge(1), Le(1_000_000)]
    workers: Annotated[int, Ge(1), Le(10_000)]
    cpus_per_worker: Annotated[int, Ge(1), Le(10_000)]
    gpus_per_worker: Annotated[float, Ge(0), Le(64)]


class NodeLimits(NamedTuple):
    """What one node may be: `max_node_users`, `max_node_growth` and `max_node_share` of `FederationConfig`."""

    users: int
    growth: float
    share: float


UNLIMITED = NodeLimits(2**24, float("inf"), 1.0)
ROW_OF_GRADIENTS = 10.0
"""`max_row_norm` of a deployment whose recipe sends gradients: chosen by what attackers reach, and what it costs honest
users (docs/security.md)."""

_OF_A_DEPLOYMENT = NodeLimits(10_000, 1.0, 0.5)


@dataclass(frozen=True)
class FederationConfig:
    """How a federation works, whatever the strategy: who is asked, what counts, and how long it is waited for.

    Attributes:
        fraction: Share of the users who train in a round.
        weight_cap: A user's weight in the average is the number of its training items, at most this.
        max_update_norm: A user's delta of a larger norm is dropped (and counted).
        max_row_norm: How far one user may move a row of a table, times its weight: devices shorten what is longer, and
            the server refuses a node's sum that is longer than so many users can make it. A tensor that is no table
            counts as one row. `auto`: as far as the recipe can move it, so that nothing honest is ever shortened; where
            gradients have no bound, as in the recipe `fast`, 10 in a deployment and any distance in a simulation. null:
            any distance.
        over_sampling: Share of users who are asked beyond those. The round ends as soon as nodes with as many users as
            it would have had without them have answered; the result then depends on who is quick (0: it does not).
        max_failures: Share of the asked nodes that may fail in a round, or in a ranking.
        min_users: Users whose updates a round needs at least: updates that count, after the nodes and the server have
            left out what cannot be used (0: a round in which nobody's counts changes nothing and passes).
        repeats: How many times a round in which more failed, or fewer users' updates count, is done again, with those
            who are there then, before the run is given up. Its model is then still the one before that round. A
            ranking in which more failed is done again as often.
        min_nodes: Nodes with users without which no round begins.
        node_timeout: Seconds to wait for these before the run is given up.
        round_timeout: Seconds for which a round waits for a node of which nothing is known (null: 120, in a simulation
            600). A node that is known to need longer is given half as much again as it needs, at most three times
            this; one that needs more than that is left out.
        silent_rounds: Messages in a row that a node leaves unanswered before it rests: it is then left out, and asked
            again after 1, 2, 4, ... 32 times as long as was waited for it, at most after an hour, or as soon as a late
            answer shows that it can be in time.
        max_node_users: Users whom one node may name (null: 10,000, in a simulation no limit). A registered key is a
            node, and its users are not proved.
        max_node_growth: Users never seen before whom a node may bring in later rounds of a run, in all, as a share of
            those with whom it first joined (null: 1, in a simulation no limit); ten in any case.
        max_node_share: Largest share of a round's users, and of those of a ranking, for which one of three nodes or
            more counts: what it sends beyond that weighs as much less (null: 0.5, in a simulation 1: all it sends).
    """

    __pydantic_config__: ClassVar[Mapping[str, Any]] = _STRICT

    fraction: Annotated[float, Gt(0), Le(1)]
    weight_cap: Annotated[int, Ge(1), Le(1_000_000)]
    max_update_norm: Annotated[float, Gt(0), Le(1e6)]
    over_sampling: Annotated[float, Ge(0), Le(10)]
    max_failures: Annotated[float, Ge(0), Le(1)]
    min_users: Annotated[int, Ge(0), Le(10_000_000)]
    repeats: Annotated[int, Ge(0), Le(1000)]
    min_nodes: Annotated[int, Ge(1), Le(10_000_000)]
    node_timeout: Annotated[float, Ge(0), Le(10_000_000)]
    round_timeout: Annotated[float, Gt(0), Le(10_000_000)] | None
    silent_rounds: Annotated[int, Ge(1), Le(MOST_ROUNDS)]
    # With defaults: a run of old has none of them in its folder.
    max_row_norm: Annotated[float, Gt(0), Le(1e6)] | Literal["auto"] | None = "auto"
    max_node_users: Annotated[int, Ge(1), Le(2**24)] | None = None
    max_node_growth: Annotated[float, Ge(0), Le(1e6)] | None = None
    max_node_share: Annotated[float, Gt(0), Le(1)] | None = None

    def patience(self, *, simulated: bool) -> float:
        """Seconds after which a round goes on."""
        return self.round_timeout or (600.0 if simulated else 120.0)

    def node_limits(self, *, simulated: bool) -> NodeLimits:
        """What one node may be."""
        given = (self.max_node_users, self.max_node_growth, self.max_node_share)
        defaults = UNLIMITED if simulated else _OF_A_DEPLOYMENT
        users, growth, share = (own if own is not None else of for own, of in zip(given, defaults, strict=True))
        return NodeLimits(int(users), growth, share)


@dataclass(frozen=True)
class CentralConfig:
    """How `fedrec baseline central` trains, with all users' interactions in one place.

    Loss, solve steps and, unless given here, negatives are those of the recipe.

    Attributes:
        epochs: Passes over all training interactions, at most.
        batch: Interactions in a step of Adam.
        lr: Its learning rate.
        decay: Its L2 regularisation, of everything that is trained.
        negatives: Negatives of an interaction, drawn afresh in every epoch, or as many as the `recipe` has.
        patience: Epochs without a better validation after which training ends (0: only after the last).
        halvings: How often it goes on at half the rate instead of ending there.
    """

    __pydantic_config__: ClassVar[Mapping[str, Any]] = _STRICT

    epochs: Annotated[int, Ge(1), Le(1_000_000)]
    batch: Annotated[int, Ge(1), Le(10_000_000)]
    lr: Annotated[float, Gt(0), Le(1e29)]  # one that is much too large diverges, which has an error of its own
    decay: Annotated[float, Ge(0), Le(1e6)]
    negatives: Annotated[int, Ge(1), Le(100_000)] | Literal["recipe"]
    patience: Annotated[int, Ge(0), Le(1_000_000)]
    halvings: Annotated[int, Ge(0), Le(100)] = 0


@dataclass(frozen=True)
class LocalConfig:
    """How `fedrec baseline local` trains, every user alone.

    Attributes:
        rounds: Rounds of the recipe that each user takes as a federation of one.
    """

    __pydantic_config__: ClassVar[Mapping[str, Any]] = _STRICT

    rounds: Annotated[int, Ge(1), Le(MOST_ROUNDS)]


@dataclass(frozen=True)
class StatisticsConfig:
    """What `fedrec baseline popularity` and `co_occurrence` count, and how users ask by it; what a run begins with.

    Attributes:
        items: Most popular items whose co-occurrences are counted; noise grows with their square.
        lags: How far apart two items of a history may stand.
        lag_decay: What a pair counts for less than one that stands a place nearer.
        factors: Largest eigenvalues of the matrix that are kept.
        popularity_share: What finding these items gets of the precision, 1 / scale**2, that a budget of privacy allows
            normal noise; of Laplace noise, of the epsilon.
        history_decay: What an item of its history counts for less than the one after it, where a user asks.
        start: What users are asked for in the first rounds of a run: `popularity`, which is then a number of every
            item's vector (`peft_embeddings.popularity`), or `none`.
        rounds: How many of the run's rounds these are; noise on their mean is less.
        scaling: As of `embedding=popularity`.
        floor: The same.
    """

    __pydantic_config__: ClassVar[Mapping[str, Any]] = _STRICT

    items: Annotated[int, Ge(2), Le(MOST_WIDTH)] = 300
    lags: Annotated[int, Ge(1), Le(1000)] = 5
    lag_decay: Annotated[float, Gt(0), Le(1)] = 0.8
    factors: Annotated[int, Ge(1), Le(MOST_WIDTH)] = 64
    popularity_share: Annotated[float, Gt(0), Lt(1)] = 0.1
    history_decay: Annotated[float, Gt(0), Le(1)] = 0.6
    start: Literal["none", "popularity"] = "none"
    rounds: Annotated[int, Ge(1), Le(MOST_ROUNDS)] = 1
    scaling: Annotated[float, Gt(0), Le(LARGEST_START)] = 0.25
    floor: Annotated[float, Gt(0), Le(1)] = 0.001


@dataclass(frozen=True)
class RunConfig:
    """Everything that determines a run.

    Attributes:
        seed: Root of all public randomness (and, in simulation only, of the secret randomness).
        engine: How clients train: all chosen users of a node at once (`cohort`), or one after the other (`oracle`, slow
            and plain, the same result).
        pairs_at_once: Pairs of a user and a training item that the cohort engine trains at once: bounds its memory.
        checkpoint_every: Rounds between two checkpoints of the global model (0: only the last).
        checkpoints_kept: How many checkpoints are kept; the oldest is deleted when a new one is safe on the disk.
        run_id: Name of the run's folder (null: made from the time and the members' names).
        resume: Name of the folder of a run that was interrupted: it goes on, with the configuration that is in its
            folder (null: a new run).
        runs_dir: Absolute folder of all runs (null: the command's own default).
        cache_dir: Absolute folder of what can be computed anew: prepared data, text vectors, base tables.
        runtime: Whose users these are: a `simulation` shares out those of the data set; in a `deployment` every
            SuperNode has its own, and the server reads the item table alone.
    """

    __pydantic_config__: ClassVar[Mapping[str, Any]] = _STRICT

    strategy: MemberConfig
    embedding: MemberConfig
    backbone: MemberConfig
    optim: MemberConfig
    dataset: MemberConfig
    encoder: MemberConfig
    reduction: MemberConfig
    codec: MemberConfig
    privacy: MemberConfig
    base_table: BaseTableConfig
    federation: FederationConfig
    evaluation: EvaluationConfig
    simulation: SimulationConfig
    central: CentralConfig
    local: LocalConfig
    seed: Annotated[int, Ge(0), Le(LARGEST_SEED)]
    engine: Literal["cohort", "oracle"]
    pairs_at_once: Annotated[int, Ge(1), Le(MOST_ITEMS)]
    checkpoint_every: Annotated[int, Ge(0), Le(MOST_ROUNDS)]
    checkpoints_kept: Annotated[int, Ge(1), Le(MOST_ROUNDS)]
    run_id: str | None
    resume: str | None
    runs_dir: Annotated[Path, Strict(False)] | None
    cache_dir: Annotated[Path, Strict(False)] | None
    runtime: Literal["simulation", "deployment"] = "simulation"
    cohort: MemberConfig = _FIXED
    grouping: MemberConfig = _ONE
    network: MemberConfig = _NONE
    uplink: MemberConfig = _DENSE
    downlink: MemberConfig = _DENSE
    aggregation: MemberConfig = _PLAIN
    statistics: StatisticsConfig = StatisticsConfig()
    tracker: MemberConfig = _NONE
