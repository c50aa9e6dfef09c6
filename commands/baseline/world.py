"""What a run of the same configuration would have, in one place: data, model at its start, the ranking of users."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import cast

import numpy as np
import torch

from client_app.answers.evaluation import RankingProtocol, rank_users
from client_app.homes.users import Cohort, LocalUsers
from client_app.training.cohort import CohortEngine
from client_app.training.engine import GlobalModel, all_finite
from exchanges.split import whole
from fedrec.config.schema import RunConfig
from fedrec.core import registry
from fedrec.core.errors import FedrecError
from fedrec.core.keys import simulation_secret
from fedrec.core.rng import derive, generator
from fedrec.core.tensors import Tensors, content_digest
from fedrec.data import report
from fedrec.data.negatives import NegativeSampler
from fedrec.data.prepare import load
from fedrec.data.split import HeldOut
from fedrec.data.types import Dataset
from fedrec.datasets.base import DatasetConfig
from fedrec.evaluation.metrics import mean_metrics
from fedrec.optim.base import Recipe
from fedrec.stages.chain import plain_stages
from fedrec.stages.limits import Limits
from fedrec.wire.eligible import pack_eligible
from fedrec.wire.protocol import Setup
from peft_embeddings.base_table import BaseTable
from peft_embeddings.model import Model, models_of
from server_app.setup import base_table, make_setup, text_tensors
from server_app.watching import Progress, Watcher

log = logging.getLogger("fedrec")

_NO_LIMITS = Limits(weight_cap=1, max_update_norm=float("inf"))


@dataclass(frozen=True)
class World:
    """Everything that a baseline is made of.

    Attributes:
        config: The configuration, with its folders settled.
        dataset: The prepared data.
        table: The pre-trained item table.
        setup: What a client of such a run would be told.
    """

    config: RunConfig
    dataset: Dataset
    table: BaseTable
    setup: Setup

    @staticmethod
    def read(config: RunConfig, cache_dir: Path, watcher: Watcher) -> World:
        """Read the data and make the base table, as a run would. Raises FedrecError as that would."""
        progress = Progress(watcher)
        watcher.stage(f"reading {config.dataset.name}")
        dataset = load(cast(DatasetConfig, config.dataset), progress)
        watcher.data(dataset.report, dataset.name)
        for line in report.as_lines(dataset.report):
            log.info("%s", line)
        watcher.stage("base table from item text")
        table = base_table(config, dataset, cache_dir, progress)
        eligible = content_digest(pack_eligible(dataset.eligible, len(dataset.catalogue)))
        setup = make_setup(config, len(dataset.catalogue), dataset.catalogue.digest, eligible, None)
        return World(config, dataset, table, whole(setup))

    @cached_property
    def secret(self) -> int:
        """The secret root of such a simulation: of users' keys and negatives."""
        return simulation_secret(self.setup.seed)

    @cached_property
    def users(self) -> LocalUsers:
        """All users."""
        everyone = np.arange(self.dataset.interactions.users)
        return LocalUsers(self.dataset.interactions, everyone, self.secret, validation=self.setup.validation)

    @cached_property
    def sampler(self) -> NegativeSampler:
        """Draws among the items that may be recommended."""
        return NegativeSampler(self.dataset.eligible)

    @cached_property
    def model(self) -> Model:
        """The model of the run's last phase."""
        return models_of(self.setup)[-1]

    @cached_property
    def recipe(self) -> Recipe:
        """The run's recipe."""
        made: Recipe = registry.optims.get(self.config.optim.name)(self.config.optim, self.model.backbone.advice)
        return made

    @cached_property
    def engine(self) -> CohortEngine:
        """The run's engine, without noise or codec, for nothing is sent."""
        return CohortEngine(self.recipe, self.sampler, plain_stages(_NO_LIMITS), self.config.pairs_at_once)

    def start(self, counts: torch.Tensor | None) -> GlobalModel:
        """The model at its start, over the pre-trained table: there is no warm-up.

        Args:
            counts: Users per item [items], for a backbone that wants them; None: 1 for every item.
        """
        seed, phase = self.setup.seed, self.setup.phases[-1].name
        shared = self.model.backbone.init_shared(generator(seed, "shared"))
        texts = text_tensors(self.config, self.dataset.catalogue)
        rng = generator(seed, "embedding", phase)
        trainable, frozen = self.model.init(self.table.table, shared, rng, counts, texts)
        return GlobalModel(self.model, trainable, frozen)

    def private(self, cohort: Cohort) -> Tensors:
        """The users' private tensors [users, ...] at their start."""
        return self.model.backbone.init_private(self.setup.seed, cohort.keys)

    def sums(
        self, model: GlobalModel, private: Tensors, slots: np.ndarray, of: HeldOut, after: int
    ) -> dict[str, float]:
        """Sums of the metrics over the users in `slots`, ranked as their devices would do it after round `after`.

        Private tensors [users in `slots`, ...], or those at their start if the recipe's start anew, are first solved on
        the history that the split lets them know.
        """
        cohort, positives = self.users.held_out(slots, of)
        if self.recipe.private_anew:
            private = self.private(cohort)
        private = self.engine.solve(model, cohort, private, derive(self.secret, "solve", of, after))
        sane = np.flatnonzero(all_finite(private, len(cohort)).numpy())
        cohort, positives = cohort.select(sane), positives[sane]
        private = {name: tensor[torch.from_numpy(sane)] for name, tensor in private.items()}
        setup = self.setup
        protocol = RankingProtocol(setup.ks, self.sampler, setup.sampled_negatives, derive(setup.seed, "sampled", of))
        return rank_users(model, cohort, positives, private, protocol)

    def means(self, sums: dict[str, float], of: HeldOut) -> dict[str, float]:
        """The metrics of a split's users from their sums, with the counts that a run reports."""
        asked, users = len(self.users.evaluated(of)), int(sums.get("users", 0))
        if asked and not users:
            raise FedrecError("the model has diverged, no user can be ranked: lower the learning rate")
        return mean_metrics(sums) | {"users": users, "cold_users": 0, "diverged_users": asked - users}
