"""A run's privacy: its configuration with what follows from the plan, and its ledger, if it keeps a promise."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from fedrec.config.schema import RunConfig
from fedrec.core import registry
from fedrec.privacy.accounted import Accounted
from fedrec.privacy.accounting import Sampled, epsilon_of
from fedrec.privacy.base import PrivacyMechanism
from server_app.ledger import LEDGER, Ledger


def settled(config: RunConfig, users: int) -> RunConfig:
    """The configuration with everything of its privacy mechanism that follows from the plan and the number of users."""
    mechanism = registry.privacies.get(config.privacy.name)
    return dataclasses.replace(config, privacy=mechanism.settled(config, users))


def ledger_of(config: RunConfig, folder: Path) -> Ledger | None:
    """The ledger of a run of a settled configuration; None if it promises nothing."""
    privacy: Any = config.privacy
    strategy: Any = config.strategy
    made = _mechanism(config)
    if not isinstance(made, Accounted):
        return None
    fraction = config.federation.fraction
    return Ledger(folder / LEDGER, fraction, privacy.epsilon, privacy.delta, strategy.rounds, made.unit)


def planned(config: RunConfig) -> dict[str, Any] | None:
    """What a run of a settled configuration will have given away at its end.

    None if it promises nothing, and nobody may think that it does.
    """
    made = _mechanism(config)
    if not isinstance(made, Accounted):
        return stated(config, None)
    release = made.event(1)
    assert release is not None, "the configuration is settled"
    privacy: Any = config.privacy
    strategy: Any = config.strategy
    sampled = Sampled.of(release, config.federation.fraction)
    found = {
        "epsilon": epsilon_of({sampled: strategy.rounds}, privacy.delta),
        "delta": privacy.delta,
        "unit": made.unit,
        "sampling": sampled.sampling,
        "releases": strategy.rounds,
        "noise_multiplier": release.noise_multiplier,
    }
    return stated(config, found)


def accounts(config: RunConfig) -> bool:
    """Whether a configuration's mechanism of privacy accounts for what a run gives away."""
    return isinstance(_mechanism(config), Accounted)


def stated(config: RunConfig, account: dict[str, Any] | None) -> dict[str, Any] | None:
    """An account, if there is one, with what has to be said beside it."""
    caveat = _mechanism(config).caveat_in(config)
    if caveat is None:
        return account
    return {**(account or {"epsilon": None}), "caveat": caveat}


def _mechanism(config: RunConfig) -> PrivacyMechanism:
    made: PrivacyMechanism = registry.privacies.get(config.privacy.name)(config.privacy)
    return made
