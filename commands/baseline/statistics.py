"""Statistics that rank by themselves: how often items are had, and which are had near each other; exact or with noise.

A user's part in each is one vector that is scaled to a norm of 1 (Euclidean for normal noise, the sum of its sizes for
Laplace noise) and put on a grid, cut off towards zero: so one user more or less changes a sum by at most 1, however
many items it has, and an item counts for less with one who has many: popularity without privacy is another statistic,
plain counts. With a central mechanism of privacy each sum gets noise once, for the budget of the configuration,
and is in the folder's ledger before that. Everybody takes part, so nothing is gained by sampling. Popularity alone
takes the whole budget; before co-occurrences it takes `statistics.popularity_share` of it, and says which items are
counted.

Users' parts are of what they train on. Both splits are ranked by the one release; what a user has since come to know
is in its own history alone, by which it asks.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from client_app.answers.evaluation import RankingProtocol, rank_users
from client_app.homes.users import Cohort
from client_app.training.engine import GlobalModel
from commands.baseline.world import World
from fedrec.backbones.fedmf import FedMF, FedMFConfig
from fedrec.config.schema import RunConfig
from fedrec.core import registry
from fedrec.core.errors import ConfigError
from fedrec.core.rng import derive
from fedrec.core.tensors import TensorSpec
from fedrec.data.split import HeldOut
from fedrec.privacy.accounted import GAUSSIAN, Noise
from fedrec.privacy.accounting import Sampled, calibrated, epsilon_of
from fedrec.privacy.central import Central
from fedrec.stages.base import Release
from fedrec.stages.draws import Draws
from fedrec.stages.sums import Sum
from peft_embeddings.full import FullConfig
from peft_embeddings.model import Model
from server_app.ledger import LEDGER, Ledger

_UNITS_PER_ONE = 2.0**20
_SPLITS: tuple[HeldOut, ...] = ("validation", "test")


class Statistics(NamedTuple):
    """What an item is known by.

    Attributes:
        vectors: float32 [items, width]; zeros for an item that nothing is known of.
        decay: What an item of a user's history counts for less than the one after it; 0: all users ask alike.
    """

    vectors: Tensor
    decay: float


class NoisePlan(NamedTuple):
    """The noise of some releases of one budget.

    Attributes:
        kind: Which noise.
        multipliers: Of each release, in their order.
        unit: Whom the promise is about.
    """

    kind: Noise
    multipliers: Sequence[float]
    unit: str


def noise_plan(kind: str, config: RunConfig) -> NoisePlan | None:
    """What noises a statistic of a kind; None if it is exact. It reads no data.

    Popularity is one release. Before co-occurrences it is one, too, with the share `statistics.popularity_share` of the
    precision of normal noise, 1 / scale**2, or of the epsilon of Laplace noise.

    Raises ConfigError for a mechanism that is not the server's, and for a noise multiplier that is over the budget.
    """
    privacy: Any = config.privacy
    if privacy.name == "none":
        return None
    made = registry.privacies.get(privacy.name)(privacy)
    if not isinstance(made, Central):
        raise ConfigError(
            [
                f"privacy={privacy.name}: statistics are noised by a trusted server; take "
                "privacy=central_gaussian, central_laplace or, for exact ones, none"
            ]
        )
    noise, share = made.kind, config.statistics.popularity_share
    shares = [1.0] if kind == "popularity" else [share, 1 - share]
    # A little more than enough: the account of two is rounded twice.
    multiplier = privacy.noise_multiplier or 1.001 * calibrated(
        Release(noise.name, 1.0), 1, 1.0, privacy.epsilon, privacy.delta
    )
    multipliers = [multiplier * (1 / math.sqrt(share) if noise is GAUSSIAN else 1 / share) for share in shares]
    spent = epsilon_of(Counter(Sampled(each, 1.0, noise.name) for each in multipliers), privacy.delta)
    if privacy.epsilon is not None and spent > privacy.epsilon:
        raise ConfigError(
            [
                f"privacy.noise_multiplier={privacy.noise_multiplier:g}: with it the statistic is epsilon={spent:.3f}, "
                f"and the budget is privacy.epsilon={privacy.epsilon:g}; leave it out, or give more"
            ]
        )
    return NoisePlan(noise, multipliers, made.unit)


class Releases:
    """Sums over users, each noised once, or exact where there is no noise."""

    def __init__(self, config: RunConfig, plan: NoisePlan | None, secret: int, folder: Path) -> None:
        """With the ledger of these releases in a folder."""
        privacy: Any = config.privacy
        self._plan, self._secret, self._done = plan, secret, 0
        self.kind = GAUSSIAN if plan is None else plan.kind
        self.ledger: Ledger | None = None
        if plan is not None:
            count = len(plan.multipliers)
            self.ledger = Ledger(folder / LEDGER, 1.0, privacy.epsilon, privacy.delta, count, plan.unit)

    def parts(self, owners: NDArray[np.int64], values: NDArray[np.float64], users: int) -> NDArray[np.float64]:
        """`values` with those of each owner scaled to a norm of 1, on the grid: whole numbers."""
        if self.kind is GAUSSIAN:
            norms = np.sqrt(np.bincount(owners, values**2, users))
        else:
            norms = np.bincount(owners, np.abs(values), users)
        found: NDArray[np.float64] = np.trunc(values / norms[owners] * _UNITS_PER_ONE * (1 - 2.0**-40))
        return found

    def release(self, summed: NDArray[np.float64]) -> NDArray[np.float64]:
        """A sum of such parts, with its noise. Raises BudgetError if it would be too much."""
        total = Sum(
            {"sum": TensorSpec(summed.shape)}, {"sum": torch.from_numpy(summed).long()}, _UNITS_PER_ONE, denominator=1.0
        )
        self._done += 1
        if self._plan is not None and self.ledger is not None:
            multiplier = self._plan.multipliers[self._done - 1]
            self.ledger.spend(self._done, [Release(self.kind.name, multiplier)])
            draws = Draws(derive(self._secret, "statistics", self._done), fresh=False)
            total = total.with_noise(multiplier, draws, self.kind.standard)
        return total.units["sum"].double().numpy() / _UNITS_PER_ONE


def statistics(kind: str, world: World, plan: NoisePlan | None, folder: Path) -> tuple[Statistics, Ledger | None]:
    """The statistic of a kind, `popularity` or `co_occurrence`, over all users; and its ledger, if it has noise."""
    settings = world.config.statistics
    cohort = world.users.training(np.arange(len(world.users)))
    releases = Releases(world.config, plan, world.secret, folder)
    counts = _popularity(cohort, world.setup.n_items, releases)
    if kind == "popularity":
        return Statistics(torch.from_numpy(counts).float()[:, None], 0.0), releases.ledger
    eligible = world.dataset.eligible
    top = np.sort(eligible[np.argsort(-counts[eligible], kind="stable")[: settings.items]]).astype(np.int64)
    matrix = _co_occurrences(cohort, top, world, releases)
    weight = np.maximum(counts[top], 1.0) ** -0.25
    values, axes = np.linalg.eigh(weight[:, None] * matrix * weight[None, :])
    largest = [place for place in np.argsort(-values)[: settings.factors].tolist() if values[place] > 0]
    vectors = np.zeros((world.setup.n_items, max(1, len(largest))), dtype=np.float32)
    if largest:
        vectors[top] = axes[:, largest] * np.sqrt(values[largest])
    return Statistics(torch.from_numpy(vectors), settings.history_decay), releases.ledger


def _popularity(cohort: Cohort, n_items: int, releases: Releases) -> NDArray[np.float64]:
    """How often users have each item, a user of many items counting less for each: [items]."""
    owners = np.repeat(np.arange(len(cohort)), cohort.lengths)
    owners, items = np.unique(np.stack([owners, cohort.items]), axis=1)
    parts = releases.parts(owners, np.ones(len(items)), len(cohort))
    return releases.release(np.bincount(items, parts, n_items).astype(np.float64))


def _co_occurrences(cohort: Cohort, top: NDArray[np.int64], world: World, releases: Releases) -> NDArray[np.float64]:
    """How often two of the items `top` stand near each other in histories, symmetric [len(top), len(top)]."""
    settings, size = world.config.statistics, len(top)
    place = np.full(world.setup.n_items, -1)
    place[top] = np.arange(size)
    at, owner = place[cohort.items], np.repeat(np.arange(len(cohort)), cohort.lengths)
    owners, pairs, weights = [], [], []
    for lag in range(1, settings.lags + 1):
        first, second = at[:-lag], at[lag:]
        near = (owner[:-lag] == owner[lag:]) & (first >= 0) & (second >= 0) & (first != second)
        low, high = np.minimum(first, second)[near], np.maximum(first, second)[near]
        owners.append(owner[:-lag][near])
        pairs.append(low * size + high)
        weights.append(np.full(len(low), settings.lag_decay ** (lag - 1)))
    both = np.concatenate(owners) * size**2 + np.concatenate(pairs)
    each, inverse = np.unique(both, return_inverse=True)
    values = np.bincount(inverse, np.concatenate(weights), len(each)).astype(np.float64)
    parts = releases.parts(each // size**2, values, len(cohort))
    upper = np.triu_indices(size, 1)
    summed = np.bincount(each % size**2, parts, size**2).astype(np.float64).reshape(size, size)
    matrix = np.zeros((size, size))
    matrix[upper] = releases.release(summed[upper])
    return matrix + matrix.T


def ranked(world: World, found: Statistics) -> dict[str, Any]:
    """By split, the metrics of users who ask by their own histories, the latest item first."""
    width = found.vectors.shape[1]
    model = Model.of(FullConfig("full"), FedMF(FedMFConfig("fedmf", 1.0), width), world.setup.n_items)
    held = GlobalModel(model, {model.embedding_name("items"): found.vectors}, {})
    metrics: dict[str, Any] = {}
    for split in _SPLITS[not world.setup.validation :]:
        cohort, positives = world.users.held_out(world.users.evaluated(split), split)
        setup, seed = world.setup, derive(world.setup.seed, "sampled", split)
        protocol = RankingProtocol(setup.ks, world.sampler, setup.sampled_negatives, seed)
        sums = rank_users(held, cohort, positives, {"user": _asked(cohort, found)}, protocol)
        metrics[split] = world.means(sums, split)
    return metrics


def _asked(cohort: Cohort, found: Statistics) -> Tensor:
    """What each user is asked for by: the decayed sum of the vectors of its history, float32 [users, width]."""
    if not found.decay:
        return torch.ones(len(cohort), found.vectors.shape[1])
    owners = np.repeat(np.arange(len(cohort)), cohort.lengths)
    age = np.repeat(cohort.offsets[1:], cohort.lengths) - 1 - np.arange(len(owners))
    weights = torch.from_numpy(found.decay ** age.astype(np.float64)).float()
    asked = torch.zeros(len(cohort), found.vectors.shape[1])
    return asked.index_add_(0, torch.from_numpy(owners), weights[:, None] * found.vectors[cohort.items])
