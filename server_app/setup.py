"""What a run starts from: the base table, and what every client is told."""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from federation.plan import plan_of
from fedrec.backbones.base import Backbone
from fedrec.config.schema import ROW_OF_GRADIENTS, RunConfig
from fedrec.core import registry
from fedrec.core.errors import ConfigError, DataError
from fedrec.core.rng import derive
from fedrec.core.tensors import Tensors, text_digest
from fedrec.data.split import HeldOut, evaluated
from fedrec.data.types import Catalogue, Dataset
from fedrec.groupings.base import Grouping
from fedrec.optim.base import Recipe
from fedrec.wire.item_labels import pack_labels
from fedrec.wire.protocol import (
    PROTOCOL_VERSION,
    PhaseSetup,
    Setup,
    SimulatedData,
)
from peft_embeddings.base_table import BaseTable, build_base_table, random_base_table
from peft_embeddings.encoders.base import Progress, TextEncoder
from peft_embeddings.model import models_of
from peft_embeddings.quantiser.kmeans import kmeans, nearest

log = logging.getLogger("fedrec")

_STARTS = 10
"""Of k-means, for the labels of items."""
_RANKED = 3
"""Interactions of a user who is ranked: one for validation, one for the test, and something to train on."""


def text_encoder(config: RunConfig) -> TextEncoder:
    """The encoder of item texts that the configuration names."""
    made: TextEncoder = registry.encoders.get(config.encoder.name)(config.encoder)
    return made


def base_table(config: RunConfig, dataset: Dataset, cache_dir: Path, progress: Progress) -> BaseTable:
    """The pre-trained item table that the configuration asks for."""
    start = config.base_table
    if start.start == "random":
        return random_base_table(len(dataset.catalogue), start.dim, start.norm, config.seed)
    table = build_base_table(
        dataset.catalogue,
        text_encoder(config),
        registry.reductions.get(config.reduction.name)(config.reduction),
        start.dim,
        start.norm,
        config.seed,
        cache_dir,
        progress,
    )
    log.info("base table: %d x %d, %d items without text", *table.table.shape, table.items_without_text)
    return table


def text_tensors(config: RunConfig, catalogue: Catalogue) -> Tensors:
    """What the backbone that the configuration names makes of the items' texts."""
    backbone: Backbone = registry.backbones.get(config.backbone.name)(config.backbone, config.base_table.dim)
    return backbone.init_texts(catalogue.sentences)


def require_rankable(dataset: Dataset, *, validated: bool) -> None:
    """Raise DataError if no user could ever be ranked: the run would train to its end and then have no result.

    `validated`: whether it is ranked at validation, too.
    """
    longest = int(np.diff(dataset.interactions.offsets).max(initial=0))
    if dataset.interactions.cuts is not None:
        splits: Sequence[HeldOut] = ("validation", "test") if validated else ("test",)
        for of in splits:
            if not evaluated(dataset.interactions, of=of).any():
                raise DataError(
                    f"dataset={dataset.name}: dataset.split=temporal leaves no user with an interaction for {of} and "
                    "one before: give a larger dataset.held_out, or dataset.split=leave_one_out"
                )
    elif longest < _RANKED:
        raise DataError(
            f"dataset={dataset.name}: no user has {_RANKED} interactions or more after preparation (the most are "
            f"{longest}), so nobody could be ranked: give data with longer histories, or filter less "
            "(dataset.min_rating, dataset.k_core)"
        )


def labels_wanted(config: RunConfig) -> int:
    """How many public labels of items the groups go by; 0: none."""
    grouping: Grouping = registry.groupings.get(config.grouping.name)(config.grouping, config.seed)
    return grouping.labels


def item_labels(config: RunConfig, table: Tensor) -> Tensors | None:
    """The public labels of items, as they are sent: of each the nearest of the centroids of a base table [items, dim].

    None where users are not grouped by them. The centroids are those of k-means, drawn from the run's seed: of several
    starts the one whose vectors are nearest to their centroids, for some starts leave a centroid with hardly any.
    """
    wanted = labels_wanted(config)
    if not wanted:
        return None
    rng = torch.Generator().manual_seed(derive(config.seed, "centroids"))
    started = (kmeans(table, wanted, rng) for _ in range(_STARTS))
    centroids = min(started, key=lambda found: float((table - found[nearest(table, found)]).square().sum()))
    labels = nearest(table, centroids)
    log.info("labels of items: %s of each", ", ".join(map(str, torch.bincount(labels, minlength=wanted).tolist())))
    return pack_labels(labels)


def make_setup(
    config: RunConfig,
    n_items: int,
    catalogue: str,
    eligible: str,
    simulation: SimulatedData | None,
    item_labels: str = "",
) -> Setup:
    """What every client is told about a run.

    Args:
        config: The whole configuration.
        n_items: Rows of the catalogue.
        catalogue: The catalogue's digest.
        eligible: The digest of the list of eligible items, as it is sent.
        simulation: Where a simulated node finds its users' data.
        item_labels: The digest of the labels of items, as they are sent; empty where users are not grouped by them.

    Raises ConfigError if nobody's update could ever count.
    """
    phases = plan_of(config)
    setup = Setup(
        protocol=PROTOCOL_VERSION,
        run_key=text_digest(str(config.run_id)),
        seed=config.seed,
        n_items=n_items,
        dim=config.base_table.dim,
        catalogue=catalogue,
        eligible=eligible,
        phases=tuple(PhaseSetup(phase.name, dataclasses.asdict(phase.embedding)) for phase in phases),
        backbone=config.backbone.told(),
        optim=config.optim.told(),
        codec=dataclasses.asdict(config.codec),
        privacy=dataclasses.asdict(config.privacy),
        grouping=config.grouping.told(),
        ks=config.evaluation.ks,
        sampled_negatives=config.evaluation.sampled_negatives,
        validation=config.evaluation.validation,
        weight_cap=config.federation.weight_cap,
        max_update_norm=config.federation.max_update_norm,
        max_row_norm=_row_norm(config),
        engine=config.engine,
        pairs_at_once=config.pairs_at_once,
        simulation=simulation,
        network=config.network.told(),
        uplink=dataclasses.asdict(config.uplink),
        downlink=dataclasses.asdict(config.downlink),
        aggregation=dataclasses.asdict(config.aggregation),
        item_labels=item_labels,
    )
    if refused := {why for model in models_of(setup) if (why := setup.stages.refusal(model.trainable))}:
        raise ConfigError(sorted(refused))
    return setup


def _row_norm(config: RunConfig) -> float | Literal["auto"] | None:
    """How far a user may move a row, as clients are told: in a deployment there is a limit whatever the recipe."""
    limit = config.federation.max_row_norm
    if limit != "auto" or config.runtime == "simulation":
        return limit
    backbone = registry.backbones.get(config.backbone.name)(config.backbone, config.base_table.dim)
    recipe: Recipe = registry.optims.get(config.optim.name)(config.optim, backbone.advice)
    return ROW_OF_GRADIENTS if math.isinf(recipe.row_reach(1)) else limit
