"""The contract of a privacy mechanism: one hook per user, one on the server."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

from fedrec.registry import MemberConfig
from fedrec.tensors import Tensors


class PrivacyMechanism(ABC):
    """A member of the family `privacy`; `seed` arguments come from the secret root, never from the public run seed."""

    config_class: ClassVar[type[MemberConfig]]

    changes_updates: bool = True
    """Whether `protect_update` does anything; if not, engines need not form each user's whole delta."""

    def __init__(self, config: Any) -> None:
        self.config = config

    @abstractmethod
    def protect_update(self, delta: Tensors, seed: int) -> Tensors:
        """What leaves the device of one user instead of its delta."""

    @abstractmethod
    def protect_mean(self, mean_delta: Tensors, users: int, seed: int) -> Tensors:
        """What the server applies instead of the mean over `users` users."""
