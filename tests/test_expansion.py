"""The exchange of the graph expansion as plain functions: tags, noise, sums, and the whole against LightGCN itself."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats

from client_app.answers.expansion import _of_vectors
from fedrec.backbones.fedpergnn import FedPerGNN
from fedrec.backbones.history import PlainHistory
from fedrec.config.describe import load_member
from fedrec.wire.expansion import Drawn, Expansion, around, draw_items, make_tags, protected

Pairs = list[list[int]]
PLAIN = Expansion(every=1, items=1000, sharers=2, clip=1e6, epsilon=None)
KEY, OTHER, SECRET = b"k" * 32, b"o" * 32, b"s" * 32
DIM = 6


def keys_of(users: int) -> NDArray[np.uint64]:
    return np.random.default_rng(7).integers(0, 2**64, users, dtype=np.uint64)


def drawn_of(histories: Pairs, n_items: int, most: int = 1000, seed: int = 3) -> Drawn:
    offsets = np.concatenate([[0], np.cumsum([len(items) for items in histories])]).astype(np.int64)
    items = np.array([item for items in histories for item in items], dtype=np.int64)
    return draw_items(most, n_items, seed, keys_of(len(histories)), offsets, items)


def tags_of(
    expansion: Expansion, histories: Pairs, key: bytes = KEY, secret: bytes = SECRET, run: str = "r"
) -> NDArray:
    drawn = drawn_of(histories, 10_000, expansion.items)
    return make_tags(expansion, drawn, key, secret, run, keys_of(len(histories)))


# Against the graph network that nobody could run here: with everybody's edges in one place --------------------------


@pytest.fixture(scope="session")
def graph(real: Path) -> Pairs:
    """The films of some users of MovieLens 100K, and only those of low numbers, so that they share many."""
    films: dict[int, set[int]] = {}
    for line in (real / "ml-100k" / "u.data").read_text().splitlines():
        user, film, *_ = map(int, line.split("\t"))
        if user <= 40 and film <= 120:
            films.setdefault(user, set()).add(film - 1)
    found = [sorted(items) for _, items in sorted(films.items())]
    assert len(found) > 30
    assert any(sum(film in items for items in found) == 1 for film in range(120)), "somebody is alone with a film"
    return found


def lightgcn(users: NDArray[np.float64], items: NDArray[np.float64], histories: Pairs, layers: int) -> NDArray:
    """The users' vectors of each layer [layers + 1, users, dim], one edge after the other."""
    degree = np.bincount(np.concatenate(histories), minlength=len(items))
    layer = [users]
    for _ in range(layers):
        new_users, new_items = np.zeros_like(users), np.zeros_like(items)
        for user, history in enumerate(histories):
            for item in history:
                weight = 1 / np.sqrt(len(history) * degree[item])
                new_users[user] += weight * items[item]
                new_items[item] += weight * users[user]
        users, items = new_users, new_items
        layer.append(users)
    return np.stack(layer)


def test_two_layers_are_those_of_the_whole_graph(graph: Pairs) -> None:
    rng, n_items = np.random.default_rng(0), 120
    users, items = rng.normal(size=(len(graph), DIM)), rng.normal(size=(n_items, DIM))
    expected = lightgcn(users, items, graph, 2).mean(0)
    backbone = FedPerGNN(load_member("backbone", "fedpergnn", layers=2, expand_every=1), DIM)
    drawn = drawn_of(graph, n_items)
    sizes, taken = torch.from_numpy(drawn.sizes).double(), torch.from_numpy(drawn.taken).double()
    sent = protected(
        PLAIN, backbone.disclosed({"user": torch.from_numpy(users)}, sizes).numpy(), 1, keys_of(len(graph))
    )
    told = around(PLAIN, sent, make_tags(PLAIN, drawn, KEY, SECRET, "r", keys_of(len(graph))))
    kept = backbone.surrounded(torch.from_numpy(told).double(), sizes, taken)
    degree = torch.from_numpy(np.bincount(np.concatenate(graph), minlength=n_items)).double().clamp(min=1)
    for user, history in enumerate(graph):
        own = {"user": torch.from_numpy(users[user]), "around": kept["around"][user]}
        rows = torch.tensor(history)
        found = backbone.user({}, own, {"degree": degree}, PlainHistory(rows, torch.from_numpy(items)[rows]))
        np.testing.assert_allclose(found["user"].numpy(), expected[user], atol=1e-5)
    without = lightgcn(users, items, graph, 2)[2] - kept["around"].numpy()
    assert np.abs(without - expected).max() > 0.1, "what others tell is no small part of it"


