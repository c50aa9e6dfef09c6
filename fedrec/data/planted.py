"""A world with planted taste: items with latent topics, and users who choose by topic, by style and by popularity.

Every item belongs to one topic and, within it, to one style; a few are far more popular than the rest. A user likes
three topics, one more than the next, and one style of each. It may come to like another in the place of one of them
(`drift`), and it may stay for a while where it is, in the style of the item that it chose last, whether it likes that
or not (`visits`): so the order of a history tells something. The probability of the next item is known exactly
(`World.probabilities`), so that one can say how well the best possible model would rank. All draws are vectorised over
users, in blocks of fixed size, so that a million users fit in memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from fedrec.data.tastes import Tastes

TOPIC_WEIGHTS = (0.6, 0.3, 0.1)
"""How a user's taste is divided between its topics."""

OWN_STYLE = 0.75
"""How often taste chooses the user's own style of the topic; else any item of the topic, by popularity."""

MIN_INTERACTIONS = 4
"""Every user draws at least this many."""

_LENGTH_SPREAD = 0.6  # standard deviation of the logarithm of the number of interactions
_BLOCK = 2**15  # users drawn together; a part of the definition, because every block has its own generator
_DAY = 86400


@dataclass(frozen=True)
class World:
    """Latent truth about the items.

    Attributes:
        seed: Root of all draws.
        topics: Number of topics, at least three.
        styles: Number of styles of each topic.
        taste: Share of a user's choices that follow its taste; the others follow popularity alone.
        group: int64 [items], topic * styles + style of each item.
        weight: float64 [items], popularity, adding up to 1.
        visits: Share of a user's choices, after its first, that stay in the group of the choice before.
        drift: Share of a user's choices, after its first, before which it takes to another topic and style in the place
            of one that it has liked, each of them as likely (a topic that it likes already may come again).
    """

    seed: int
    topics: int
    styles: int
    taste: float
    group: NDArray[np.int64]
    weight: NDArray[np.float64]
    visits: float = 0.0
    drift: float = 0.0

    @classmethod
    def make(
        cls,
        seed: int,
        items: int,
        topics: int,
        styles: int,
        taste: float,
        skew: float,
        visits: float = 0.0,
        drift: float = 0.0,
    ) -> World:
        """Draw the items' topics, styles and popularity (rank ** -skew, ranks at random)."""
        rng = np.random.default_rng([seed, 0])
        # Every group gets its share of the items, as nearly equal as can be.
        group = rng.permutation(np.arange(items, dtype=np.int64) % (topics * styles))
        weight = (1.0 + rng.permutation(items)) ** -skew
        return cls(seed, topics, styles, taste, group, weight / weight.sum(), visits, drift)

    @cached_property
    def _by_group(self) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.int64]]:
        """Items sorted by group, the running sum of their weights with a leading 0, and where each group starts."""
        order = np.argsort(self.group, kind="stable")
        running = np.concatenate(([0.0], np.cumsum(self.weight[order])))
        starts = np.searchsorted(self.group[order], np.arange(self.topics * self.styles + 1))
        return order, running, starts.astype(np.int64)

    def likings(self, block: int, users: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Topics that each user of a block likes at first, in order, and its style of each: int64 [users, 3]."""
        rng = np.random.default_rng([self.seed, 1, block])
        # Distinct topics: the k-th is drawn from those that are left, numbered as if the earlier ones were not there.
        topics = np.stack([rng.integers(self.topics - k, size=users) for k in range(len(TOPIC_WEIGHTS))], axis=1)
        for k in range(1, topics.shape[1]):
            for earlier in np.sort(topics[:, :k], axis=1).T:
                topics[:, k] += topics[:, k] >= earlier
        return topics, rng.integers(self.styles, size=topics.shape)

    def probabilities(
        self, topics: NDArray[np.int64], styles: NDArray[np.int64], last: NDArray[np.int64] | None = None
    ) -> NDArray[np.float64]:
        """Probability of every item in one draw of each user: float64 [users, items]. For small worlds only.

        Args:
            topics: int64 [users, 3], liked by each user, as `likings` has them.
            styles: int64 [users, 3], of each of these topics.
            last: int64 [users], what each user chose last; None: nothing yet.
        """
        _, running, starts = self._by_group
        within_group = running[starts[self.group + 1]] - running[starts[self.group]]
        topic = self.group // self.styles
        within_topic = running[starts[(topic + 1) * self.styles]] - running[starts[topic * self.styles]]
        chances = np.tile((1.0 - self.taste) * self.weight, (len(topics), 1))
        for k, share in enumerate(TOPIC_WEIGHTS):
            own = self.group == (topics[:, k] * self.styles + styles[:, k])[:, None]
            chances += self.taste * share * OWN_STYLE * own * self.weight / within_group
            chances += (
                self.taste * share * (1.0 - OWN_STYLE) * (topic == topics[:, k, None]) * self.weight / within_topic
            )
        if last is None:
            return chances
        group = self.group[last]
        within = running[starts[group + 1]] - running[starts[group]]
        chances *= 1.0 - self.visits
        chances += self.visits * (self.group == group[:, None]) * self.weight / within[:, None]
        return chances

    def interactions(
        self, users: int, mean_length: float
    ) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.int64]]:
        """(users, items, times in seconds) of all interactions, user after user, in time order, each pair once."""
        blocks = [self._block(block, count, mean_length) for block, count in _blocks(users)]
        return (
            np.concatenate([drawn.who + np.int32(n * _BLOCK) for n, drawn in enumerate(blocks)]),
            np.concatenate([drawn.what for drawn in blocks]),
            np.concatenate([drawn.when for drawn in blocks]),
        )

    def last_chances(self, users: int, mean_length: float) -> NDArray[np.float64]:
        """How likely each item was as the last one of each user, with its taste and its visit at that moment.

        Items that the user had before can only be drawn in vain; their chances are not taken away here.

        Returns:
            float64 [users, items]. For small worlds only.
        """
        blocks = [self._block(block, count, mean_length) for block, count in _blocks(users)]
        return np.concatenate([self.probabilities(*drawn.liked, drawn.before) for drawn in blocks])

    def _block(self, block: int, users: int, mean_length: float) -> _Drawn:
        liked = self.likings(block, users)
        rng = np.random.default_rng([self.seed, 2, block])
        items = len(self.group)
        centre = np.log(mean_length) - _LENGTH_SPREAD**2 / 2
        lengths = np.rint(rng.lognormal(centre, _LENGTH_SPREAD, size=users)).astype(np.int64)
        lengths = np.clip(lengths, MIN_INTERACTIONS, max(MIN_INTERACTIONS, items // 4))
        # Some draws repeat an item: draw more than are needed, and keep the first distinct ones.
        who = np.repeat(np.arange(users), 2 * lengths + MIN_INTERACTIONS)
        changing = np.random.default_rng(
            [self.seed, 5, block]
        )  # its own, so that the other draws are the same without it
        taste = Tastes.drawn(changing, who, *liked, self.drift, (self.topics, self.styles))
        start, end = self._ranges(rng, taste, who)
        drawn = rng.random(len(who))
        what = self._within(start, end, drawn)
        if self.visits:
            before, staying = self._stays(block, who)
            group = self.group[what[before]]
            starts = self._by_group[2]
            what[staying] = self._within(starts[group], starts[group + 1], drawn[staying])
        _, first = np.unique(who * items + what, return_index=True)
        kept = np.sort(first)
        position = np.arange(len(kept)) - np.searchsorted(who[kept], who[kept])
        kept, position = (each[position < lengths[who[kept]]] for each in (kept, position))
        when = position * _DAY + rng.integers(_DAY, size=len(kept))
        last = kept[np.flatnonzero(np.diff(who[kept], append=users))]
        return _Drawn(who[kept].astype(np.int32), what[kept].astype(np.int32), when, taste.at(last), what[last - 1])

    def _within(
        self, start: NDArray[np.int64], end: NDArray[np.int64], drawn: NDArray[np.float64]
    ) -> NDArray[np.int64]:
        """By popularity, an item of each stretch of the items, sorted by group, with a number below 1 for each."""
        order, running, _ = self._by_group
        low, high = running[start], running[end]
        place = np.searchsorted(running, low + drawn * (high - low), side="right") - 1
        chosen: NDArray[np.int64] = order[np.clip(place, start, end - 1)]
        return chosen

    def _stays(self, block: int, who: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The draws that stay in a group, and for each the latest draw before it that does not: places among all."""
        rng = np.random.default_rng([self.seed, 4, block])  # its own, so that the other draws are the same without it
        places = np.arange(len(who))
        stays = rng.random(len(who)) < self.visits
        stays &= np.diff(who, prepend=-1) == 0
        staying = np.flatnonzero(stays)
        return np.maximum.accumulate(np.where(stays, 0, places))[staying], staying

    def _ranges(
        self, rng: np.random.Generator, taste: Tastes, who: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """For each draw the stretch of the items, sorted by group, that it chooses from."""
        starts = self._by_group[2]
        liked = np.searchsorted(np.cumsum(TOPIC_WEIGHTS)[:-1], rng.random(len(who)), side="right")
        topic, style = taste.of(liked)
        own = rng.random(len(who)) < OWN_STYLE
        first = topic * self.styles + np.where(own, style, 0)
        last = np.where(own, first + 1, (topic + 1) * self.styles)
        by_taste = rng.random(len(who)) < self.taste
        return np.where(by_taste, starts[first], 0), np.where(by_taste, starts[last], len(self.group))


@dataclass(frozen=True)
class _Drawn:
    """A block's interactions, and of each of its users what its last one depended on.

    Attributes:
        who, what, when: As `World.interactions` has them, of users numbered from 0.
        liked: int64 [users, 3] twice, the topics and styles that each liked then.
        before: int64 [users], the item of the draw before.
    """

    who: NDArray[np.int32]
    what: NDArray[np.int32]
    when: NDArray[np.int64]
    liked: tuple[NDArray[np.int64], NDArray[np.int64]]
    before: NDArray[np.int64]


def _blocks(users: int) -> Iterator[tuple[int, int]]:
    """The blocks that so many users make: number, and users in it."""
    for block, first in enumerate(range(0, users, _BLOCK)):
        yield block, min(_BLOCK, users - first)
