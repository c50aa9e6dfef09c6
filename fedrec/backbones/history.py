"""A history as it stands, and where the latest items are among many users' histories."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fedrec.backbones.base import ItemSequence


@dataclass(frozen=True)
class PlainHistory:
    """The history of one user, or of users who have equally many items, as it stands.

    Attributes:
        items: int64 [..., n].
        vectors: [..., n, dim].
    """

    items: Tensor
    vectors: Tensor

    @property
    def length(self) -> Tensor:
        """As in `fedrec.backbones.base.History`."""
        return self.vectors.new_full(self.items.shape[:-1], self.items.shape[-1])

    def sum(self, weights: Tensor | None = None) -> Tensor:
        """As in `fedrec.backbones.base.History`."""
        vectors = self.vectors if weights is None else self.vectors * weights[self.items].unsqueeze(-1)
        return vectors.sum(-2)

    def total(self, weights: Tensor) -> Tensor:
        """As in `fedrec.backbones.base.History`."""
        return weights[self.items].sum(-1)

    def sequence(self, length: int | None = None) -> ItemSequence:
        """As in `fedrec.backbones.base.History`."""
        n = self.items.shape[-1]
        first = 0 if length is None else max(0, n - length)
        items = self.items[..., first:]
        return ItemSequence(items, self.vectors[..., first:, :], torch.ones_like(items, dtype=torch.bool))


def latest(first: Tensor, end: Tensor, length: int | None) -> tuple[Tensor, Tensor]:
    """Where the latest items of users are whose histories are written into one list.

    Args:
        first: int64 [users], where each history begins.
        end: int64 [users], where it ends (exclusive).
        length: How many items of each, at most; None: all.

    Returns:
        Places int64 [users, n], the oldest item first, and bool [users, n], False for padding, where the place is any
        that there is. n is 0 only if nobody has an item.
    """
    lengths = end - first
    if length is not None:
        lengths = lengths.clamp(max=length)
    n = int(lengths.max()) if len(lengths) else 0
    column = torch.arange(n, device=end.device)
    mask = column < lengths.unsqueeze(1)
    places = (end - lengths).unsqueeze(1) + column
    return places.where(mask, torch.zeros_like(places)), mask
