"""The contract of a training engine: chosen users' histories and private tensors in, one node update out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from client_app.homes.users import Cohort
from fedrec.backbones.base import Backbone
from fedrec.codecs.base import Codec
from fedrec.codecs.rounding import RoundingCodec
from fedrec.core.errors import ConfigError
from fedrec.core.rng import counter_bits, derive
from fedrec.core.tensors import Tensors
from fedrec.data.negatives import NegativeSampler
from fedrec.optim.base import LocalStep, Recipe
from fedrec.privacy.base import PrivacyMechanism
from fedrec.wire.updates import NodeUpdate
from peft_embeddings.model import Model


@dataclass(frozen=True)
class GlobalModel:
    """The model as the server sent it: what is trained, and what is frozen (the base table under a correction).

    The device of its tensors is where users train.
    """

    model: Model
    trainable: Tensors
    frozen: Tensors

    def cpu(self) -> GlobalModel:
        """The same in the memory of the processor; tensors that are there already are not copied."""
        there = [{name: tensor.cpu() for name, tensor in part.items()} for part in (self.trainable, self.frozen)]
        return GlobalModel(self.model, *there)

    def item_vectors(self, trainable: Tensors, items: Tensor) -> Tensor:
        """Vectors [..., dim] of item ids [...] with `trainable` in the place of the received tensors."""
        return self.model.item_vectors(trainable, self.frozen, items)


@dataclass(frozen=True)
class Limits:
    """The public rules of the average: the cap on a user's weight and on the norm of its delta."""

    weight_cap: int
    max_update_norm: float


class Trained(NamedTuple):
    """The node's update, the users' private tensors [users, ...] afterwards, and who was taken (bool [users])."""

    update: NodeUpdate
    private: Tensors
    taken: NDArray[np.bool_]


def all_finite(private: Tensors, users: int) -> Tensor:
    """Bool [users]: whose private tensors [users, ...], if there are any, are finite in every number."""
    sane = torch.ones(users, dtype=torch.bool)
    for tensor in private.values():
        sane = sane.to(tensor.device) & tensor.isfinite().flatten(1).all(1)
    return sane


def moving(steps: Sequence[LocalStep], backbone: Backbone) -> list[LocalStep]:
    """The steps that move anything: those of private tensors alone are for backbones that have some."""
    return [step for step in steps if step.shared or (step.private and backbone.private)]


def codec_seeds(seed: int, keys: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """uint64 [users]: the seed with which each user's update of a round is rounded, wherever that is done."""
    return counter_bits(derive(seed, "codec"), keys)


class Engine(ABC):
    """Trains users locally. What a user's training gives depends on nothing but the model, the user and the seeds."""

    def __init__(
        self,
        recipe: Recipe,
        sampler: NegativeSampler,
        privacy: PrivacyMechanism,
        limits: Limits,
        pairs_at_once: int = 65_536,
        codec: Codec | None = None,
    ) -> None:
        """An engine for one run.

        Args:
            recipe: Local steps and loss.
            sampler: Draws negatives.
            privacy: Changes each user's update.
            limits: What an update may be.
            pairs_at_once: Bounds the memory of an engine that trains several users at once.
            codec: A `RoundingCodec` rounds each user's update as the user's own packet would; exact ones change
                nothing.

        Raises:
            ConfigError: The codec is neither: an update would be rounded on a device of its own, and not beside others.
        """
        rounding = codec if isinstance(codec, RoundingCodec) else None
        if codec is not None and rounding is None and not codec.exact:
            raise ConfigError(
                [
                    f"codec={codec.config.name}: {type(codec).__qualname__} is not exact and does not derive from "
                    "RoundingCodec (fedrec/codecs/rounding.py), so no engine can round each user's update with it; "
                    "derive it from that, or say `exact = True` if what it decodes is what it encoded, to the bit"
                ]
            )
        self.recipe = recipe
        self.sampler = sampler
        self.privacy = privacy
        self.limits = limits
        self.pairs_at_once = pairs_at_once
        self.codec = rounding

    @abstractmethod
    def train(self, model: GlobalModel, cohort: Cohort, private: Tensors, seed: int, rounded: bool = True) -> Trained:
        """One round of local training.

        Args:
            model: The global model; its tensors are not changed.
            cohort: The chosen users and their training items.
            private: Their private tensors [users, ...]; not changed.
            seed: Secret seed of the round, for negatives, noise and rounding.
            rounded: Whether a lossy codec rounds the updates here; not if the packet that carries them will.
        """

    @abstractmethod
    def solve(self, model: GlobalModel, cohort: Cohort, private: Tensors, seed: int) -> Tensors:
        """The private tensors [users, ...] after the recipe's solve steps on the histories; nothing shared moves."""
