"""The rows that a privacy mechanism adds to the updates of a chunk of users, without any user's whole table."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from client_app.training.copies import Deltas
from fedrec.privacy.base import RowAdding


def added_rows(privacy: RowAdding, name: str, table: Tensor, deltas: Sequence[Deltas], seeds: Sequence[int]) -> Deltas:
    """What the mechanism adds to one table.

    Args:
        privacy: The mechanism.
        name: The table's, as it travels.
        table: The received table [rows, width].
        deltas: What the users changed: each touched row of a user has other than zeros in one place only.
        seeds: Of each user.
    """
    size = len(table)
    owner, rows, changes = _touched(deltas, size)
    users = torch.arange(len(seeds) + 1, device=owner.device)
    bounds = torch.searchsorted(owner, users).tolist()
    added = [
        privacy.added_rows(name, size, rows[start:end], changes[start:end], seed)
        for start, end, seed in zip(bounds, bounds[1:], seeds, strict=False)
    ]
    counts = torch.tensor([len(of_user) for of_user, _ in added], device=owner.device)
    return Deltas(
        torch.repeat_interleave(users[:-1], counts),
        torch.cat([of_user for of_user, _ in added])[:, None],
        torch.cat([values for _, values in added])[:, None],
    )


def _touched(deltas: Sequence[Deltas], size: int) -> tuple[Tensor, Tensor, Tensor]:
    """All (user, row, change) where the change is not zero, in the order of users and rows."""
    owners, rows, changes = [], [], []
    for block in deltas:
        values = block.values.flatten(0, 1)
        hit = torch.nonzero((values != 0).any(-1)).flatten()
        owners.append(block.owner.repeat_interleave(block.rows.shape[1]).index_select(0, hit))
        rows.append(block.rows.flatten().index_select(0, hit))
        changes.append(values.index_select(0, hit))
    owner, row = torch.cat(owners), torch.cat(rows)
    order = torch.argsort(owner * size + row)
    return owner[order], row[order], torch.cat(changes).index_select(0, order)
