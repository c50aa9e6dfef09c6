"""The contract of an item embedding: pure maths over named tensors, on gathered rows, never over a whole table.

An embedding has no state. Its tensors come in four kinds: `tables` are addressed by row (a user reads, trains and
moves only the rows of the items it touches), `dense` tensors are small and whole, `frozen` ones are made once, sent
once and never trained, and `kept` ones stay on the server, for items that come later. `embed` sees the rows that were
gathered, so that the same line serves one user (`[items, ...]`) and a cohort of users, each with private copies
(`[users, items, ...]`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedrec.core.registry import MemberConfig
from fedrec.core.tensors import Spec, TableSpec, Tensors, TensorSpec
from fedrec.data.statistics import Parts


class ItemEmbedding(ABC):
    """A member of the family `embedding`, for a catalogue of `n_items` rows and vectors of `dim` numbers."""

    config_class: ClassVar[type[MemberConfig]]

    uses_base: bool
    """Whether the frozen base table is added to (and so must be on the device); a full table replaces it."""

    counts: ClassVar[bool] = False
    """Whether its tables are no parameters but statistics: users do not train them, and say what `counted` has."""

    def __init__(self, config: Any, n_items: int, dim: int) -> None:
        self.config = config
        self.n_items = n_items
        self.dim = dim

    @property
    @abstractmethod
    def tables(self) -> Mapping[str, TableSpec]:
        """Trained and sent, row-addressable: name -> [rows, width]."""

    @property
    def dense(self) -> Mapping[str, TensorSpec]:
        """Trained and sent, small and whole."""
        return {}

    @property
    def frozen(self) -> Spec:
        """Made by the server, sent once, never trained (semantic codes, hash functions).

        One that is a `TableSpec` is read by row, as tables are: `rows` names its rows, and `embed` gets them gathered.
        """
        return {}

    @property
    def kept(self) -> Spec:
        """Made by the server, never sent: what `grow` needs of how the frozen tensors were made."""
        return {}

    @abstractmethod
    def init(self, base: Tensor, rng: torch.Generator) -> Tensors:
        """Initial tables, dense, frozen and kept tensors, from the pre-trained base table [n_items, dim].

        With `uses_base` the initial output is exactly the base: the compressed part starts at zero.
        """

    @abstractmethod
    def rows(self, items: Tensor, frozen: Tensors) -> Mapping[str, Tensor]:
        """For item ids [...], the rows that they read of each table, also of frozen ones: name -> int64 [..., r]."""

    @abstractmethod
    def embed(self, rows: Tensors, dense: Tensors, frozen: Tensors, base_rows: Tensor | None) -> Tensor:
        """Item vectors [..., items, dim].

        Args:
            rows: For each table, also frozen ones, the gathered rows [..., items, r, width].
            dense: Dense tensors, each with the leading dimensions of the rows (one copy a user) or with none.
            frozen: Frozen tensors.
            base_rows: Gathered rows of the base table [..., items, dim]; None without `uses_base`.
        """

    def counted(self, offsets: NDArray[np.int64], items: NDArray[np.int64]) -> Mapping[str, Parts]:
        """What each user says of the rows of tables of one column, by the tables' names.

        Of an embedding that `counts`. Each user's part is scaled to one length, the same for all, and the mean over the
        users is the table.

        Args:
            offsets: int64 [users + 1]; user u has the history `items[offsets[u]:offsets[u + 1]]`.
            items: int64, catalogue rows.
        """
        raise NotImplementedError(f"{type(self).__qualname__} counts nothing")

    def frozen_problem(self, frozen: Tensors) -> str | None:
        """What is wrong with frozen tensors of the right names, shapes and types that came over the network.

        None: `rows` names rows that there are, whatever their numbers. An embedding of which that is not true overrides
        it.
        """
        return None

    def restart(self, rng: torch.Generator) -> Tensors | None:
        """Tables and dense tensors with which training goes on when the correction has been merged into the base table.

        They correct nothing yet, as those of `init`; what is frozen stays. None: this embedding does not merge. It
        should not if corrections of its kind add up to one of the same kind, for then nothing is won by it.
        """
        return None

    def grow(self, tensors: Tensors, vectors: Tensor) -> Tensors:
        """Tables, dense and frozen tensors of a catalogue with m more items, which nobody has trained on.

        Here whatever has a row an item gets rows of zero, which with `uses_base` is to correct nothing.

        Args:
            tensors: All four kinds, of this catalogue, at any point of the training.
            vectors: [m, dim], what the new items' rows of the base table are.
        """
        grown = type(self)(self.config, self.n_items + len(vectors), self.dim)
        made = {}
        for name, spec in {**grown.tables, **grown.dense, **grown.frozen}.items():
            before = tensors[name]
            new = spec.shape[0] - len(before) if spec.shape != before.shape else 0
            made[name] = torch.cat([before, before.new_zeros(new, *spec.shape[1:])]) if new else before
        return made

    def report(self, frozen: Tensors) -> Mapping[str, float]:
        """Facts about the start that a reader of a run wants to know, by name: collisions, use of codes."""
        return {}
