"""What `recency`, `sasrec` and `gru4rec` promise beyond the contract: their size, and the framework's own layers."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import gelu

from fedrec.backbones.base import Backbone, ItemSequence, ScoreContext, Uniform
from fedrec.backbones.history import PlainHistory
from fedrec.config.compose import compose
from fedrec.config.describe import load_member
from fedrec.core.errors import ConfigError
from fedrec.core.registry import backbones
from fedrec.core.rng import generator
from fedrec.core.tensors import Tensors

RANKING = ScoreContext(training=False)


def make(name: str, dim: int = 8, **values: Any) -> Backbone:
    made: Backbone = backbones.get(name)(load_member("backbone", name, **values), dim)
    return made


def moved(backbone: Backbone) -> Tensors:
    """Shared tensors away from a start that is zero, in float64."""
    rng = generator(0, "shared")
    made = backbone.init_shared(rng)
    return {name: (tensor + 0.3 * torch.randn(tensor.shape, generator=rng)).double() for name, tensor in made.items()}


def history(*leading: int, n: int, dim: int = 8) -> ItemSequence:
    vectors = torch.randn(*leading, n, dim, generator=generator(1, "history"), dtype=torch.float64)
    items = torch.zeros(vectors.shape[:-1], dtype=torch.int64)
    return PlainHistory(items, vectors).sequence()


def states(backbone: Backbone, shared: Tensors, sequence: ItemSequence, context: ScoreContext = RANKING) -> Tensor:
    return backbone.states(shared, {}, {}, sequence, context)["state"]


@pytest.mark.parametrize(
    ("name", "values", "numbers"),
    [
        ("recency", {}, 51),
        ("recency", {"half_lives": [1.0, 3.0, 10.0, 40.0], "maps": True}, 4 * 50 + 1 + 4 * 32 * 32),
        ("sasrec", {}, 50 + 2 + 32 + (2 * 32 + 4 * 32 * 32 + 2 * 50 + 2 * 64 * 32 + 64)),
        ("gru4rec", {}, 2 * 32 * 96 + 96 + 32 * 32 + 1),
    ],
)
def test_the_size_is_known(name: str, values: dict[str, Any], numbers: int) -> None:
    backbone = make(name, 32, **values)
    assert sum(entry.size for entry in backbone.shared.values()) == numbers
    assert backbone.private == {}


def test_recency_is_a_mean_weighed_by_distance() -> None:
    """By hand, for histories longer than it reads."""
    backbone = make("recency", length=4, half_lives=[2.0, 5.0], maps=True)
    shared, sequence = moved(backbone), history(n=7)
    found = states(backbone, shared, sequence)
    for p in range(8):
        expected = torch.zeros(8, dtype=torch.float64)
        for mean in range(2):
            total, weight = torch.zeros(8, dtype=torch.float64), 1e-3
            for distance, item in enumerate(range(p - 1, max(-1, p - 5), -1)):
                share = float(shared["decay"][mean, distance].exp())
                total, weight = total + share * sequence.vectors[item], weight + share
            expected += (total / weight) @ shared["map"][mean]
        torch.testing.assert_close(found[p], expected * shared["scale"].exp())


def test_recency_starts_at_its_half_lives() -> None:
    shared = make("recency", half_lives=[2.0]).init_shared(generator(0))
    weights = shared["decay"].exp()[0]
    torch.testing.assert_close(weights[2:], weights[:-2] / 2)
    mean = states(make("recency"), {name: tensor.double() for name, tensor in shared.items()}, history(n=3))
    given = history(n=3).vectors
    expected = (given[2] + given[1] * 2**-0.5 + given[0] / 2) / (1 + 2**-0.5 + 0.5)
    torch.testing.assert_close(mean[3], expected, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("blocks", [1, 2])
def test_sasrec_is_attention_of_the_frameworks_layers(blocks: int) -> None:
    width, heads, n, length = 8, 2, 9, 6
    backbone = make("sasrec", blocks=blocks, heads=heads, length=length)
    shared, sequence = moved(backbone), history(3, n=n)
    hidden = sequence.vectors * math.sqrt(width)
    distance = torch.arange(n).unsqueeze(1) - torch.arange(n)
    seen = (distance >= 0) & (distance < length)
    for number in range(1, blocks + 1):
        own = {name: shared[f"block{number}.{name}"] for name in ("norm1", "qkv", "distance", "out", "norm2")}
        attention = nn.MultiheadAttention(width, heads, bias=False, batch_first=True, dtype=torch.float64)
        norms = [nn.RMSNorm(width, eps=1e-6, dtype=torch.float64) for _ in range(2)]
        with torch.no_grad():
            attention.in_proj_weight.copy_(own["qkv"].T)
            attention.out_proj.weight.copy_(own["out"].T)
            for norm, weight in zip(norms, (own["norm1"], own["norm2"]), strict=True):
                norm.weight.copy_(weight)
        bias = own["distance"][:, distance.clamp(0, length - 1)].masked_fill(~seen, -math.inf)
        read = norms[0](hidden)
        hidden = hidden + attention(read, read, read, attn_mask=bias.repeat(3, 1, 1), need_weights=False)[0]
        wide = gelu(norms[1](hidden) @ shared[f"block{number}.widen"] + shared[f"block{number}.bias"])
        hidden = hidden + wide @ shared[f"block{number}.narrow"]
    last = nn.RMSNorm(width, eps=1e-6, dtype=torch.float64)
    with torch.no_grad():
        last.weight.copy_(shared["norm"])
    weights = shared["decay"][0, distance.clamp(0, length - 1)].exp() * seen
    mean = weights @ sequence.vectors / (weights.sum(1, keepdim=True) + 1e-3)
    expected = last(hidden) * shared["scale"].exp() + shared["mean"] * mean
    found = states(backbone, shared, sequence)
    torch.testing.assert_close(found[:, 1:], expected)
    assert not found[:, 0].any()


def test_what_sasrec_adds_starts_at_zero_and_its_distances_as_alibi() -> None:
    backbone = make("sasrec", heads=2, blocks=2)
    shared = backbone.init_shared(generator(0))
    for block in ("block1", "block2"):
        assert not shared[f"{block}.out"].any()
        assert not shared[f"{block}.narrow"].any()
        assert shared[f"{block}.distance"][:, 3].tolist() == [-1.5, -0.75]
    sequence = history(n=5)
    found = states(backbone, {name: tensor.double() for name, tensor in shared.items()}, sequence)
    alone = make("recency", length=50)
    mean = states(alone, {n: t.double() for n, t in alone.init_shared(generator(0)).items()}, sequence)
    normed = sequence.vectors * sequence.vectors.square().mean(-1, keepdim=True).rsqrt()
    torch.testing.assert_close(found[1:], mean[1:] + normed, atol=1e-5, rtol=1e-5)


def test_gru4rec_is_the_frameworks_own_unit() -> None:
    backbone = make("gru4rec")
    shared, sequence = moved(backbone), history(3, n=9)
    unit = nn.GRU(8, 8, batch_first=True, dtype=torch.float64)
    with torch.no_grad():
        unit.weight_ih_l0.copy_(shared["input"].T)
        unit.weight_hh_l0.copy_(shared["hidden"].T)
        unit.bias_ih_l0.copy_(shared["bias"])
        unit.bias_hh_l0.zero_()
    expected = unit(sequence.vectors)[0] @ shared["out"] * shared["scale"].exp()
    torch.testing.assert_close(states(backbone, shared, sequence)[:, 1:], expected)


@pytest.mark.parametrize("name", ["recency", "sasrec", "gru4rec"])
def test_the_last_number_of_a_vector_may_be_a_bias_that_no_state_reads(name: str) -> None:
    plain, biased = make(name, 8), make(name, 9, item_bias=True)
    shared = moved(plain)
    assert biased.shared == plain.shared
    wide = history(n=5, dim=9)
    narrow = wide._replace(vectors=wide.vectors[:, :8])
    one = {"state": states(biased, shared, wide)[5]}
    other = {"state": states(plain, shared, narrow)[5]}
    candidates = torch.randn(4, 9, generator=generator(2), dtype=torch.float64)
    expected = plain.score(shared, other, candidates[:, :8], RANKING) + candidates[:, 8]
    torch.testing.assert_close(biased.score(shared, one, candidates, RANKING), expected)


@pytest.mark.parametrize("name", ["recency", "sasrec"])
def test_what_is_farther_away_than_the_length_is_not_read(name: str) -> None:
    """So that a ranking, which is given no more, scores by the state that training knew."""
    backbone = make(name, length=4)
    shared, sequence = moved(backbone), history(n=9)
    latest = ItemSequence(*(part[-4:] for part in sequence))
    if name == "recency":
        torch.testing.assert_close(states(backbone, shared, latest)[-1], states(backbone, shared, sequence)[-1])
    other = sequence.vectors.clone()
    other[:2] += 1.0  # one block reads four items, and nothing before them
    torch.testing.assert_close(
        states(backbone, shared, sequence._replace(vectors=other))[-1], states(backbone, shared, sequence)[-1]
    )


@pytest.mark.parametrize(("name", "layers"), [("sasrec", 3), ("gru4rec", 2)])
def test_dropout_is_for_training_alone_and_has_a_draw_for_each_activation(name: str, layers: int) -> None:
    backbone, drawn = make(name, dropout=0.5), list[tuple[str, int]]()

    def uniform(layer: str, width: int) -> Tensor:
        drawn.append((layer, width))
        return torch.rand(6, width, generator=generator(0, layer))

    draws: Uniform = uniform
    shared, sequence = moved(backbone), history(n=6)
    trained = states(backbone, shared, sequence, ScoreContext(True, draws))
    assert len(set(drawn)) == len(drawn) == layers
    assert {width for _, width in drawn} == {8}
    assert not torch.equal(trained, states(backbone, shared, sequence))
    drawn.clear()
    torch.testing.assert_close(
        states(backbone, shared, sequence), states(make(name), shared, sequence, ScoreContext(True, draws))
    )
    assert not drawn
    with pytest.raises(ValueError, match="uniform"):
        states(backbone, shared, sequence, ScoreContext(training=True))


@pytest.mark.parametrize(
    ("overrides", "problem"),
    [
        (["backbone.heads=3"], "base_table.dim=32 must be a multiple of 3"),
        (
            ["backbone.item_bias=true"],
            "base_table.dim=32 less one for backbone.item_bias, which is 31, must be a multiple",
        ),
        (["backbone.item_bias=true", "base_table.dim=1", "backbone.heads=1"], "give 2 or more"),
        (["backbone.blocks=0"], "expected an integer >= 1"),
    ],
)
def test_what_cannot_be_is_a_problem(overrides: list[str], problem: str) -> None:
    with pytest.raises(ConfigError) as caught:
        compose(["backbone=sasrec", *overrides], base=None)
    assert problem in " ".join(caught.value.problems)
