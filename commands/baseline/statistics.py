"""Statistics that rank by themselves: how often items are had, and which follow which; exact, or released with noise.

A user's part in each is one vector that is scaled to a norm of 1 (Euclidean for normal noise, the sum of its sizes for
Laplace noise) and put on a grid, cut off towards zero: so one user more or less changes a sum by at most 1, however
many items it has. With a central mechanism of privacy each sum gets noise once, for the budget of the configuration,
and is in the folder's ledger before that. Everybody takes part, so nothing is gained by sampling. Popularity alone
takes the whole budget; before co-occurrences it takes `statistics.popularity_share` of it, and says which items are
counted.

Users' parts are of what they train on. Both splits are ranked by the one release; what a user has since come to know
is in its own history alone, by which it asks.
"""

from __future__ import annotations

import math
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
from fedrec.privacy.accounting import calibrated
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


class Releases:
    """Sums over users, each noised once, or exact where the configuration has no privacy."""

    def __init__(self, config: RunConfig, secret: int, folder: Path, shares: Sequence[float]) -> None:
        """For so many releases, each with a share of the budget: they add up to 1.

        Raises ConfigError for a mechanism that is not the server's, and so noises no statistics.
        """
        privacy: Any = config.privacy
        made = registry.privacies.get(privacy.name)(privacy)
        self._secret, self._shares, self._done = secret, shares, 0
        self.kind: Noise = GAUSSIAN
        self.ledger: Ledger | None = None
        self._multiplier = 0.0
        if privacy.name == "none":
            return
        if not isinstance(made, Central):
            raise ConfigError(
                [
                    f"privacy={privacy.name}: statistics are noised by a trusted server; take "
                    "privacy=central_gaussian, central_laplace or, for exact ones, none"
                ]
            )
        self.kind = made.kind
        plan = len(shares)
        self.ledger = Ledger(folder / LEDGER, 1.0, privacy.epsilon, privacy.delta, plan, made.unit)
        self._multiplier = privacy.noise_multiplier or self._calibrated(privacy.epsilon, privacy.delta)

    def _calibrated(self, epsilon: float, delta: float) -> float:
        """For all releases together, a little more than enough: the account of two is rounded twice."""
        return 1.001 * calibrated(Release(self.kind.name, 1.0), 1, 1.0, epsilon, delta)

    def _spread(self, share: float) -> float:
        """How much more noise a release has that takes a share of the budget."""
        return 1 / math.sqrt(share) if self.kind is GAUSSIAN else 1 / share

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
        if self.ledger is not None:
            multiplier = self._multiplier * self._spread(self._shares[self._done - 1])
            self.ledger.spend(self._done, [Release(self.kind.name, multiplier)])
            draws = Draws(derive(self._secret, "statistics", self._done), fresh=False)
            total = total.with_noise(multiplier, draws, self.kind.standard)
        return total.units["sum"].double().numpy() / _UNITS_PER_ONE


def statistics(kind: str, world: World, folder: Path) -> tuple[Statistics, Ledger | None]:
    """The statistic of a kind, `popularity` or `co_occurrence`, over all users; and its ledger, if it has noise."""
    settings = world.config.statistics
    cohort = world.users.training(np.arange(len(world.users)))
    shares = [1.0] if kind == "popularity" else [settings.popularity_share, 1 - settings.popularity_share]
    releases = Releases(world.config, world.secret, folder, shares)
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
        cohort, positives = world.users.held_out(world.users.evaluated, split)
        setup, seed = world.setup, derive(world.setup.seed, "sampled", split)
        protocol = RankingProtocol(setup.ks, world.sampler, setup.sampled_negatives, seed)
        metrics[split] = world.means(rank_users(held, cohort, positives, {"user": _asked(cohort, found)}, protocol))
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
