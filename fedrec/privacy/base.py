"""The contract of a privacy mechanism: one hook per user, one on the server."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar, final

import torch
from torch import Tensor
from typing_extensions import override

from fedrec.core.registry import MemberConfig
from fedrec.core.tensors import Spec, TableSpec, Tensors


class PrivacyMechanism(ABC):
    """A member of the family `privacy`; `seed` arguments come from the secret root, never from the public run seed."""

    config_class: ClassVar[type[MemberConfig]]

    changes_updates: bool = True
    """Whether `protect_update` does anything; if not, engines need not form each user's whole delta."""

    def __init__(self, config: Any) -> None:
        self.config = config

    @abstractmethod
    def protect_update(self, delta: Tensors, spec: Spec, seed: int) -> Tensors:
        """What leaves the device of one user instead of its delta; a `TableSpec` in `spec` is addressed by row."""

    @abstractmethod
    def protect_mean(self, mean_delta: Tensors, users: int, seed: int) -> Tensors:
        """What the server applies instead of the mean over `users` users."""


class RowAdding(PrivacyMechanism):
    """A mechanism that leaves every number of an update as it is, and adds rows to its tables.

    It needs to see the touched rows alone, so that an engine need not form whole tables for each user.
    """

    @abstractmethod
    def added_rows(self, name: str, size: int, touched: Tensor, changes: Tensor, seed: int) -> tuple[Tensor, Tensor]:
        """What is added to one table of one user's update.

        Args:
            name: The table's, as it travels.
            size: Its rows.
            touched: int64 [n], the rows that the user changed, ascending; perhaps none.
            changes: [n, width], by how much.
            seed: As in `protect_update`.

        Returns:
            Other rows, each once (int64 [m]), and the changes that are sent for them [m, width].
        """

    @final
    @override
    def protect_update(self, delta: Tensors, spec: Spec, seed: int) -> Tensors:
        after = dict(delta)
        for name, table in delta.items():
            if isinstance(spec[name], TableSpec):
                touched = torch.nonzero((table != 0).any(1)).flatten()
                rows, changes = self.added_rows(name, len(table), touched, table[touched], seed)
                after[name] = table.index_copy(0, rows, changes)
        return after
