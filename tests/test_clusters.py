"""Clusters of rows and of their factors: against plain loops and a library, and the same whoever is beside a user."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import torch
from sklearn.cluster import KMeans
from torch import Tensor

from fedrec.codecs.actions import directions
from fedrec.core.rng import generator
from fedrec.stages.contributions import Touched
from fedrec.uplinks.clusters import of_numbers, of_rows
from fedrec.uplinks.levels import of_levels
from fedrec.uplinks.padded import Padded, by_length


def lloyd_of_numbers(numbers: list[float], most: int) -> list[float]:
    """What each number becomes: a plain loop, one number after the other."""
    ordered, total = sorted(numbers), sum(number**2 for number in numbers)
    centres = [0.0]
    for place in range(most - 1):
        wanted, so_far = total * (place + 0.5) / (most - 1), 0.0
        for number in ordered:
            so_far += number**2
            if so_far >= wanted:
                centres.append(number)
                break
    centres.sort()
    zero = centres.index(0.0)
    members: list[list[float]] = []
    for _ in range(12):
        members = [[] for _ in centres]
        for number in ordered:
            members[sum(number > (a + b) / 2 for a, b in pairwise(centres))].append(number)
        centres = [sum(own) / len(own) if own else centre for own, centre in zip(members, centres, strict=True)]
        centres[zero] = 0.0
    return [next(centre for centre, own in zip(centres, members, strict=True) if number in own) for number in numbers]


def test_numbers_are_clustered_as_a_plain_loop_does() -> None:
    rng = generator(3, "numbers")
    numbers = torch.randn(4, 30, generator=rng).double() ** 3
    counts, most = torch.tensor([30, 17, 1, 0]), torch.tensor([6, 2, 4, 3])
    there = torch.arange(30) < counts[:, None]
    found = of_numbers(numbers, there, most)
    values = torch.nn.functional.pad(found.centres[..., 0], (1, 0)).gather(1, found.taken)
    for user, count in enumerate(counts.tolist()):
        expected = lloyd_of_numbers(numbers[user, :count].tolist(), int(most[user])) if count else []
        torch.testing.assert_close(values[user, :count], torch.tensor(expected, dtype=torch.float64))
        assert len(set(found.taken[user, :count].tolist()) - {0}) < int(most[user])
        assert not found.taken[user, count:].any()


def rows_of(values: Tensor, counts: list[int]) -> Padded:
    owner = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    place = torch.cat([torch.arange(count) for count in counts])
    return Padded.of(Touched(owner, place, values[owner, place]), len(counts))


def test_drawn_levels_keep_the_mean_of_every_number() -> None:
    """Many small numbers of one sign and a few large ones of the other, all of one sign, one number, and none."""
    rng = generator(0, "levels")
    small = 0.02 * torch.rand(4, 300, generator=rng)
    small[:2, :30] = -0.1 - 0.5 * torch.rand(2, 30, generator=rng)
    counts = torch.tensor([300, 180, 1, 0])
    there = torch.arange(300) < counts[:, None]
    numbers, rows = torch.where(there, small, 0.0), torch.arange(300).expand(4, 300)
    for most in (torch.tensor([4, 3, 4, 4]), torch.tensor([16, 9, 5, 3])):
        total = torch.zeros(4, 300, dtype=torch.float64)
        for draw in range(400):
            found = of_levels(numbers, there, rows, most, np.arange(4, dtype=np.uint64) + 100 * draw)
            assert (found.taken.amax(1) < most).all()
            levels = torch.nn.functional.pad(found.centres[..., 0], (1, 0))
            total += levels.gather(1, found.taken)
        alone = of_levels(numbers[1:2], there[1:2], rows[1:2], most[1:2], np.array([1 + 100 * draw], dtype=np.uint64))
        assert torch.equal(alone.taken[0], found.taken[1]), "whoever is beside it"
        spread = (levels.amax(1) - levels.amin(1))[:, None] / 2 / 20  # five standard errors of a draw between two
        assert ((total / 400 - numbers).abs() <= 5 * spread).all()
        assert (total[:, :].sum(1) / 400 - numbers.double().sum(1)).abs().max() < 0.35


def test_rows_are_means_of_their_clusters_and_nearest_to_them() -> None:
    values = torch.randn(3, 40, 4, generator=generator(5, "rows"))
    found = of_rows(rows_of(values, [40, 25, 3]), torch.tensor([8, 3, 8]), np.arange(3, dtype=np.uint64))
    for user, count in enumerate([40, 25, 3]):
        taken = found.taken[user, :count]
        assert not found.taken[user, count:].any()
        for action in set(taken.tolist()) - {0}:
            torch.testing.assert_close(found.centres[user, action - 1], values[user, :count][taken == action].mean(0))
        if user == 1:
            assert taken.max() <= 2


def test_clusters_lose_about_as_little_as_those_of_a_library() -> None:
    """Of rows that lie around five points beside zero, the same five are found."""
    rng = generator(7, "rows")
    points = 10 * torch.randn(5, 4, generator=rng)
    values = (points[torch.arange(60) % 5] + 0.1 * torch.randn(60, 4, generator=rng))[None]
    values[0, ::6] = 0.01
    found = of_rows(rows_of(values, [60]), torch.tensor([24]), np.array([1], dtype=np.uint64))
    ours = torch.nn.functional.pad(found.centres, (0, 0, 1, 0))[0, found.taken[0]]
    library = KMeans(24, random_state=0, n_init=1).fit(values[0].numpy())
    assert float((values[0] - ours).square().sum()) < 2 * library.inertia_ + 1e-6


def test_several_users_are_clustered_as_each_alone() -> None:
    values, seeds = torch.randn(3, 40, 4, generator=generator(9, "rows")), np.arange(3, dtype=np.uint64)
    together = of_rows(rows_of(values, [40, 25, 8]), torch.tensor([8, 5, 4]), seeds)
    for user, (count, most) in enumerate([(40, 8), (25, 5), (8, 4)]):
        alone = of_rows(rows_of(values[user : user + 1], [count]), torch.tensor([most]), seeds[user : user + 1])
        assert torch.equal(together.taken[user, :count], alone.taken[0])
        torch.testing.assert_close(together.centres[user, : alone.centres.shape[1]], alone.centres[0])


def test_groups_of_like_length_have_each_row_once_and_few_empty_places() -> None:
    counts = torch.tensor([1, 40, 0, 3, 64, 2, 37, 5])
    owner = torch.arange(8).repeat_interleave(counts)
    touched = Touched(owner, torch.arange(len(owner)), torch.arange(1.0, len(owner) + 1)[:, None])
    among = torch.tensor([True] * 7 + [False])
    groups = list(by_length(touched, counts, among))
    assert sorted(torch.cat([group.users for group in groups]).tolist()) == [0, 1, 3, 4, 5, 6]
    assert sorted(torch.cat([group.at for group in groups]).tolist()) == list(range(int(counts[:7].sum())))
    for users, at, rows in groups:
        assert torch.equal(users[rows.owner], owner[at])
        assert torch.equal(rows.values[rows.owner, rows.place], touched.changes[at])
        assert int(rows.counts.sum()) == len(at) > rows.there.numel() / 2 - len(users)


def test_the_direction_of_each_user_is_that_of_its_longest_row() -> None:
    """Of multiples of one row, of rows that are not, of one row, and of none; whoever is beside them."""
    rng = generator(11, "directions")
    row = torch.randn(3, generator=rng)
    of_each = [torch.randn(9, 1, generator=rng) * row, torch.randn(9, 3, generator=rng), row[None], torch.zeros(0, 3)]
    rows, owner = torch.cat(of_each), torch.arange(4).repeat_interleave(torch.tensor([9, 9, 1, 0]))
    found = directions(rows, owner, 4)
    assert found.exact.tolist() == [True, False, True, True]
    for user, own in enumerate(of_each[:3]):
        longest = own[own.norm(dim=1).argmax()]
        torch.testing.assert_close(found.row[user], longest / longest[longest.abs().argmax()])
        alone = directions(own, torch.zeros(len(own), dtype=torch.int64), 1)
        assert torch.equal(alone.row[0], found.row[user])
        assert torch.equal(alone.factors, found.factors[owner == user])
        if found.exact[user]:
            torch.testing.assert_close(alone.factors[:, None] * alone.row, own)
    assert not found.row[3].any()
