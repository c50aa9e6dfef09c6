"""Checks that look at more than one value: they run once every value on its own is legal."""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from typing import cast

from fedrec.config.schema import RunConfig
from fedrec.config.start import after_counting, counting_problems
from fedrec.core.registry import FAMILIES, backbones, datasets
from fedrec.datasets.base import DatasetConfig, DatasetSource

_FOLDER_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")


def check(config: RunConfig) -> list[str]:
    """All problems of a configuration whose values are each legal; a line for each, none if it can run.

    The chosen member of any family contributes by a class method `problems(config: RunConfig) -> list[str]`.
    """
    problems: list[str] = []
    double = sorted(k for k, count in Counter(config.evaluation.ks).items() if count > 1)
    if double:
        problems.append(f"evaluation.ks={list(config.evaluation.ks)}: {double} is given twice; give each cut-off once")
    if config.run_id is not None and not _FOLDER_NAME.fullmatch(config.run_id):
        problems.append(
            f"run_id={config.run_id}: expected the name of a folder (letters, digits, '_', '-' and '.', "
            f"not a '.' or '-' first), got the text {config.run_id!r}"
        )
    gpus = config.simulation.gpus_per_worker
    if gpus > 1 and gpus != int(gpus):
        problems.append(
            f"simulation.gpus_per_worker={gpus}: expected a fraction of one GPU or a whole number, for a worker cannot "
            "have a part of a second one"
        )
    if config.runtime == "deployment":
        problems += _of_a_deployment(config)
    counting = counting_problems(config)
    problems += counting
    planned = config if counting else after_counting(config)
    for field in dataclasses.fields(config):
        if field.name in FAMILIES:
            member = FAMILIES[field.name].get(getattr(config, field.name).name)
            contribute = getattr(member, "problems", None)
            if contribute is not None:
                problems += contribute(planned if field.name == "strategy" else config)
    return problems


def _of_a_deployment(config: RunConfig) -> list[str]:
    """What cannot be done where nobody sees more than one site's interactions."""
    dataset = cast(DatasetConfig, config.dataset)
    if datasets.get(dataset.name).list_items is DatasetSource.list_items:
        return [
            f"dataset={dataset.name}: with runtime=deployment nobody's interactions are read, and it has no list of "
            "items apart from them; give the items as a table, dataset=table dataset.item_table=..."
        ]
    problems: list[str] = []
    backbone = backbones.get(config.backbone.name)(config.backbone, config.base_table.dim)
    if (counting := backbone.item_counting) is not None and counting.epsilon is None:
        problems.append(
            f"backbone={config.backbone.name}: its items are counted without noise, and with runtime=deployment they "
            "are real users'; give an epsilon"
        )
    if dataset.items == "rated":
        problems.append("dataset.items=rated: with runtime=deployment nobody knows which items are rated; give listed")
    if dataset.split != "leave_one_out":
        problems.append(
            f"dataset.split={dataset.split}: with runtime=deployment nobody knows when everybody's interactions were; "
            "give leave_one_out"
        )
    if dataset.k_core:
        problems.append(
            f"dataset.k_core={dataset.k_core}: with runtime=deployment nobody sees who else has an item; give 0"
        )
    if dataset.min_rating is not None:
        problems.append(
            f"dataset.min_rating={dataset.min_rating}: with runtime=deployment the sites read the ratings; give null, "
            "and min-rating in each node's configuration"
        )
    return problems
