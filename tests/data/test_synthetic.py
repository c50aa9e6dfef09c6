"""The embedded data set: reproducible, and with taste that can be learned but is not given away."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from fedrec.data.planted import MIN_INTERACTIONS, World
from fedrec.data.prepare import load
from fedrec.data.split import histories, targets
from fedrec.data.types import Dataset
from fedrec.datasets.synthetic import Synthetic


def ndcg_at_10(dataset: Dataset, scores: NDArray[np.float64]) -> float:
    """Full ranking of the test item among the eligible ones, less the user's earlier items."""
    seen, wanted = histories(dataset.interactions, "test"), targets(dataset.interactions, "test")
    allowed = np.zeros(len(dataset.catalogue), dtype=bool)
    allowed[dataset.eligible] = True
    gains = []
    for user, target in enumerate(wanted):
        mine = np.where(allowed, scores[user], -np.inf)
        mine[seen.of(user)] = -np.inf
        rank = (mine > mine[target]).sum() + ((mine == mine[target]).sum() - 1) / 2
        gains.append(1 / np.log2(rank + 2) if rank < 10 else 0.0)
    return float(np.mean(gains))


def text_vectors(dataset: Dataset) -> NDArray[np.float64]:
    words = [re.findall(r"\w+", sentence.lower()) for sentence in dataset.catalogue.sentences]
    vocabulary = {word: n for n, word in enumerate(sorted({word for found in words for word in found}))}
    counted = np.zeros((len(words), len(vocabulary)))
    for row, found in enumerate(words):
        np.add.at(counted[row], [vocabulary[word] for word in found], 1.0)
    counted *= np.log(len(words) / (counted > 0).sum(axis=0))
    normed: NDArray[np.float64] = counted / np.linalg.norm(counted, axis=1, keepdims=True)
    return normed


@pytest.mark.parametrize("seed", [0, 1])
def test_taste_is_in_the_text_and_is_more_than_the_text(seed: int, config: Any) -> None:
    chosen = config("synthetic", seed=seed)
    dataset = load(chosen)
    users, items = dataset.interactions.users, len(dataset.catalogue)
    assert (users, items) == (600, 800)
    train, history = histories(dataset.interactions, "train"), histories(dataset.interactions, "test")
    popularity = np.bincount(train.items, minlength=items).astype(np.float64)
    vectors = text_vectors(dataset)
    profiles = np.stack([vectors[history.of(user)].mean(axis=0) for user in range(users)])
    world = Synthetic(chosen).world()
    found = {
        "random": ndcg_at_10(dataset, np.random.default_rng(0).random((users, items))),
        "popularity": ndcg_at_10(dataset, np.tile(popularity, (users, 1))),
        "content": ndcg_at_10(dataset, profiles @ vectors.T),
        "ideal": ndcg_at_10(dataset, world.probabilities(*world.likings(0, users))),
    }
    assert found["random"] < 0.012, found
    assert found["popularity"] > 2 * found["random"], found
    assert found["content"] > 2 * found["popularity"], found
    assert found["ideal"] > 1.4 * found["content"], found
    assert found["ideal"] < 0.4, found


def test_the_same_configuration_gives_the_same_data(config: Any) -> None:
    one, two, other = (load(config("synthetic", seed=seed, n_users=50)) for seed in (3, 3, 4))
    assert one.catalogue.digest == two.catalogue.digest != other.catalogue.digest
    assert one.interactions.items.tolist() == two.interactions.items.tolist()
    assert one.interactions.items.tolist() != other.interactions.items.tolist()


def test_ids_are_in_order_and_titles_are_distinct(config: Any) -> None:
    dataset = load(config("synthetic"))
    assert dataset.interactions.user_ids[:2] == ("u000", "u001")
    assert dataset.catalogue.item_ids[799] == "i799"
    assert len(set(dataset.catalogue.titles)) == 800
    assert "k_core" not in dataset.report.counts


