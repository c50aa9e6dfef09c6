"""The task that all benchmarks share: FedMF with d = 32 and BPR on the data of a store, at the level of the engine."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from client_app.answers.node import ENGINES
from client_app.homes.users import Cohort
from client_app.training.engine import Engine, GlobalModel
from fedrec.config.describe import load_member
from fedrec.core import registry
from fedrec.core.rng import counter_bits, generator
from fedrec.core.tensors import Tensors
from fedrec.data import split
from fedrec.data.negatives import NegativeSampler
from fedrec.data.planted import World
from fedrec.data.store import open_store, write_store
from fedrec.data.types import Interactions
from fedrec.optim.base import Recipe
from fedrec.stages.chain import Stages, plain_stages
from fedrec.stages.limits import Limits
from peft_embeddings.model import Model

DIM = 32
LIMITS = Limits(200, 1000.0)


@dataclass(frozen=True)
class Task:
    """One data set and one model.

    Attributes:
        interactions: The users' histories, memory-mapped.
        eligible: Rows that may be negatives.
        model: The global model.
        recipe: What a user does in a round (two local steps of Adam on everything, as in `conf/optim/paper.yaml`).
    """

    interactions: Interactions
    eligible: NDArray[np.int64]
    model: GlobalModel
    recipe: Recipe

    @property
    def sampler(self) -> NegativeSampler:
        """Draws among the eligible items."""
        return NegativeSampler(self.eligible)

    def engine(self, name: str = "cohort", pairs_at_once: int | None = None, stages: Stages | None = None) -> Engine:
        """A training engine by its name, with the limits alone if it is given no stages."""
        made = ENGINES[name](self.recipe, self.sampler, stages or plain_stages(LIMITS))
        if pairs_at_once is not None:
            made.pairs_at_once = pairs_at_once
        return made

    def cohort(self, size: int, seed: int = 0) -> Cohort:
        """Training histories of `size` users; where the data has fewer, more keys share a history."""
        everybody = self.interactions.users
        rng = np.random.default_rng(seed)
        users = rng.permutation(everybody)[:size] if size <= everybody else np.arange(size) % everybody
        histories = split.histories(self.interactions, "train", np.sort(users))
        keys = counter_bits(seed, np.arange(size))
        return Cohort(keys, histories.offsets, histories.items.astype(np.int64))

    def private(self, cohort: Cohort) -> Tensors:
        """Initial private tensors of a cohort."""
        dtype = next(iter(self.model.trainable.values())).dtype
        return {n: t.to(dtype) for n, t in self.model.model.backbone.init_private(0, cohort.keys).items()}


def load(
    data: dict[str, Any],
    embedding: str = "full",
    backbone: str = "fedmf",
    dtype: torch.dtype = torch.float32,
    optim: str = "paper",
) -> Task:
    """The task on prepared data, with a random base table and every trained tensor away from zero."""
    items = int(data["items"])
    made_backbone = registry.backbones.get(backbone)(load_member("backbone", backbone), DIM)
    model = Model.of(load_member("embedding", embedding), made_backbone, items)
    rng = generator(0, "benchmark")
    base = torch.randn(items, DIM, generator=rng) / DIM**0.5
    trainable, frozen = model.init(base, made_backbone.init_shared(rng), rng)
    moved = {
        name: (tensor + 0.01 * torch.randn(tensor.shape, generator=rng)).to(dtype) for name, tensor in trainable.items()
    }
    cast = {name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in frozen.items()}
    return Task(
        open_store(Path(data["store"])),
        np.load(data["eligible"]),
        GlobalModel(model, moved, cast),
        registry.optims.get(optim)(load_member("optim", optim), made_backbone.advice),
    )


def make_synthetic(cache: str, users: int, items: int, history: float) -> dict[str, Any]:
    """Draw a synthetic data set and store it: planted taste, popularity as a power law, lengths as a log-normal."""
    folder = Path(cache)
    folder.mkdir(parents=True, exist_ok=True)
    world = World.make(0, items, topics=20, styles=2, taste=0.9, skew=0.7)
    who, what, _ = world.interactions(users, history)
    offsets = np.concatenate(([0], np.cumsum(np.bincount(who, minlength=users)))).astype(np.int64)
    digits = len(str(users))
    names = [f"u{user:0{digits}d}" for user in range(users)]
    store = write_store(Interactions(names, offsets, what.astype(np.int32)), folder)
    eligible = folder / f"eligible-{items}.npy"
    np.save(eligible, np.arange(items, dtype=np.int64))
    return {"store": str(store), "eligible": str(eligible), "items": items, "interactions": len(what)}
