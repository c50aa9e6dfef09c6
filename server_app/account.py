"""A run's privacy: its configuration with what follows from the plan, and its ledger, if it keeps a promise."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from fedrec.config.schema import RunConfig
from fedrec.core import registry
from fedrec.privacy.accounting import Sampled, epsilon_of
from fedrec.stages.base import Release
from server_app.ledger import LEDGER, Ledger


def settled(config: RunConfig, users: int) -> RunConfig:
    """The configuration with everything of its privacy mechanism that follows from the plan and the number of users."""
    mechanism = registry.privacies.get(config.privacy.name)
    return dataclasses.replace(config, privacy=mechanism.settled(config, users))


def ledger_of(config: RunConfig, folder: Path) -> Ledger | None:
    """The ledger of a run of a settled configuration; None if it promises nothing."""
    privacy: Any = config.privacy
    strategy: Any = config.strategy
    if _release(config) is None:
        return None
    return Ledger(folder / LEDGER, config.federation.fraction, privacy.epsilon, privacy.delta, strategy.rounds)


def planned(config: RunConfig) -> dict[str, Any] | None:
    """What a run of a settled configuration will have given away at its end; None if it promises nothing."""
    release = _release(config)
    if release is None:
        return None
    privacy: Any = config.privacy
    strategy: Any = config.strategy
    sampled = Sampled(release.noise_multiplier, config.federation.fraction)
    return {
        "epsilon": epsilon_of({sampled: strategy.rounds}, privacy.delta),
        "delta": privacy.delta,
        "unit": "user, add or remove one",
        "sampling": config.federation.fraction,
        "releases": strategy.rounds,
        "noise_multiplier": release.noise_multiplier,
    }


def accounts(config: RunConfig) -> bool:
    """Whether a configuration's mechanism of privacy accounts for what a run gives away."""
    return hasattr(config.privacy, "delta")


def _release(config: RunConfig) -> Release | None:
    made = registry.privacies.get(config.privacy.name)(config.privacy)
    release: Release | None = made.event(1) if accounts(config) else None
    return release
