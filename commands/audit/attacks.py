"""What users in one hand send to lift an item into the lists of all others: a table of attacks.

Each follows a paper, in what its users know and which way they push, and differs from it in the same way: what they
push is brought to the largest size that the run's limits let through, for the papers' own federations have none.
Directions are those of a server that goes along the mean of what it is sent.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, softplus

from client_app.training.engine import GlobalModel
from fedrec.backbones.base import ScoreContext
from fedrec.core.tensors import Tensors

_POPULAR = 50
_LIST = 10
_FREE = 4.0
"""Norm of a row where rows have no limit: as large as an honest user's whole update ever is."""

_DENSE = 1.0
"""Norm of what is sent of a tensor that is no table, where it has no limit: about an honest user's."""

_FILLED = 30
"""Rows of each table that the attack `adaptive` moves beside those of its target."""


@dataclass(frozen=True)
class View:
    """What the attackers know in a round.

    Attributes:
        model: The model as they were sent it.
        target: The row of the item that they push.
        moved: [n_items], how far each item's vector has moved from round to round, so far.
        public: Gives some honest users' private tensors [users, ...], fitted to interactions that are public.
        limits: Of each table, the largest norm of a row of one attacker's update, before its weight, and of any other
            tensor of the whole; none: no limit.
    """

    model: GlobalModel
    target: int
    moved: Tensor
    public: Callable[[], Tensors]
    limits: Mapping[str, float]

    @property
    def popular(self) -> Tensor:
        """Items that are popular, for their vectors move most (PIECK); the first ones before anything has moved."""
        order = torch.argsort(self.moved, descending=True, stable=True)
        return order[order != self.target][:_POPULAR]


Attack = Callable[[View], Tensors]


def one_row(view: View) -> Tensors:
    """Towards the mean of what is popular, which all users have in common.

    After PipAttack's explicit boosting (Zhang et al., WSDM 2022), without its classifier of popularity.
    """
    return _along(view, lambda vectors, target: target @ vectors[view.popular].mean(0), wide=False)


def popularity(view: View) -> Tensors:
    """To be like the popular items.

    After PIECK-IPE (Zhang et al., ICDE 2024): popular items are told by how far they move. Its weights by
    rank are left out.
    """

    def alike(vectors: Tensor, target: Tensor) -> Tensor:
        return cosine_similarity(vectors[view.popular], target[None]).mean()

    return _along(view, alike, wide=False)


def surrogate(view: View) -> Tensors:
    """Above the last item in the lists of users whose interactions are public.

    After FedRecAttack (Rong et al., ICDE 2022): the users' vectors are fitted to public interactions of a few of them.
    The rows that its users add to hide among are left out, for nobody looks for them here.
    """
    return _along(view, _into_lists(view), wide=False)


def adaptive(view: View) -> Tensors:
    """The same by who knows the limits: what stands in the way is pushed down as well, each row as far as allowed."""
    return _along(view, _into_lists(view), wide=True)


ATTACKS: Mapping[str, Attack] = {
    "one_row": one_row,
    "popularity": popularity,
    "surrogate": surrogate,
    "adaptive": adaptive,
}
"""By name."""

FITTING = ("surrogate", "adaptive")
"""Those that fit the private tensors of users whose interactions are public."""


def _into_lists(view: View) -> Callable[[Tensor, Tensor], Tensor]:
    """How near the target is to the public users' lists, from all items' vectors and its own."""
    model = view.model.model
    users = view.public()

    def objective(vectors: Tensor, target: Tensor) -> Tensor:
        score = model.backbone.score
        shared, context = model.shared(view.model.trainable), ScoreContext(training=False)
        others = vectors.index_fill(0, torch.tensor([view.target]), 0.0)
        last = score(shared, users, others, context).topk(_LIST, dim=-1).values[..., -1]
        own = score(shared, users, target[None], context).squeeze(-1)
        return -softplus(last - own).mean()

    return objective


def _along(view: View, objective: Callable[[Tensor, Tensor], Tensor], *, wide: bool) -> Tensors:
    """One attacker's update along the gradient of an objective of all items' vectors and the target's.

    Args:
        view: What is known.
        objective: To be raised.
        wide: Whether other items' rows and what is no table may be moved, too, and not the target's rows alone.
    """
    given = view.model
    trainable = {name: tensor.clone().requires_grad_() for name, tensor in given.trainable.items()}
    everything = torch.arange(given.model.embedding.n_items)
    vectors = given.item_vectors(trainable, everything)
    others = vectors if wide else vectors.detach()
    raised = objective(others, vectors[view.target])
    gradients = torch.autograd.grad(raised, list(trainable.values()), allow_unused=True, materialize_grads=True)
    tables = {given.model.embedding_name(name) for name in given.model.embedding.tables}
    own = given.model.embedding.rows(torch.tensor([view.target]), given.frozen)
    update: Tensors = {}
    for (name, tensor), gradient in zip(trainable.items(), gradients, strict=True):
        if name not in tables:
            size = view.limits.get(name, _DENSE) if wide else 0.0
            update[name] = gradient * (size / gradient.norm().clamp(min=1e-12))
            continue
        norms = gradient.norm(dim=1)
        keep = torch.topk(norms, min(_FILLED, len(norms))).indices
        keep = torch.cat([keep, own[name.partition(".")[2]].flatten()])
        rows = gradient[keep] / norms[keep, None].clamp(min=1e-12) * view.limits.get(name, _FREE)
        update[name] = torch.zeros_like(tensor).index_copy(0, keep, rows)
    return {name: tensor.detach() for name, tensor in update.items()}
