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
from fedrec.config.validate import member_config
from fedrec.core.errors import ConfigError
from fedrec.core.rng import generator
from fedrec.wire.expansion import Expansion

DIM, ITEMS = 5, 9


def backbone(**values: Any) -> FedPerGNN:
    return FedPerGNN(load_member("backbone", "fedpergnn", **values), DIM)


def along_the_edges(
    user: Tensor, table: Tensor, degree: Tensor, history: list[int], layers: int, others: Tensor | None = None
) -> Tensor:
    """LightGCN on the star of one user, one message at a time; the user's vector, the mean over all layers.

    `others` [dim] is what reaches the user in the second layer from the users around its items.
    """
    items = {item: table[item] for item in history}
    found = [user]
    for layer in range(1, layers + 1):
        weight = {item: (len(history) * degree[item]) ** -0.5 for item in history}
        to_user = sum((weight[item] * items[item] for item in history), torch.zeros_like(user))
        items = {item: weight[item] * user for item in history}
        user = to_user if others is None or layer != 2 else to_user + others
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


@pytest.mark.parametrize("layers", [2, 3, 4, 7])
@pytest.mark.parametrize("history", [[4], [0, 8, 3], list(range(ITEMS))])
def test_what_others_tell_is_part_of_layer_2_and_comes_back_from_there(layers: int, history: list[int]) -> None:
    rng = generator(1, "graph")
    table = torch.randn(ITEMS, DIM, generator=rng, dtype=torch.float64)
    user, others = torch.randn(2, DIM, generator=rng, dtype=torch.float64)
    degree = 1 + torch.arange(ITEMS, dtype=torch.float64)
    items = torch.tensor(history, dtype=torch.int64)
    made = backbone(layers=layers, expand_every=1)
    own = {"user": user, "around": others}
    found = made.user({}, own, {"degree": degree}, PlainHistory(items, table[items]))
    expected = along_the_edges(user, table, degree, history, layers, others)
    torch.testing.assert_close(found["user"], expected, atol=1e-12, rtol=1e-12)


def test_an_expansion_is_told_only_where_there_is_one() -> None:
    off, on = backbone(), backbone(layers=2, expand_every=5)
    assert off.config.told().keys() == {"name", "init_std", "layers", "degree_items", "degree_epsilon"}
    assert member_config("backbone", off.config.told()) == off.config
    assert member_config("backbone", on.config.told()) == on.config
    assert (off.expansion, dict(off.around)) == (None, {})
    assert on.expansion == Expansion(every=5, items=50, sharers=5, clip=0.1, epsilon=4.0)


def test_what_is_told_of_some_of_the_items_stands_for_all() -> None:
    told = torch.ones(2, DIM, dtype=torch.float64)
    sizes, taken = torch.tensor([16.0, 16.0]), torch.tensor([16.0, 4.0])
    kept = backbone(layers=2, expand_every=1).surrounded(told, sizes, taken)["around"]
    assert kept[:, 0].tolist() == [0.25, 1.0]


def test_an_expansion_that_no_layer_reads_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"expand_every=3 with backbone.layers=1.*give backbone.layers=2"):
        compose(["backbone=fedpergnn", "backbone.expand_every=3"], base=None)


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
        "expand_every=-1",
        "expand_items=0",
        "expand_sharers=1",
        "expand_clip=0.0",
        "expand_epsilon=0.0",
    ],
)
def test_values_out_of_range_are_named(bad: str) -> None:
    with pytest.raises(ConfigError, match=rf"backbone\.{bad.partition('=')[0]}"):
        compose(["backbone=fedpergnn", f"backbone.{bad}"], base=None)
