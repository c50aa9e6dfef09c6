"""The embedded data set: reproducible, and with taste that can be learned but is not given away."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from fedrec.config.compose import compose
from fedrec.data.planted import MIN_INTERACTIONS, World
from fedrec.data.prepare import load
from fedrec.data.split import histories, targets
from fedrec.data.tastes import Tastes
from fedrec.data.types import Dataset
from fedrec.datasets import shop_words
from fedrec.datasets.synthetic import Synthetic
from server_app.ceiling import ceiling, share_of_ceiling


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
    assert (users, items) == (1000, 1000)
    train, history = histories(dataset.interactions, "train"), histories(dataset.interactions, "test")
    popularity = np.bincount(train.items, minlength=items).astype(np.float64)
    vectors = text_vectors(dataset)
    means = np.stack([vectors[history.of(user)].mean(axis=0) for user in range(users)])
    last = np.stack([vectors[history.of(user)[-1]] for user in range(users)])
    source = Synthetic(chosen)
    world, truth = source.world(), source.last_chances()
    assert truth is not None
    assert (truth.users, truth.items) == (list(dataset.interactions.user_ids), list(dataset.catalogue.item_ids))
    found = {
        "random": ndcg_at_10(dataset, np.random.default_rng(0).random((users, items))),
        "popularity": ndcg_at_10(dataset, np.tile(popularity, (users, 1))),
        "mean": ndcg_at_10(dataset, means @ vectors.T),
        "last": ndcg_at_10(dataset, last @ vectors.T),
        "first taste": ndcg_at_10(dataset, world.probabilities(*world.likings(0, users))),
        "truth": ndcg_at_10(dataset, truth.chances),
    }
    assert found["random"] < 0.012, found
    assert found["popularity"] > 4 * found["random"], found
    assert found["last"] > found["popularity"], found
    assert found["mean"] > 4 * found["random"], found
    assert found["truth"] > 2 * found["first taste"] > 2 * found["last"], found  # taste has moved on, and visits
    assert found["truth"] < 0.4, found
    known = ceiling(compose([f"dataset.seed={seed}"], base=Path("/")), dataset, (5, 10))
    assert known is not None
    assert known["ndcg@10"] == pytest.approx(found["truth"], abs=1e-4)  # ranks are counted in float32 there
    assert share_of_ceiling({"ndcg@10": known["ndcg@10"] / 2}, known).startswith("NDCG@10 is 50% of the ceiling, 0.2")


def test_no_ceiling_is_claimed_where_a_filter_or_the_size_is_in_the_way(config: Any) -> None:
    assert Synthetic(config("synthetic", k_core=2)).last_chances() is None
    assert Synthetic(config("synthetic", n_users=20_000)).last_chances() is None
    assert Synthetic(config("synthetic", n_users=30)).last_chances() is not None


def test_the_same_configuration_gives_the_same_data(config: Any) -> None:
    one, two, other = (load(config("synthetic", seed=seed, n_users=50)) for seed in (3, 3, 4))
    assert one.catalogue.digest == two.catalogue.digest != other.catalogue.digest
    assert one.interactions.items.tolist() == two.interactions.items.tolist()
    assert one.interactions.items.tolist() != other.interactions.items.tolist()


def test_ids_are_in_order_and_titles_are_distinct(config: Any) -> None:
    dataset = load(config("synthetic"))
    assert dataset.interactions.user_ids[:2] == ("u0000", "u0001")
    assert dataset.catalogue.item_ids[799] == "i0799"
    assert len(set(dataset.catalogue.titles)) == 1000
    assert "k_core" not in dataset.report.counts


def test_a_title_names_a_thing_of_the_items_topic_and_its_style(config: Any) -> None:
    chosen = config("synthetic")
    dataset, group = load(chosen), Synthetic(chosen).world().group
    departments = shop_words.departments()
    things = 0
    for title, number in zip(dataset.catalogue.titles, group.tolist(), strict=True):
        nouns, styles = departments[number // 2]
        _, *words = title.lower().split()
        assert set(words) <= {*nouns, *styles[number % 2]} | {str(again) for again in range(2, 20)}, title
        things += bool(set(words) & set(nouns))
    assert things > 980  # else noise has taken every word of its topic


def test_no_word_of_the_shop_has_two_meanings() -> None:
    departments = shop_words.departments()
    words = [word for nouns, styles in departments for word in (*nouns, *(word for style in styles for word in style))]
    words += shop_words.common()
    assert len(set(words)) == len(words) == 20 * (16 + 2 * 5) + 40
    assert all(len(nouns) == shop_words.NOUNS for nouns, _ in departments)
    assert all([len(style) for style in styles] == [shop_words.ADJECTIVES] * 2 for _, styles in departments)
    assert not [word for word in words if re.fullmatch("([bdfgklmnprstvz][aeiou]){3}", word)]  # as made-up ones are


def test_a_larger_shop_goes_on_with_made_up_words(config: Any) -> None:
    dataset = load(config("synthetic", n_users=30, n_items=500, topics=30, styles=4))
    assert len(set(dataset.catalogue.titles)) == 500


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


def test_taste_changes_as_often_as_it_is_said_to() -> None:
    without = World.make(seed=1, items=400, topics=8, styles=2, taste=1.0, skew=0.5)
    world = World.make(seed=1, items=400, topics=8, styles=2, taste=1.0, skew=0.5, drift=0.2)
    plain, users = without.interactions(4000, 6.0), 4000
    who, items, times = world.interactions(users, 6.0)
    first = np.searchsorted(who, np.arange(users))
    # First choices, and how many there are, are those of a world without it.
    assert items[first].tolist() == plain[1][np.searchsorted(plain[0], np.arange(users))].tolist()
    assert who.tolist() == plain[0].tolist()
    assert (np.diff(times)[np.diff(who) == 0] >= 0).all()
    # A slot keeps its first topic over n draws unless one of n - 1 changes hits it, or brings the same again.
    taste = Tastes.drawn(
        np.random.default_rng(0), np.repeat(np.arange(users), 11), *world.likings(0, users), 0.2, (8, 2)
    )
    topics, styles = taste.at(taste.first + 10)
    same = (topics == world.likings(0, users)[0]) & (styles == world.likings(0, users)[1])
    kept = (1 - 0.2 / 3) ** 10
    assert same.mean() == pytest.approx(kept + (1 - kept) / 16, abs=0.02)
    assert all(
        (before == now).all() for before, now in zip(world.likings(0, users), taste.at(taste.first), strict=True)
    )


def test_the_slot_of_each_draw_is_that_of_a_walk_through_the_changes() -> None:
    rng = np.random.default_rng(2)
    who = np.repeat(np.arange(50), rng.integers(1, 9, size=50))
    topics, styles = rng.integers(8, size=(50, 3)), rng.integers(2, size=(50, 3))
    taste = Tastes.drawn(np.random.default_rng(3), who, topics, styles, 0.4, (8, 2))
    slot = rng.integers(3, size=len(who))
    found = np.stack(taste.of(slot))
    changes = {place: (which, *new) for place, which, new in zip(taste.places, taste.slots, taste.fresh.T, strict=True)}
    now_topics, now_styles = topics.copy(), styles.copy()
    for draw, user in enumerate(who):
        if draw in changes:
            changed, topic, style = changes[draw]
            now_topics[user, changed], now_styles[user, changed] = topic, style
            assert draw != taste.first[user]
        assert found[:, draw].tolist() == [now_topics[user, slot[draw]], now_styles[user, slot[draw]]]
    assert len(changes) > 20


def test_last_choices_follow_the_stated_chances() -> None:
    world = World.make(seed=1, items=400, topics=8, styles=2, taste=0.8, skew=0.5, visits=0.4, drift=0.1)
    who, items, _ = world.interactions(4000, 6.0)
    last = items[np.flatnonzero(np.diff(who, append=4000))]
    chances = world.last_chances(4000, 6.0)
    assert chances.sum(axis=1) == pytest.approx(np.ones(4000))
    own = (world.group == world.group[last, None]) * chances
    # The share of last choices in the group that was likeliest is that of the chances themselves; a choice of an item
    # that the user has is drawn anew, which is rare here.
    by_group = np.stack([chances[:, world.group == group].sum(axis=1) for group in range(16)], axis=1)
    hits = (by_group.argmax(axis=1) == world.group[last]).mean()
    assert hits == pytest.approx(by_group.max(axis=1).mean(), abs=0.04)
    assert own.sum(axis=1).mean() == pytest.approx((by_group**2).sum(axis=1).mean(), abs=0.04)


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
