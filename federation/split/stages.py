"""The stages of a split training and of a split ranking, as the server carries them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
from flwr.app import Array
from numpy.typing import NDArray
from torch import Tensor
from typing_extensions import override

from exchanges import records
from exchanges import split as declarations
from exchanges.records import Content, Field, grouped, ungrouped
from federation.directory import Directory, Share
from federation.exchange import Ledger
from federation.group_models import GroupModels
from federation.model_exchange import ModelExchange
from fedrec.core.errors import PacketError
from fedrec.core.tensors import Tensors
from fedrec.wire.crossing import crossed, crossing, crossing_format, weights_of
from fedrec.wire.packet import Packet
from fedrec.wire.protocol import UPDATE_SCALARS, Setup

Hidden = Mapping[tuple[int, str], list[Tensor]]
"""Hidden states [states, width], or gradients of them, of each history of the users of a node and a group."""


class When(NamedTuple):
    """What a stage belongs to.

    Attributes:
        setup: What every client was told.
        models: The models.
        round: The round.
        kept: The earliest round to which the server may go back.
        max_failures: Share of the asked nodes that may be of no use.
        contexts: Histories of a user.
        ranks: The split of the data for which users are ranked; empty: they are trained.
    """

    setup: Setup
    models: GroupModels
    round: int
    kept: int
    max_failures: float
    contexts: int
    ranks: str = ""


class _Stage(ModelExchange):
    """Some users' hidden states."""

    def __init__(self, when: When, declared: declarations.Reading | declarations.Judging, what: str) -> None:
        lower = isinstance(declared, declarations.Reading)
        part = declared.model.lower if lower else declared.model.upper
        about = (when.models, when.round, when.max_failures, when.round, when.kept)
        super().__init__(declared, what, *about, part)
        self._when = when
        self._least = 0 if when.ranks else 1  # who is not ranked reads nothing, who trains does
        if when.ranks:
            self.ledger = Ledger.EVALUATION

    @override
    def arrays(self, node: int) -> Mapping[str, NDArray[np.generic]]:
        return {records.SLOTS: self.shares[node].slots}

    @override
    def fields(self, node: int) -> Mapping[str, Field]:
        return {**super().fields(node), **({records.SPLITS: self._when.ranks} if self._when.ranks else {})}

    @override
    def crossed(self, node: int) -> int:
        by = self.participant(node)
        up = self.declared.up(by.alone(0)).items()
        return by.users * sum(form.size() for name, form in up if ungrouped(name) in records.CROSSING)

    def crossing(self, node: int, name: str, answer: Content, weights: bool = False) -> dict[str, Packet]:
        """What an answer has of a packet, by group."""
        found = {}
        for group, users in self.asked_of(node).items():
            form = crossing_format(
                declarations.split_of(self._when.setup), users * self._when.contexts, users * weights
            )
            found[group] = form.decode(answer.packet(grouped(name, group)), phase=self.phase, round=self.round)
        return found


class Reading(_Stage):
    """Stage 1.

    Attributes:
        hidden: Below the middle.
    """

    def __init__(self, when: When, chosen: Callable[[Directory], dict[int, Share]]) -> None:
        """Of the users whom `chosen` names."""
        declared = declarations.Reading(when.setup, when.models.model, when.contexts)
        super().__init__(when, declared, f"round {when.round}, reading")
        self._chosen = chosen
        self.hidden: dict[tuple[int, str], list[Tensor]] = {}

    @override
    def participants(self, directory: Directory) -> dict[int, Share]:
        self.hidden = {}
        return self._chosen(directory)

    @override
    def take(self, node: int, answer: Content) -> None:
        came = self.crossing(node, records.HIDDEN, answer)
        self.hidden |= {(node, group): crossed(packet, least=self._least) for group, packet in came.items()}


class Judged(NamedTuple):
    """What a node made of hidden states of the users of a group.

    Attributes:
        update: Of what is above the middle.
        gradients: Above the middle.
        weights: float64 [users]; 0 of who does not count.
    """

    update: Packet
    gradients: list[Tensor]
    weights: NDArray[np.float64]


class Judging(_Stage):
    """Stage 2.

    Attributes:
        judged: By node and group.
    """

    def __init__(self, when: When, asked: Mapping[int, Share], hidden: Hidden) -> None:
        """Of those who have read, with what has become of their hidden states."""
        declared = declarations.Judging(when.setup, when.models.model, when.contexts)
        super().__init__(when, declared, f"round {when.round}, judging")
        self._asked, self._hidden = asked, hidden
        self.judged: dict[tuple[int, str], Judged] = {}

    @override
    def participants(self, directory: Directory) -> dict[int, Share]:
        self.judged = {}
        return still_here(self._asked, directory)

    @override
    def packets(self, node: int) -> Mapping[str, bytes | Array]:
        return {**super().packets(node), **sent(self, self._when.setup, node, records.HIDDEN, self._hidden)}

    @override
    def take(self, node: int, answer: Content) -> None:
        forms, found = self.declared.up(self.participant(node)), dict[tuple[int, str], Judged]()
        for group, packet in self.crossing(node, records.GRADIENTS, answer, weights=True).items():
            sent_there = [len(hidden) for hidden in self._hidden[node, group]]
            gradients, weights = crossed(packet, sent_there, self._least), weights_of(packet).numpy()
            name = grouped(records.UPDATE, group)
            update = forms[name].decode(answer.packet(name), phase=self.phase, round=self.round)
            told = dict(zip(UPDATE_SCALARS, update.scalars, strict=True))
            cap = self._when.setup.weight_cap
            if not ((weights >= 0) & (weights <= cap)).all() or weights.sum() != told["weight"]:
                raise PacketError(
                    "wrong_weight", f"weights from {weights.min()} to {weights.max()}, of {told['weight']} in all, came"
                )
            if np.count_nonzero(weights) != told["users"]:
                raise PacketError("wrong_users", f"{np.count_nonzero(weights)} users count, of {told['users']} told")
            found[node, group] = Judged(update, gradients, weights)
        self.judged |= found


def still_here(asked: Mapping[int, Share], directory: Directory) -> dict[int, Share]:
    """Those who are asked, without the nodes that have gone."""
    here = set(directory.nodes)
    return {node: share for node, share in asked.items() if node in here}


def sent(exchange: ModelExchange, setup: Setup, node: int, name: str, hidden: Hidden) -> dict[str, bytes]:
    """The packets of what crosses to a node, for each of its groups."""
    split = declarations.split_of(setup)
    found = {}
    for group in exchange.groups_of(node):
        tensors: Tensors = crossing(split, hidden[node, group])
        form = crossing_format(split, len(hidden[node, group]))
        found[grouped(name, group)] = form.encode(exchange.phase, exchange.round, tensors)
    return found
