"""What items can be recommended from, wherever it comes from: a node, its last model, and the items by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from client_app.answers.node import Node, Received
from client_app.stores.store import USERS
from commands.places import RecommendError
from fedrec.core.errors import StoreError
from fedrec.wire.item_list import ItemList


class Recommendable(NamedTuple):
    """What is recommended from.

    Attributes:
        name: The folder, as it was given.
        node: The node on which its users live.
        models: The last sound model of each group, by the group's place among the run's.
        items: Ids and titles, by row of the model.
        passed_over: Rounds of newer models that are damaged.
        keys: uint64 [users], the keys of all users of the run; None where only those are known who live here.
    """

    name: str
    node: Node
    models: Mapping[int, Received]
    items: ItemList
    passed_over: Sequence[int] = ()
    keys: NDArray[np.uint64] | None = None

    @property
    def round(self) -> int:
        """The round of the newest model."""
        return max(received.round for received in self.models.values())

    def model_of(self, group: int) -> Received:
        """The model of a group, by its place. Raises RecommendError if there is none here."""
        if group not in self.models:
            names = self.node.setup.groups
            held = ", ".join(names[number] for number in self.models)
            raise RecommendError(f"no model of the group {names[group]} is here, only of {held}")
        return self.models[group]


def require_private_tensors(state_dir: Path, restore: str) -> None:
    """Raise StoreError if the users' store is gone: everybody would look like one who has never trained."""
    if not (state_dir / USERS).is_file():
        raise StoreError(f"{state_dir / USERS}, with the private tensors of the users, is missing: {restore}")
