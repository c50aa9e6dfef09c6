"""No protection beyond what never leaves the device: updates are sent as they are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fedrec.core.registry import MemberConfig, privacies
from fedrec.privacy.base import PrivacyMechanism


@dataclass(frozen=True)
class NoPrivacyConfig(MemberConfig):
    """Nothing to choose."""

    name: Literal["none"]


@privacies.register("none")
class NoPrivacy(PrivacyMechanism):
    """A stage that does nothing, on devices or on the server."""

    config_class = NoPrivacyConfig
