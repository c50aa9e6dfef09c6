"""Dot products of what a user is, or of its states, with item vectors."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def dot(user: Tensor, items: Tensor) -> Tensor:
    """Dot products [..., items] of vectors [..., dim] of users or states with item vectors [..., items, dim].

    Leading dimensions broadcast. States [users, states, dim] of which all are set against the same items of their user
    [users, 1, items, dim] take one product a user.
    """
    if items.ndim > 3 and items.shape[-3] == 1 and user.shape[-2] > 1:
        return user @ items.squeeze(-3).transpose(-1, -2)
    scores: Tensor = _Dot.apply(user, items)  # type: ignore[no-untyped-call]
    return scores


class _Dot(torch.autograd.Function):
    """Dot products [..., items] of user vectors [..., dim] with item vectors [..., items, dim].

    Its gradient by the item vectors lies in memory as they do. That of the plain matrix product is a transpose, and all
    that comes before it in the backward pass is two to three times slower on it.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(user: Tensor, items: Tensor) -> Tensor:
        # The user as a row: batches of row times matrix are several times faster than of matrix times column.
        return (user.unsqueeze(-2) @ items.transpose(-1, -2)).squeeze(-2)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None]:
        user, items = ctx.saved_tensors
        by_score = gradients[0]
        by_user = by_items = None
        if ctx.needs_input_grad[0]:
            by_user = (by_score.unsqueeze(-2) @ items).squeeze(-2)
            by_user = by_user.sum_to_size(user.shape)
        if ctx.needs_input_grad[1]:
            by_items = by_score.unsqueeze(-1) * user.unsqueeze(-2)
            by_items = by_items.sum_to_size(items.shape)
        return by_user, by_items
