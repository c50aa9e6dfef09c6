"""Runs that begin with a statistic: the rounds that count it, and what does not go with them."""

from __future__ import annotations

import dataclasses
from typing import Any

from fedrec.config.schema import RunConfig
from fedrec.core.registry import backbones, codecs, downlinks, optims, privacies


def after_counting(config: RunConfig) -> RunConfig:
    """The configuration as a strategy sees it that plans what comes after the rounds that count."""
    if config.statistics.start == "none":
        return config
    strategy: Any = config.strategy
    return dataclasses.replace(
        config, strategy=dataclasses.replace(strategy, rounds=strategy.rounds - config.statistics.rounds)
    )


def counting_problems(config: RunConfig) -> list[str]:
    """Why users cannot be asked for a statistic in a run, one line each; none in one in which they are not."""
    starts = config.statistics.start != "none"
    if not starts and config.embedding.name != "popularity":
        return []
    asked = f"statistics.start={config.statistics.start}" if starts else "embedding=popularity"
    strategy: Any = config.strategy
    found = []
    if starts and config.statistics.rounds >= strategy.rounds:
        found.append(
            f"statistics.rounds={config.statistics.rounds} must be below strategy.rounds={strategy.rounds}, or nothing "
            "is trained; give more rounds, or embedding=popularity"
        )
    backbone = backbones.get(config.backbone.name)(config.backbone, config.base_table.dim)
    if backbone.split is not None:
        found.append(f"{asked}: the middle of backbone={config.backbone.name} is the server's; take another backbone")
    downlink = downlinks.get(config.downlink.name)
    if downlink(config.downlink, codecs.get(config.codec.name)(config.codec)).every:
        found.append(
            f"{asked}: with downlink={config.downlink.name} devices hold what is trained, and a statistic is a "
            "correction of a table that they hold as well; give downlink=dense"
        )
    if starts and config.embedding.name == "popularity":
        found.append(
            f"{asked}: embedding=popularity asks for the same again, and nothing is trained; give one of the two"
        )
    found += _of_privacy(config, asked)
    limit = config.federation.max_row_norm
    recipe = optims.get(config.optim.name)(config.optim, backbone.advice)
    # What somebody says weighs as little as one example: a limit of the sum is one of the change, too.
    reach = config.federation.weight_cap * recipe.row_reach(1) if limit == "auto" else limit
    if reach is not None and reach < 1:
        why = f"optim={config.optim.name} limits" if limit == "auto" else "it limits"
        found.append(
            f"federation.max_row_norm={limit}: {why} how far a user moves a row to {reach:.3g}, and what a user says "
            f"of one item may be 1 ({asked}); give federation.max_row_norm=1"
        )
    return found


def _of_privacy(config: RunConfig, asked: str) -> list[str]:
    """What a mechanism with a clip cannot do for parts that are all of one Euclidean norm, of at most 1."""
    privacy: Any = config.privacy
    noise = getattr(privacies.get(privacy.name), "kind", None)
    if noise is not None and noise.name == "laplace":
        return [
            f"privacy={privacy.name}: it bounds the sum of the sizes of an update's numbers, and what a user says has "
            f"a Euclidean norm ({asked}); take a mechanism with normal noise"
        ]
    if getattr(privacy, "clip", 0.0) > 1:
        return [
            f"privacy.clip={privacy.clip:g}: what a user says has a norm of at most 1, and a larger clip is more noise "
            f"for nothing ({asked}); give 1 or less"
        ]
    return []