def test_draws_follow_the_stated_probabilities() -> None:
    world = World.make(seed=1, items=40, topics=4, styles=2, taste=0.8, skew=0.5)
    topics, styles = world.likings(0, 4000)
    chances = world.probabilities(topics, styles)
    assert chances.sum(axis=1) == pytest.approx(np.ones(4000))
    users, items, _ = world.interactions(4000, 4.0)
    first = items[np.searchsorted(users, np.arange(4000))]
    expected, drawn = chances.sum(axis=0), np.bincount(first, minlength=40)
    # Every item's count is a sum of 4000 coins: within five standard deviations.
    assert (np.abs(drawn - expected) < 5 * np.sqrt(expected)).all()
    rank_of_drawn = (chances > chances[np.arange(4000), first][:, None]).sum(axis=1)
    assert rank_of_drawn.mean() < 12


def test_visits_stay_in_the_style_of_the_choice_before() -> None:
    without = World.make(seed=1, items=400, topics=4, styles=2, taste=0.8, skew=0.5)
    world = World.make(seed=1, items=400, topics=4, styles=2, taste=0.8, skew=0.5, visits=0.6)
    topics, styles = world.likings(0, 4000)
    users, items, times = world.interactions(4000, 6.0)
    first = np.searchsorted(users, np.arange(4000))
    chances = world.probabilities(topics, styles, items[first].astype(np.int64))
    assert chances.sum(axis=1) == pytest.approx(np.ones(4000))
    same = (world.group == world.group[items[first], None]) * chances
    expected = same.sum(axis=1).sum()  # of second choices in the style of the first
    again = (world.group[items[first]] == world.group[items[first + 1]]).sum()
    # A choice of an item that the user has is drawn anew, which is rare here: 1 in 25 of those that stay.
    assert abs(again - expected) < 5 * np.sqrt(4000 / 4) + 0.04 * expected
    alone = without.probabilities(topics, styles, items[first].astype(np.int64))
    assert expected > 1.5 * ((world.group == world.group[items[first], None]) * alone).sum()
    # First choices and times are those of a world without visits.
    plain = without.interactions(4000, 6.0)
    assert plain[1][np.searchsorted(plain[0], np.arange(4000))].tolist() == items[first].tolist()
    assert (np.diff(times)[np.diff(users) == 0] >= 0).all()


@pytest.mark.parametrize("topics", [3, 7])
def test_every_user_likes_three_different_topics(topics: int) -> None:
    world = World.make(seed=0, items=100, topics=topics, styles=1, taste=1.0, skew=1.0)
    liked, styles = world.likings(0, 3000)
    assert all(len(set(row)) == 3 for row in liked.tolist())
    assert (styles == 0).all()
    for column in liked.T:
        share = np.bincount(column, minlength=topics) / 3000
        assert share == pytest.approx(np.full(topics, 1 / topics), abs=0.05)


def test_histories_have_the_asked_mean_length_and_no_duplicates(config: Any) -> None:
    world = World.make(seed=0, items=5000, topics=10, styles=2, taste=0.9, skew=0.7)
    users, items, times = world.interactions(40_000, 12.0)  # more than one block
    assert len(np.unique(users.astype(np.int64) * 5000 + items)) == len(users)
    lengths = np.bincount(users)
    assert len(lengths) == 40_000
    assert lengths.min() >= MIN_INTERACTIONS
    assert lengths.mean() == pytest.approx(12.0, rel=0.05)
    assert (np.diff(users) >= 0).all()
    assert ((np.diff(times) >= 0) | (np.diff(users) > 0)).all()
    # Another number of users does not change the first block.
    fewer, first, _ = world.interactions(33_000, 12.0)
    block = fewer < 2**15
    assert first[block].tolist() == items[: block.sum()].tolist()


def test_more_groups_than_items_is_refused(config: Any) -> None:
    with pytest.raises(ValueError, match=r"n_items=20 is fewer than topics \* styles = 40"):
        config("synthetic", n_items=20)
