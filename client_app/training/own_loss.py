"""The local training of users whose backbone has a loss of its own: nothing is scored, and no item moves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor
from typing_extensions import override

from client_app.training.copies import each
from client_app.training.history import SegmentedHistory
from client_app.training.local_training import LocalTraining
from fedrec.core.tensors import Tensors
from fedrec.optim.base import LocalStep
from fedrec.optim.losses import weighted_mean


class OwnLossTraining(LocalTraining):
    """The same steps, by `Backbone.losses` of the items that follow each user's history."""

    @override
    def _losses(self, number: int, step: LocalStep, places: Sequence[int], rows: Mapping[int, Tensors]) -> Tensor:
        model, items = self._model, self._items[0]
        history = SegmentedHistory(items, self._fixed_vectors(0), self._fitted, len(self._read.runs))
        whole = {name: each(tensor, self._read.contexts) for name, tensor in self.whole.items()}
        private = self._private

        def loss(mask: Tensor) -> Tensor:
            trainable = model.trainable | whole
            losses = model.model.losses(trainable, model.frozen, private, history, items, mask > 0)
            return weighted_mean(losses, mask)

        return self._losses_of(step, loss)
