"""Somebody who has every model of a run, and asks of each candidate whether it took part."""

from __future__ import annotations

import dataclasses
from functools import cached_property

import numpy as np
import torch
from flwr.app import Message
from numpy.typing import NDArray
from torch import Tensor
from typing_extensions import override

from client_app.answers.app import app as client_app
from client_app.answers.node import ENGINES, Node, Received
from client_app.homes.home import Place
from client_app.homes.users import Cohort, LocalUsers
from client_app.training.engine import Engine
from commands.audit.candidates import Candidates
from commands.local_grid import LocalGrid
from exchanges.records import MODEL, TRAIN, UPDATE, unpack
from fedrec.codecs.float32 import Float32Codec, Float32Config
from fedrec.config.schema import RunConfig
from fedrec.core.bounds import LARGEST_NORM
from fedrec.core.errors import ConfigError
from fedrec.core.rng import derive
from fedrec.core.tensors import Tensors
from fedrec.stages.base import Stage
from fedrec.stages.chain import Stages
from fedrec.stages.contributions import Contributions
from fedrec.stages.draws import Draws
from fedrec.stages.limits import Limits
from fedrec.wire.protocol import Setup

_MOST_NUMBERS = 2**29
"""In the updates of all candidates together, which are formed twice: 4 GiB."""


class WatchedGrid(LocalGrid):
    """An in-process grid whose models are looked at.

    Attributes:
        watcher: Who looks.
    """

    def __init__(self, config: RunConfig, chosen: Candidates) -> None:
        """The nodes of a configuration."""
        super().__init__(client_app, config.simulation.nodes)
        self.watcher = Watching(chosen)

    @override
    def answer(self, message: Message) -> Message:
        reply = super().answer(message)
        if reply.has_content():
            sent = unpack(message.content)
            if "setup" in sent.fields:
                self.watcher.setup = Setup.from_json(sent.text("setup"))
            if message.metadata.message_type == TRAIN and UPDATE in unpack(reply.content).arrays:
                self.watcher.hear(sent.integer("phase"), sent.integer("round"), sent.packet(MODEL), sent.text("frozen"))
        return reply


class Kept(Stage):
    """Keeps each user's update as it would leave its device, at full length."""

    reads = "dense"

    def __init__(self) -> None:
        self.updates: dict[int, Tensor] = {}
        self.losses: dict[int, float] = {}

    @override
    def on_devices(self, given: Contributions, draws: Draws) -> Contributions:
        flat = torch.cat([given.whole[name].flatten(1) for name in given.spec], dim=1)
        for user, (key, factor) in enumerate(zip(given.keys.tolist(), given.factor.tolist(), strict=True)):
            self.updates[key] = flat[user] * factor
            self.losses[key] = float(given.loss[user])
        return given


class Watching:
    """Somebody who has the models of a run.

    Attributes:
        setup: What every client is told; to be set before the first model.
        along: float64 [candidates], how far models went along each candidate's update so far.
    """

    def __init__(self, chosen: Candidates) -> None:
        """Who asks whether these candidates took part."""
        self._chosen = chosen
        self.setup: Setup | None = None
        self.along = np.zeros(chosen.interactions.users)
        self._round = 0
        self._before: tuple[Received, Tensor] | None = None

    @cached_property
    def _node(self) -> Node:
        """A node without privacy of its own: what candidates would send before anything protects it."""
        assert self.setup is not None, "a node is told the setup before anything else"
        return Node(dataclasses.replace(self.setup, privacy={"name": "none"}), Place(0, 1))

    @cached_property
    def _cohort(self) -> Cohort:
        node, everybody = self._node, self._chosen.interactions
        slots = np.arange(everybody.users)
        return LocalUsers(everybody, slots, node.secret, validation=node.setup.validation).training(slots)

    def hear(self, phase: int, round: int, packet: bytes, frozen: str) -> None:
        """Take the model of a round, once."""
        if round > self._round:
            self._round = round
            self.see(self._node.receive(phase, round, 0, packet, frozen))

    def see(self, received: Received) -> None:
        """Compare a model with the one before it, and work out what candidates would send next."""
        if self._before is not None and _same_under(self._before[0], received):
            then, updates = self._before
            step = _flat(received) - _flat(then)
            self.along += np.array([float(update.double() @ step) for update in updates])
        node, keys = self._node, self._cohort.keys.tolist()
        _require_memory(len(keys), len(_flat(received)))
        start = node.backbone.init_private(node.setup.seed, self._cohort.keys)
        nothing = torch.zeros(len(_flat(received)))  # of who has no item to learn from
        sent = self._answers(received, start).updates
        updates = torch.stack([sent.get(key, nothing) for key in keys])
        self._before = (received, torch.nn.functional.normalize(updates, dim=1))

    def fit(self, received: Received) -> NDArray[np.float64]:
        """Minus the loss of each candidate's history, float64 [candidates], after what is private was fitted to it."""
        node, cohort = self._node, self._cohort
        start = node.backbone.init_private(node.setup.seed, cohort.keys)
        fitted = node.engine.solve(received.model, cohort, start, derive(node.secret, "audit", received.round))
        losses = self._answers(received, fitted).losses
        return -np.array([losses.get(key, 0.0) for key in cohort.keys.tolist()])

    def _answers(self, received: Received, private: Tensors) -> Kept:
        """What candidates would send who begin with these private tensors [candidates, ...]."""
        node, kept = self._node, Kept()
        limits = Limits(node.setup.weight_cap, LARGEST_NORM)
        stages = Stages([kept], Float32Codec(Float32Config("float32")), limits)
        engine: Engine = ENGINES[node.setup.engine](node.recipe, node.sampler, stages, node.setup.pairs_at_once)
        engine.round(received.model, self._cohort, private, derive(node.secret, "train", received.round))
        return kept


def _require_memory(candidates: int, numbers: int) -> None:
    """Raise ConfigError if the candidates' updates would not fit a machine's memory."""
    if candidates * numbers > _MOST_NUMBERS:
        raise ConfigError(
            [
                f"--candidates {candidates}: their updates of {numbers:,} numbers each are held at once, at most "
                f"{_MOST_NUMBERS // numbers:,} of them; give fewer, or a smaller model"
            ]
        )


def _flat(received: Received) -> Tensor:
    """All that is trained, in the order of its specification, as one vector of float64."""
    return torch.cat([received.model.trainable[name].flatten() for name in received.model.model.trainable]).double()


def _same_under(one: Received, other: Received) -> bool:
    """Whether two models train the same tensors over the same frozen ones: else their difference says nothing."""
    mine, theirs = one.model.frozen, other.model.frozen
    return one.phase == other.phase and all(torch.equal(tensor, theirs[name]) for name, tensor in mine.items())
