"""Users who may take part in a run or not, each by a coin: made up, to be told easily, or drawn from the data."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedrec.core.errors import ConfigError
from fedrec.core.rng import derive
from fedrec.data.types import Dataset, Interactions

_CANARY = "canary"


@dataclass(frozen=True)
class Candidates:
    """Who may take part.

    Attributes:
        interactions: Of the candidates alone.
        took_part: bool [candidates].
        run: Of everybody who takes part: those who do for certain, and the candidates whose coin says so.
    """

    interactions: Interactions
    took_part: NDArray[np.bool_]
    run: Interactions


def candidates(dataset: Dataset, count: int, seed: int, *, canaries: bool) -> Candidates:
    """So many candidates, and the coins, by a seed.

    Canaries come beside the users of the data. Each has as many items as the median user, drawn evenly from the whole
    catalogue, which nobody has whose taste is that of a person. Without canaries the candidates are users of the data.

    Raises ConfigError if the data have too few users.
    """
    rng = np.random.default_rng([derive(seed, "audit", "candidates") % 2**63])
    own = dataset.interactions
    histories = [own.history(user) for user in range(own.users)]
    if canaries:
        length = max(3, int(np.median([len(history) for history in histories])))
        items = len(dataset.catalogue)
        chosen = {
            f"{_CANARY}-{number}": rng.permutation(items)[: min(length, items // 2)].astype(np.int32)
            for number in range(count)
        }
        certain = dict(zip(own.user_ids, histories, strict=True))
    else:
        if count >= own.users:
            raise ConfigError([f"--candidates {count}: the data have {own.users} users, and some have to be certain"])
        users = np.sort(rng.permutation(own.users)[:count])
        chosen = {own.user_ids[user]: histories[user] for user in users}
        certain = {own.user_ids[user]: histories[user] for user in np.setdiff1d(np.arange(own.users), users)}
    took_part = rng.random(count) < 0.5
    taken = {name: history for (name, history), took in zip(chosen.items(), took_part, strict=True) if took}
    return Candidates(_interactions(chosen), took_part, _interactions(certain | taken))


def _interactions(histories: dict[str, NDArray[np.int32]]) -> Interactions:
    offsets = np.concatenate(([0], np.cumsum([len(history) for history in histories.values()]))).astype(np.int64)
    return Interactions(tuple(histories), offsets, np.concatenate(list(histories.values())))
