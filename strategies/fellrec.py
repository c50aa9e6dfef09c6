"""`fellrec`: groups of users with models of their own, which the server mixes; there is no global model.

Source: FELLRec (arXiv 2402.09959, NAACL Findings 2025): few clients, each a group of users, whose parameters are mixed
by their likeness and by how far each has learned. Here the groups are those of `grouping`, and what a group trains in a
round is the recipe's step on the sum of its users' updates; embedding and backbone are any.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from annotated_types import Ge, Gt, Le
from torch import Tensor
from typing_extensions import override

from federation.base import FederatedStrategy, Given, Phase, StrategyConfig
from federation.server_model import ServerState
from fedrec.config.schema import RunConfig
from fedrec.core.registry import strategies
from fedrec.core.tensors import Tensors

_TEMPERATURE = 0.05
"""Of the softmax over the groups' losses (the paper's code)."""


@dataclass(frozen=True)
class FellRecConfig(StrategyConfig):
    """Configuration of `fellrec`.

    Attributes:
        mixing: What the groups' models become after each round: `likeness`, the paper's mixture; `mean`, the unweighted
            mean of all; `fedavg`, their mean weighted by what their users count; `local`, each its own. `pooled`, ours,
            mixes as `fedavg` does before the server's step and not after it: models, and what the groups' users gave.
        alpha: How much of the others a group takes at least: tanh(alpha), where its loss is far above the others'; with
            the rounds that tends to 1.
        beta: How early: the exponent of a group's loss in round t (from 0) is t + 1 / beta.
    """

    name: Literal["fellrec"]
    mixing: Literal["likeness", "mean", "fedavg", "pooled", "local"]
    alpha: Annotated[float, Ge(0), Le(100)]
    beta: Annotated[float, Gt(0), Le(1e6)]


@strategies.register("fellrec")
class FellRecStrategy(FederatedStrategy):
    """One phase; in each round the groups' models are mixed, all from what they were before the mixing."""

    config_class = FellRecConfig

    @classmethod
    @override
    def phases(cls, config: RunConfig) -> Sequence[Phase]:
        rounds: int = config.strategy.rounds  # type: ignore[attr-defined]
        return [Phase("fellrec", rounds, config.embedding)]

    @classmethod
    @override
    def problems(cls, config: RunConfig) -> list[str]:
        if config.grouping.name != "one":
            return []
        return [
            "strategy=fellrec mixes the models of groups, and grouping=one has none: take grouping=key, centroids or "
            "site"
        ]

    @override
    def next(self, states: Mapping[str, ServerState], given: Mapping[str, Given]) -> Mapping[str, ServerState]:
        """Every group's step, and the mixing of those whose users gave something; a silent group stays as it is.

        With `likeness` one whose users' loss cannot be believed takes its own step alone.
        """
        told = [group for group, each in given.items() if self.config.mixing != "likeness" or each.loss is not None]
        means = {group: mean for group in told if (mean := given[group].mean) is not None}
        if self.config.mixing != "pooled":
            return self._mixed(super().next(states, given), given, means)
        if len(means) > 1:
            pooled = mixture(means, given, self.config)
            given = {**given, **{group: given[group]._replace(mean=mean) for group, mean in pooled.items()}}
        return super().next(self._mixed(states, given, means), given)

    def _mixed(
        self, states: Mapping[str, ServerState], given: Mapping[str, Given], here: Collection[str]
    ) -> Mapping[str, ServerState]:
        """The states with the models of the groups `here` mixed, if there are two or more of them."""
        if len(here) < 2:
            return states
        mixed = mixture({group: states[group].trainable for group in here}, given, self.config)
        return {
            group: dataclasses.replace(state, trainable=mixed[group]) if group in mixed else state
            for group, state in states.items()
        }


def mixture(models: Mapping[str, Tensors], given: Mapping[str, Given], config: Any) -> dict[str, Tensors]:
    """Every group's tensors after the mixing of one round, each made of the old tensors of all.

    Args:
        models: The tensors of each group that takes part.
        given: What the users of these groups, and maybe of others, gave: the round, their loss and their weight.
        config: A `FellRecConfig`.
    """
    groups = sorted(models)
    shares = _shares(groups, models, given, config)
    names = models[groups[0]]
    flat = {name: torch.stack([models[group][name].double() for group in groups]) for name in names}
    mixed: dict[str, Tensors] = {}
    for place, group in enumerate(groups):
        mixed[group] = {
            name: torch.tensordot(shares[place], stacked, dims=1).to(models[group][name].dtype)
            for name, stacked in flat.items()
        }
    return mixed


def _shares(groups: Sequence[str], models: Mapping[str, Tensors], given: Mapping[str, Given], config: Any) -> Tensor:
    """float64 [groups, groups]: how much each group takes of each, rows summing to one."""
    if config.mixing == "local":
        return torch.eye(len(groups), dtype=torch.float64)
    if config.mixing == "mean":
        return torch.full((len(groups), len(groups)), 1 / len(groups), dtype=torch.float64)
    if config.mixing in ("fedavg", "pooled"):
        weights = torch.tensor([given[group].weight for group in groups], dtype=torch.float64)
        return (weights / weights.sum()).expand(len(groups), -1)
    losses = [given[group].loss for group in groups]
    if any(loss is None for loss in losses):  # not told, beside a noised sum
        raise ValueError("strategy.mixing=likeness needs the groups' losses")
    likeness = likenesses([models[group] for group in groups])
    wanted = takes([float(loss or 0.0) for loss in losses], given[groups[0]].round - 1, config.alpha, config.beta)
    shares = likeness * wanted[:, None]
    shares.fill_diagonal_(1.0)
    return shares / shares.sum(dim=1, keepdim=True)


def likenesses(models: Sequence[Tensors]) -> Tensor:
    """float64 [groups, groups]: (cosine + 1) / 2 of all that two groups train."""
    flat = torch.stack([torch.cat([model[name].double().flatten() for name in sorted(model)]) for model in models])
    unit = torch.nn.functional.normalize(flat, dim=1)
    return (unit @ unit.T + 1) / 2


def takes(losses: Sequence[float], step: int, alpha: float, beta: float) -> Tensor:
    """float64 [groups]: w_c = tanh(alpha / l_c^(step + 1 / beta)), with l the softmax of the losses over 0.05.

    Worked out from the logarithm of l, whose power is too small for a number soon: the tangent is one then.
    """
    logs = torch.log_softmax(torch.tensor(losses, dtype=torch.float64) / _TEMPERATURE, dim=0)
    exponent = step + 1 / beta
    largest = math.log(1e6)  # tanh is one to the last bit far below
    return torch.tanh(alpha * torch.exp((-logs * exponent).clamp(max=largest)))
