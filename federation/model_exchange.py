"""What training and ranking have in common: each participant is sent the models of its users' groups."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from flwr.app import Array
from numpy.typing import NDArray
from typing_extensions import override

from exchanges import records
from exchanges.declaration import Declaration
from exchanges.records import Field, grouped
from federation.exchange import Exchange
from federation.group_models import GroupModels
from federation.versions import Frozen
from fedrec.core.tensors import Spec


class ModelExchange(Exchange):
    """An exchange that brings the models as they are when it is made."""

    def __init__(
        self,
        declared: Declaration,
        what: str,
        models: GroupModels,
        round: int,
        max_failures: float,
        sent: int,
        kept: int,
        part: Spec | None = None,
    ) -> None:
        """Of the present models.

        Args:
            declared: What both sides know of it.
            what: Its name for the log.
            models: Of all groups.
            round: The round to which it belongs.
            max_failures: Share of the asked nodes that may be of no use.
            sent: The round whose messages it travels in.
            kept: The earliest round to which the server may go back.
            part: What of the models' trained tensors is sent; None: all that travels.
        """
        super().__init__(declared, what, models.phase, round, models.holdings(list(models)), max_failures)
        self._groups = list(models)
        self._packets = {group: model.packet(sent, kept, part) for group, model in models.items()}
        self._said = {group: models.fields(sent, [group]) for group in models}

    def groups_of(self, node: int) -> Sequence[str]:
        """The groups of the users who are asked on a node."""
        return [self._groups[number] for number in self.participant(node).by_group]

    def asked_of(self, node: int) -> dict[str, int]:
        """How many users of each of them are asked."""
        return {self._groups[number]: users for number, users in self.participant(node).by_group.items()}

    @override
    def needs(self, node: int) -> Mapping[str, Frozen]:
        return {group: self.frozen[group] for group in self.groups_of(node)}

    @override
    def users_of(self, group: str) -> NDArray[np.int64]:
        users = self.users
        mine: NDArray[np.int64] = users[self._directory.groups[users] == self._groups.index(group)]
        return mine

    @override
    def fields(self, node: int) -> Mapping[str, Field]:
        said: dict[str, Field] = {}
        for group in self.groups_of(node):
            said |= self._said[group]
        return said

    @override
    def packets(self, node: int) -> Mapping[str, bytes | Array]:
        return {grouped(records.MODEL, group): self._packets[group] for group in self.groups_of(node)}
