"""No protection beyond what never leaves the device: updates are sent as they are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from typing_extensions import override

from fedrec.core.registry import MemberConfig, privacies
from fedrec.core.tensors import Spec, Tensors
from fedrec.privacy.base import PrivacyMechanism


@dataclass(frozen=True)
class NoPrivacyConfig(MemberConfig):
    """Nothing to choose."""

    name: Literal["none"]


@privacies.register("none")
class NoPrivacy(PrivacyMechanism):
    """Both hooks return what they are given."""

    config_class = NoPrivacyConfig
    changes_updates = False

    @override
    def protect_update(self, delta: Tensors, spec: Spec, seed: int) -> Tensors:
        return delta

    @override
    def protect_mean(self, mean_delta: Tensors, users: int, seed: int) -> Tensors:
        return mean_delta
