"""The propagation of FedPerGNN against passing messages along the edges that one user knows."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from fedrec.backbones.fedpergnn import FedPerGNN
from fedrec.backbones.history import PlainHistory
from fedrec.config.compose import compose
from fedrec.config.describe import load_member
from fedrec.core.errors import ConfigError
from fedrec.core.rng import generator

DIM, ITEMS = 5, 9


def backbone(**values: Any) -> FedPerGNN:
    return FedPerGNN(load_member("backbone", "fedpergnn", **values), DIM)


def along_the_edges(user: Tensor, table: Tensor, degree: Tensor, history: list[int], layers: int) -> Tensor:
    """LightGCN on the star of one user, one message at a time; the user's vector, the mean over all layers."""
    items = {item: table[item] for item in history}
    found = [user]
    for _ in range(layers):
        weight = {item: (len(history) * degree[item]) ** -0.5 for item in history}
        to_user = sum((weight[item] * items[item] for item in history), torch.zeros_like(user))
        items, user = {item: weight[item] * user for item in history}, to_user
        found.append(user)
    return torch.stack(found).mean(0)


@pytest.mark.parametrize("layers", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("history", [[4], [0, 8, 3], list(range(ITEMS)), []])
def test_the_closed_form_is_lightgcn_on_the_users_own_graph(layers: int, history: list[int]) -> None:
    rng = generator(0, "graph")
    table = torch.randn(ITEMS, DIM, generator=rng, dtype=torch.float64)
    user = torch.randn(DIM, generator=rng, dtype=torch.float64)
    degree = 1 + torch.arange(ITEMS, dtype=torch.float64)
    items = torch.tensor(history, dtype=torch.int64)
    made = backbone(layers=layers)
    found = made.user({}, {"user": user}, {"degree": degree}, PlainHistory(items, table[items]))
    expected = along_the_edges(user, table, degree, history, layers)
    torch.testing.assert_close(found["user"], expected, atol=1e-12, rtol=1e-12)


def test_degrees_are_at_least_1() -> None:
    assert backbone().init_frozen(torch.tensor([-5.0, 0.3, 1.0, 8.5]))["degree"].tolist() == [1.0, 1.0, 1.0, 8.5]


@pytest.mark.parametrize(
    "bad",
    [
        "layers=0",
        "degree_items=0",
        "degree_epsilon=0.0",
        "degree_epsilon=-1.0",
        "init_std=0",
    ],
)
def test_values_out_of_range_are_named(bad: str) -> None:
    with pytest.raises(ConfigError, match=rf"backbone\.{bad.partition('=')[0]}"):
        compose(["backbone=fedpergnn", f"backbone.{bad}"], base=None)