def slowly(expansion: Expansion, vectors: NDArray, tags: NDArray) -> NDArray:
    """What users are told, one pair of users after the other."""
    told = np.zeros(vectors.shape)
    sets = [set(row) for row in tags.tolist()]
    for user, row in enumerate(tags.tolist()):
        for tag in row:
            sharing = [other for other, theirs in enumerate(sets) if tag in theirs]
            if len(sharing) >= expansion.sharers:
                told[user] += sum(vectors[other].astype(float) for other in sharing if other != user) / len(sharing)
    return told


@settings(max_examples=30, deadline=None)
@given(
    users=st.integers(1, 12), items=st.integers(1, 6), names=st.integers(6, 20), sharers=st.integers(2, 5),
    seed=st.integers(0, 1000),
)  # fmt: skip
def test_what_users_are_told_is_what_the_loop_over_them_says(
    users: int, items: int, names: int, sharers: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    tags = np.sort(np.stack([rng.permutation(names)[:items] for _ in range(users)]).astype(np.int64) - 3, axis=1)
    vectors = rng.normal(size=(users, DIM)).astype(np.float32)
    rules = Expansion(1, items, sharers, 1e6, None)
    np.testing.assert_allclose(around(rules, vectors, tags), slowly(rules, vectors, tags), atol=1e-6)


def test_a_tag_of_too_few_tells_nobody_anything() -> None:
    rules = Expansion(1, 2, 4, 1e6, None)
    vectors = np.ones((5, DIM), dtype=np.float32)
    three, four = [[1, 2], [1, 3], [1, 4], [5, 6], [7, 8]], [[1, 2], [1, 3], [1, 4], [1, 6], [7, 8]]
    assert not around(rules, vectors, np.array(three)).any()
    told = around(rules, vectors, np.array(four))
    np.testing.assert_allclose(told[:4], 3 / 4)
    assert not told[4].any()


# Tags ----------------------------------------------------------------------------------------------------------------


def test_the_same_item_has_the_same_tag_for_everybody_with_the_key_and_no_other() -> None:
    rules = Expansion(1, 3, 2, 1.0, None)
    tags = tags_of(rules, [[5, 9, 70], [5, 9, 71], [4, 8, 70]])
    shared = [set(tags[0]) & set(tags[1]), set(tags[0]) & set(tags[2]), set(tags[1]) & set(tags[2])]
    assert [len(both) for both in shared] == [2, 1, 0]
    for others in (
        tags_of(rules, [[5, 9, 70]], key=OTHER),
        tags_of(rules, [[5, 9, 70]], run="another"),
    ):
        assert not set(others.ravel()) & set(tags.ravel()), "nobody without the key can make them, or link two runs"
    assert (tags_of(rules, [[70, 9, 5]], secret=OTHER) == tags[:1]).all(), "neither order nor the own secret matters"


def test_every_user_sends_equally_many_tags_in_an_order_that_tells_nothing() -> None:
    rules = Expansion(1, 8, 2, 1.0, None)
    tags = tags_of(rules, [[], [3], [3, 4], list(range(20)), list(range(20))])
    assert tags.shape == (5, 8)
    assert (tags[:, 1:] > tags[:, :-1]).all()
    counts = np.unique(tags, return_counts=True)[1]
    assert counts.max() <= 4, "dummies are nobody else's"
    assert (counts == 1).sum() >= 8 + 7 + 6
    again = tags_of(rules, [[], [3], [3, 4], list(range(20)), list(range(20))], secret=OTHER)
    assert not set(again[0]) & set(tags[0]), "dummies come from the device's own secret"
    assert tags.min() < 0 < tags.max(), "all 64 bits are used"


def test_items_are_drawn_of_the_own_ones_and_the_same_each_time() -> None:
    histories = [[4, 4, 9, 1], list(range(50)), []]
    drawn = drawn_of(histories, 60, most=5)
    assert drawn.sizes.tolist() == [3, 50, 0]
    assert drawn.taken.tolist() == [3, 5, 0]
    assert sorted(drawn.items[drawn.owners == 0].tolist()) == [1, 4, 9]
    assert len(set(drawn.items[drawn.owners == 1])) == 5
    same, other = drawn_of(histories, 60, most=5), drawn_of(histories, 60, most=5, seed=4)
    assert same.items.tolist() == drawn.items.tolist() != other.items.tolist()
    hits = np.bincount(
        np.concatenate([d.items[d.owners == 1] for d in (drawn_of(histories, 60, 5, seed) for seed in range(400))]),
        minlength=50,
    )
    assert stats.chisquare(hits).pvalue > 1e-4, "every item is as likely as every other"


# Noise ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("clip", "epsilon"), [(0.1, 4.0), (2.0, 0.5)])
def test_the_noise_is_laplaces_with_twice_the_clip_over_epsilon(clip: float, epsilon: float) -> None:
    rules = Expansion(1, 1, 2, clip, epsilon)
    vectors = np.random.default_rng(1).normal(size=(400, 50))
    cut = vectors * (clip / np.abs(vectors).sum(1, keepdims=True))
    noise = (protected(rules, vectors, 5, keys_of(400)) - cut).ravel()
    assert stats.kstest(noise, stats.laplace(scale=2 * clip / epsilon).cdf).pvalue > 1e-3
    assert np.abs(noise).mean() == pytest.approx(2 * clip / epsilon, rel=0.03)
    assert abs(np.corrcoef(noise.reshape(400, 50)[:, 0], noise.reshape(400, 50)[:, 1])[0, 1]) < 0.2


def test_noise_is_another_for_each_user_and_seed_and_the_same_when_asked_again() -> None:
    rules, zero, keys = Expansion(1, 1, 2, 1.0, 1.0), np.zeros((3, DIM)), keys_of(3)
    first = protected(rules, zero, 5, keys)
    assert (protected(rules, zero, 5, keys) == first).all()
    assert (protected(rules, zero[:1], 5, keys[2:]) == first[2:]).all(), "whoever is beside it"
    assert not np.isin(protected(rules, zero, 6, keys), first).any()
    assert len(np.unique(first)) == first.size


def test_a_real_device_uses_its_noise_for_one_vector_only() -> None:
    vectors = np.random.default_rng(2).normal(size=(3, DIM))
    moved = vectors.copy()
    moved[1, 2] = np.nextafter(moved[1, 2], 1)
    first, again, other = (_of_vectors(keys_of(3), each) for each in (vectors, vectors.copy(), moved))
    assert (first == again).all()
    assert (first != other).tolist() == [False, True, False]
    assert len({*_of_vectors(keys_of(3), np.zeros((3, DIM))).tolist()}) == 3


def test_a_vector_is_cut_to_the_clip_and_no_draw_exceeds_the_bound() -> None:
    vectors = np.array([[3.0, -1.0], [0.5, 0.25], [0.0, 0.0], [1e300, 1e300]])
    plain = protected(Expansion(1, 1, 2, 1.0, None), vectors, 5, keys_of(4))
    np.testing.assert_allclose(plain, [[0.75, -0.25], [0.5, 0.25], [0, 0], [0.5, 0.5]], rtol=1e-6)
    rules = Expansion(1, 1, 2, 1.0, 0.1)
    noised = protected(rules, np.repeat(vectors[:3], 1000, axis=0), 5, keys_of(3000))
    assert np.abs(noised).max() < rules.largest
    assert rules.largest == pytest.approx(1 + 20 * 53 * np.log(2), rel=1e-3), "the largest of all draws of 53 bits"
    assert Expansion(1, 1, 2, 1.0, None).largest == pytest.approx(1, rel=1e-3)


def test_when_an_exchange_is_due() -> None:
    rules = Expansion(3, 1, 2, 1.0, None)
    assert [round for round in range(1, 10) if rules.due(round, 9)] == [3, 6], "never after the last round"
