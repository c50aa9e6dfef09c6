"""The phases of a run: those of its strategy, after the rounds in which users are only asked for a statistic."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from federation.server_model import Phase, ServerState
from fedrec.config.schema import RunConfig
from fedrec.config.start import after_counting
from fedrec.core import registry
from fedrec.core.tensors import Tensors
from fedrec.optim.server import running_mean
from peft_embeddings.model import Model
from peft_embeddings.popularity import PopularityConfig


def plan_of(config: RunConfig) -> Sequence[Phase]:
    """The phases of a run, in order.

    Where `statistics.start` names a statistic, the first rounds count it, and what comes of that is in the base table
    of the strategy's own phases, which have the other rounds.
    """
    about = config.statistics
    phases: Sequence[Phase] = registry.strategies.get(config.strategy.name).phases(after_counting(config))
    if about.start == "none":
        return phases
    return [Phase("statistics", about.rounds, PopularityConfig("popularity", about.scaling, about.floor)), *phases]


def counted(model: Model, state: ServerState, mean: Tensors, length: float) -> ServerState:
    """The state after a round that counts: what the embedding counts is a mean over its rounds, all else stays.

    Args:
        model: Whose embedding counts.
        state: Before the round.
        mean: Of what users gave.
        length: Of each one's part.
    """
    names = [model.embedding_name(name) for name in model.embedding.tables]
    before = {name: state.trainable[name] for name in names}
    tables, rounds = running_mean(before, {name: mean[name] / length for name in names}, state.optimiser)
    return replace(state, trainable=state.trainable | tables, optimiser=rounds)
