"""Training with a middle that is the server's, stage by stage; the users' steps are those of the oracle.

Nothing is kept from one stage to the next: what a user reads in a round is a function of the round's seed, and hidden
states of the bottom are worked out again where their gradients have come.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from client_app.homes.users import Cohort
from client_app.training.contexts import Reading, reading, whole
from client_app.training.engine import GlobalModel
from client_app.training.oracle import OracleEngine
from fedrec.backbones.split import HIDDEN, Split
from fedrec.core.errors import PacketError
from fedrec.core.tensors import Tensors, spec_of
from fedrec.optim.gradient import copies, descended, single_step
from fedrec.stages.contributions import Contributions
from fedrec.stages.draws import Draws
from fedrec.wire.updates import NodeUpdate


@dataclass
class Judged:
    """What users made of the hidden states that came back.

    Attributes:
        update: The sum of what they give of the upper part.
        gradients: Of the hidden states above the middle, one tensor [states, width] for each of the users' contexts.
            They are of a user's sum over its contexts, and zero for who does not count.
        weights: float64 [users], what each counts in the mean: 0 for who does not.
    """

    update: NodeUpdate
    gradients: list[Tensor]
    weights: NDArray[np.float64]


class SplitEngine(OracleEngine):
    """One user after the other, in three stages."""

    def below(self, model: GlobalModel, cohort: Cohort, seed: int) -> list[Tensor]:
        """Stage 1: hidden states [states, width] below the middle, of each context of each user.

        Args:
            model: Of what is trained it needs the lower part alone.
            cohort: The chosen users and their training items.
            seed: Secret seed of the round, the same in all stages.
        """
        split, read = _split(model), reading(cohort, self.recipe, seed)
        with torch.no_grad():
            return [hidden for user in range(len(cohort)) for hidden in _below(model, split, read, user)]

    def states(self, model: GlobalModel, cohort: Cohort, seed: int) -> list[int]:
        """How many hidden states each context of each user has in all stages, whatever part of the model is here."""
        return _states(model, reading(cohort, self.recipe, seed))

    def above(self, model: GlobalModel, cohort: Cohort, hidden: Sequence[Tensor], seed: int) -> Judged:
        """Stage 2: the users' losses, and the gradients of all above the middle.

        Args:
            model: Of what is trained it needs the upper part alone.
            cohort: As in stage 1.
            hidden: What has become of the hidden states of stage 1.
            seed: As in stage 1.
        """
        read, draws = reading(cohort, self.recipe, seed), Draws(seed, self.fresh)
        update = self.stages.empty(model.trainable, len(cohort))
        gradients, weights = [torch.zeros_like(tensor) for tensor in hidden], np.zeros(len(cohort))
        for user in range(len(cohort)):
            one, known = read.select(np.array([user])), cohort.part(user, user + 1).items
            places = range(user * read.contexts, (user + 1) * read.contexts)
            own = [copies({HIDDEN: hidden[place]}) for place in places]
            trainable = {name: tensor.clone() for name, tensor in model.trainable.items()}
            loss = self._run(self.recipe.local_steps(), model, one, known, trainable, own, seed)
            if loss is None:
                update.dropped["no_negatives"] += 1
                continue
            found = [tensor.grad for tensors in own for tensor in tensors.values() if tensor.grad is not None]
            if not all(bool(gradient.isfinite().all()) for gradient in found):
                loss = math.nan
            delta = {name: (tensor.detach() - model.trainable[name])[None] for name, tensor in trainable.items()}
            losses = torch.tensor([loss], dtype=torch.float64)
            before, spec = update.weight, spec_of(model.trainable)
            self.stages.add(Contributions.of(spec, one.keys, {}, delta, one.examples, losses), update, draws)
            weights[user] = update.weight - before
            if weights[user]:
                for place, gradient in zip(places, found, strict=True):
                    gradients[place] = gradient
        return Judged(update, gradients, weights)

    def under(
        self,
        model: GlobalModel,
        cohort: Cohort,
        gradients: Sequence[Tensor],
        seed: int,
    ) -> Tensors:
        """Stage 3: the weighted sum of the users' changes of the lower part.

        Who did not count in stage 2 gets gradients of zero, and changes nothing.

        Args:
            model: As in stage 1.
            cohort: As in stage 1.
            gradients: Of the hidden states of stage 1, as `Judged` has those above the middle.
            seed: As in stage 1.

        Raises PacketError (`too_large`) if the gradients make a user's change longer than any update may be.
        """
        step = single_step(self.recipe)
        assert step is not None, "the recipe was checked"
        split, read, draws = _split(model), reading(cohort, self.recipe, seed), Draws(seed, self.fresh)
        total, spec = self.stages.addition.zeros(model.trainable, len(cohort)), spec_of(model.trainable)
        for user in range(len(cohort)):
            trainable = copies(model.trainable)
            outputs = _below(GlobalModel(model.model, trainable, model.frozen), split, read, user)
            places = slice(user * read.contexts, (user + 1) * read.contexts)
            delta = descended(trainable, list(outputs), gradients[places], read.contexts, step)
            changes = {name: tensor[None] for name, tensor in delta.items()}
            nothing = torch.zeros(1, dtype=torch.float64)
            one = Contributions.of(spec, read.keys[[user]], {}, changes, read.examples[[user]], nothing).with_norms()
            counted = self.stages.limits.on_devices(one, draws)
            if not bool(counted.kept.all()):
                raise PacketError(
                    "too_large",
                    f"the gradients below the middle make a change of norm {float(one.norms):.3g} of a user's update; "
                    f"federation.max_update_norm={self.stages.max_norm:g} is the limit",
                )
            self.stages.addition.add(counted, total, draws)
        return total


def read_all(model: GlobalModel, cohort: Cohort) -> list[Tensor]:
    """Hidden states [states, width] below the middle, of each user's whole history."""
    split, read = _split(model), whole(cohort)
    with torch.no_grad():
        return [hidden for user in range(len(cohort)) for hidden in _below(model, split, read, user)]


def states_of_all(model: GlobalModel, cohort: Cohort) -> list[int]:
    """How many hidden states each user's whole history has."""
    return _states(model, whole(cohort))


def _states(model: GlobalModel, read: Reading) -> list[int]:
    split, frozen = _split(model), model.model.of_backbone(model.frozen)
    return [split.states(frozen, items) for user in range(len(read)) for items in _fitted(read, user)]


def _split(model: GlobalModel) -> Split:
    split = model.model.backbone.split
    assert split is not None, "the backbone is split"
    return split


def _below(model: GlobalModel, split: Split, read: Reading, user: int) -> Iterator[Tensor]:
    """Of each of a user's contexts."""
    shared, frozen = model.model.shared(model.trainable), model.model.of_backbone(model.frozen)
    for items in _fitted(read, user):
        yield split.below(shared, frozen, items)


def _fitted(read: Reading, user: int) -> Iterator[Tensor]:
    """The items of each of a user's contexts that are read."""
    for run in range(user * read.contexts, (user + 1) * read.contexts):
        start = read.runs.offsets[run]
        yield torch.from_numpy(read.runs.items[start : start + read.fitted[run]])
