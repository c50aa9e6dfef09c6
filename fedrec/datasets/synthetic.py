"""The embedded data set: a made-up shop whose texts tell the topics, and users whose taste follows them.

It needs no network and no licence, and it has planted structure (`fedrec.data.planted`), so that learning is visible.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
from annotated_types import Ge, Gt, Le
from numpy.typing import NDArray
from typing_extensions import override

from fedrec.core.bounds import LARGEST_SEED
from fedrec.core.registry import datasets
from fedrec.data.collect import sentence
from fedrec.data.planted import World
from fedrec.datasets import shop_words
from fedrec.datasets.base import DatasetConfig, DatasetSource, IdColumn, LastChances, Progress, RawData, RawItem

_SYLLABLES = [consonant + vowel for consonant in "bdfgklmnprstvz" for vowel in "aeiou"]
_TOPIC_WORDS, _STYLE_WORDS, _COMMON_WORDS = shop_words.NOUNS, 1 + shop_words.ADJECTIVES, 40
_MOST_CHANCES = 10_000_000  # numbers, of all users and items, up to which the ceiling is worked out


@dataclass(frozen=True)
class SyntheticConfig(DatasetConfig):
    """Configuration of `synthetic`.

    Attributes:
        n_users: Number of users.
        n_items: Number of listed items.
        interactions_per_user: Mean number of interactions of a user (they spread as a log-normal).
        topics: Number of topics; the text of an item and the taste of a user follow them.
        styles: Number of styles of each topic: a finer structure, of which the text tells less.
        taste: Share of a user's choices that follow its taste; the others follow popularity alone.
        skew: Exponent of popularity: the r-th most popular item has weight r ** -skew.
        words: Words of an item's description.
        noise: Share of these words, and of the brands, that say nothing about the item.
        seed: Root of the data set's randomness, apart from the run's seed.
        visits: Share of a user's choices, after its first, that stay in the style of the choice before.
        drift: Share of a user's choices, after its first, before which it takes to another topic and style in the place
            of one that it has liked.
    """

    name: Literal["synthetic"]
    n_users: Annotated[int, Ge(1), Le(10_000_000)]
    n_items: Annotated[int, Ge(10), Le(10_000_000)]
    interactions_per_user: Annotated[float, Ge(4), Le(100_000)]
    topics: Annotated[int, Ge(3), Le(1000)]
    styles: Annotated[int, Ge(1), Le(10)]
    taste: Annotated[float, Ge(0), Le(1)]
    skew: Annotated[float, Ge(0), Le(3)]
    words: Annotated[int, Gt(0), Le(100)]
    noise: Annotated[float, Ge(0), Le(1)]
    seed: Annotated[int, Ge(0), Le(LARGEST_SEED)]
    visits: Annotated[float, Ge(0), Le(1)] = 0.0
    drift: Annotated[float, Ge(0), Le(1)] = 0.0

    def __post_init__(self) -> None:
        """Check that every style of every topic gets an item."""
        if self.n_items < self.topics * self.styles:
            raise ValueError(
                f"n_items={self.n_items} is fewer than topics * styles = {self.topics * self.styles}: every style "
                "of every topic needs an item"
            )


@datasets.register("synthetic")
class Synthetic(DatasetSource):
    """Draws the data set anew each time; the same configuration (and numpy) gives the same data."""

    config_class = SyntheticConfig
    config: SyntheticConfig

    def read(self, progress: Progress) -> RawData:
        """Draw everything."""
        config = self.config
        world = self.world()
        listed = tuple(_describe(world, config))
        users, items, times = world.interactions(config.n_users, config.interactions_per_user)
        return RawData(
            users=IdColumn(users, _ids("u", config.n_users)),
            items=IdColumn(items, [item.item_id for item in listed]),
            times=times,
            ratings=None,
            listed=listed,
        )

    def world(self) -> World:
        """The latent truth behind the data."""
        config = self.config
        return World.make(
            config.seed,
            config.n_items,
            topics=config.topics,
            styles=config.styles,
            taste=config.taste,
            skew=config.skew,
            visits=config.visits,
            drift=config.drift,
        )

    @override
    def last_chances(self) -> LastChances | None:
        config = self.config
        if config.k_core or config.n_users * config.n_items > _MOST_CHANCES:
            return None  # a filter may take somebody's last
        chances = self.world().last_chances(config.n_users, config.interactions_per_user)
        return LastChances(_ids("u", config.n_users), _ids("i", config.n_items), chances)


def _ids(letter: str, count: int) -> list[str]:
    """Names of so many users or items, in the order of their numbers."""
    digits = len(str(count))
    return [f"{letter}{number:0{digits}d}" for number in range(count)]


def _describe(world: World, config: SyntheticConfig) -> list[RawItem]:
    rng = np.random.default_rng([config.seed, 3])
    items, groups = len(world.group), world.topics * world.styles
    topic_words = world.topics * _TOPIC_WORDS
    style_words = groups * _STYLE_WORDS
    vocabulary = np.array(_vocabulary(rng, world.topics, world.styles))
    topic = (world.group // world.styles)[:, None]
    group = world.group[:, None]

    # Half the words tell the topic, a quarter the style, a quarter nothing; then noise replaces some by any word.
    kind = rng.random((items, config.words))
    told = np.where(
        kind < 0.5,
        topic * _TOPIC_WORDS + rng.integers(_TOPIC_WORDS, size=kind.shape),
        topic_words + group * _STYLE_WORDS + rng.integers(_STYLE_WORDS, size=kind.shape),
    )
    told = np.where(kind < 0.75, told, topic_words + style_words + rng.integers(_COMMON_WORDS, size=kind.shape))
    told = np.where(rng.random(kind.shape) < config.noise, rng.integers(len(vocabulary), size=kind.shape), told)
    brand_group = np.where(rng.random(items) < config.noise, rng.integers(groups, size=items), world.group)
    brand = topic_words + brand_group * _STYLE_WORDS  # a style's first word is also the name of its brand
    words: list[list[str]] = vocabulary[told].tolist()
    brands: list[str] = vocabulary[brand].tolist()
    # What it is: of the words of its description the first that names a thing of its topic, and the first of its style.
    thing = _first((told < topic_words) & (told // _TOPIC_WORDS == topic), words)
    place = told - topic_words - group * _STYLE_WORDS
    styled = _first((place > 0) & (place < _STYLE_WORDS), words)
    named: Counter[str] = Counter()
    described = []
    for item_id, item_words, item_brand, *name in zip(_ids("i", items), words, brands, styled, thing, strict=True):
        text = sentence((f"{' '.join(item_words[:2]).title()} by {item_brand.title()}: {' '.join(item_words)}",))
        title = " ".join(word for word in (item_brand, *name) if word).title()
        named[title] += 1
        again = f" {named[title]}" if named[title] > 1 else ""
        described.append(RawItem(item_id, f"{title}{again}", text))
    return described


def _first(wanted: NDArray[np.bool_], words: list[list[str]]) -> list[str]:
    """The first wanted word of each item; an empty one where there is none."""
    place = np.where(wanted.any(axis=1), wanted.argmax(axis=1), -1)
    return ["" if at < 0 else mine[at] for mine, at in zip(words, place.tolist(), strict=True)]


def _vocabulary(rng: np.random.Generator, topics: int, styles: int) -> list[str]:
    """Distinct words: those of every topic, those of every style, of which the first is made up, and common ones.

    As far as there are departments; the others' are made up, of three syllables, and so are brands.
    """
    size = topics * _TOPIC_WORDS + topics * styles * _STYLE_WORDS + _COMMON_WORDS
    base = len(_SYLLABLES)
    numbers: NDArray[np.int64] = rng.choice(base**3, size=size, replace=False)
    words = [
        _SYLLABLES[number // base**2] + _SYLLABLES[number // base % base] + _SYLLABLES[number % base]
        for number in numbers.tolist()
    ]
    for topic, (nouns, adjectives) in enumerate(shop_words.departments()[:topics]):
        words[topic * _TOPIC_WORDS : (topic + 1) * _TOPIC_WORDS] = nouns
        for style, of_style in enumerate(adjectives[:styles]):
            start = topics * _TOPIC_WORDS + (topic * styles + style) * _STYLE_WORDS + 1
            words[start : start + len(of_style)] = of_style
    words[-_COMMON_WORDS:] = shop_words.common()
    return words
