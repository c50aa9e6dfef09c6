"""Model, data and training of one client."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import softplus


class Net(nn.Module):
    """The item table; the user's vector stays on its device."""

    def __init__(self, items: int, dim: int) -> None:
        super().__init__()
        self.items = nn.Embedding(items, dim)
        nn.init.normal_(self.items.weight, std=dim**-0.5)


@lru_cache(maxsize=1)
def columns(store: str, eligible: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """All histories as memory maps, and the items that may be negatives: opened once in a process."""
    folder = Path(store)
    return (
        np.load(folder / "offsets.npy", mmap_mode="r"),
        np.load(folder / "items.npy", mmap_mode="r"),
        np.load(eligible, mmap_mode="r"),
    )


def history(store: str, eligible: str, user: int) -> tuple[Tensor, np.ndarray]:
    """What one user trains on (all but the two latest items), and the items it does not know."""
    offsets, items, listed = columns(store, eligible)
    start, end = int(offsets[user]), int(offsets[user + 1])
    known = np.asarray(items[start : max(start + 1, end - 2)]).astype(np.int64)
    return torch.from_numpy(known), np.setdiff1d(listed, known, assume_unique=True)


def train(net: Net, user: Tensor, positives: Tensor, unknown: np.ndarray, epochs: int, lr: float) -> float:
    """Full-batch epochs of Adam on BPR, with fresh negatives; the last loss."""
    optimiser = torch.optim.Adam([*net.parameters(), user], lr=lr)
    rng = np.random.default_rng()
    loss = torch.zeros(())
    for _ in range(epochs):
        negatives = torch.from_numpy(rng.choice(unknown, len(positives)))
        optimiser.zero_grad()
        loss = softplus((net.items(negatives) - net.items(positives)) @ user).mean()
        loss.backward()
        optimiser.step()
    return float(loss.detach())
