"""Users in one hand: a node of a federation whose accounts are invented, and whose updates are made up."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from flwr.app import Message
from flwr.clientapp import ClientApp

from client_app.answers.node import Node, Received
from client_app.homes.home import Place
from commands.audit.attacks import Attack, View
from commands.local_grid import LocalGrid
from exchanges import members, records
from exchanges.declaration import Participant
from exchanges.records import Content, pack, unpack
from fedrec.core.rng import counter_bits, derive
from fedrec.core.tensors import Tensors
from fedrec.wire.code import code_digest
from fedrec.wire.protocol import METRICS_COUNTS, Setup
from fedrec.wire.updates import NodeUpdate

_PUBLIC = 0.05
"""Share of the honest users whose training interactions the attackers know."""

_BELOW = 0.999
"""Of a limit: what is rounded on its way must not be above it."""

_LOSS = 0.7
"""What the attackers say that their loss is."""


class Crowd:
    """The attackers. Nothing of theirs is ranked: they say that they have no item held out.

    Attributes:
        users: How many they are.
        sent: Updates that they were asked for so far.
    """

    def __init__(self, users: int, attack: Attack, target: int) -> None:
        """So many users with one aim, the item in the row `target`."""
        self.users = users
        self.sent = 0
        self._attack, self._target = attack, target
        self._node: Node | None = None
        self._last: torch.Tensor | None = None
        self._moved: torch.Tensor | None = None

    def answer(self, message: Message) -> Message:
        """What they say to a message."""
        content = unpack(message.content)
        if message.metadata.message_type == records.ENROLL:
            # What they know of others' interactions they read where all of a simulation's are.
            self._node = Node(Setup.from_json(content.text("setup")), Place(0, 1))
            keys = counter_bits(derive(self._node.setup.seed, "crowd"), np.arange(self.users))
            return Message(pack({"code": code_digest()}, arrays={records.KEYS: keys}), reply_to=message)
        kinds = str(content.fields.get(records.CARRIES, message.metadata.message_type)).split()
        packets: dict[str, bytes] = {}
        if records.EVALUATE in kinds:
            packets |= self.ranked(content)
        if records.TRAIN in kinds:
            packets[records.UPDATE] = self._update(content)
        return Message(pack({}, packets), reply_to=message)

    @property
    def node(self) -> Node:
        """A node of the run that they have joined."""
        assert self._node is not None, "a node is invited before anything else"
        return self._node

    def ranked(self, content: Content) -> dict[str, bytes]:
        """Their metrics: of nobody."""
        setup, after = self.node.setup, content.integer(records.AFTER)
        zeros = [0.0] * (len(METRICS_COUNTS) + len(setup.metric_names()))
        packet = setup.metrics_format().encode(content.integer("phase"), after, {}, zeros)
        return {records.METRICS + split: packet for split in content.text(records.SPLITS).split()}

    def _update(self, content: Content) -> bytes:
        setup, node = self.node.setup, self.node
        phase, round = content.integer("phase"), content.integer("round")
        received = node.receive(phase, round, 0, content.packet(records.MODEL), content.text("frozen"))
        users = len(content.array(records.SLOTS))
        spec, weight = received.model.model.trainable, float(setup.weight_cap)
        one = self._attack(self._view(received, weight))
        self.sent += users
        total = {name: tensor * (weight * users) for name, tensor in one.items()}
        examples = setup.weight_cap * users
        update = NodeUpdate(total, weight * users, users, examples, _LOSS * weight * users)
        form = members.Training(setup, spec).up(Participant(np.zeros(users, np.uint64)))[records.UPDATE]
        return form.encode(phase, round, update.total, update.scalars(), seed=None)

    def _view(self, received: Received, weight: float) -> View:
        model, node = received.model, self.node
        vectors = model.item_vectors(model.trainable, torch.arange(model.model.embedding.n_items))
        if self._moved is None or self._last is None:
            self._moved = torch.zeros(len(vectors))
        else:
            self._moved = self._moved + (vectors - self._last).norm(dim=1)
        self._last = vectors
        limits = node.setup.stages.rows_of_one(model.model.trainable)
        below = {name: _BELOW * limit / weight for name, limit in limits.items()}
        return View(model, self._target, self._moved, lambda: self._known(received), below)

    def _known(self, received: Received) -> Tensors:
        """What users would be who have the public interactions."""
        node = self.node
        slots = np.arange(0, len(node.users), round(1 / _PUBLIC))
        cohort = node.users.training(slots)
        private = node.backbone.init_private(node.setup.seed, cohort.keys)
        return node.engine.solve(received.model, cohort, private, derive(node.secret, "crowd", received.round))


class CrowdedGrid(LocalGrid):
    """An in-process grid with one node more: the attackers'."""

    def __init__(self, client: ClientApp, nodes: int, crowd: Crowd) -> None:
        """Of so many honest nodes."""
        honest = [{"partition-id": partition, "num-partitions": nodes} for partition in range(nodes)]
        super().__init__(client, [*honest, {}])
        self._crowd, self._node = crowd, list(self._contexts)[-1]

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """As in `LocalGrid`, the attackers last: what is sent once is in the folder of the simulation by then."""
        messages = list(messages)
        honest_first = sorted(messages, key=lambda message: message.metadata.dst_node_id == self._node)
        ids = dict(zip(map(id, honest_first), super().push_messages(honest_first), strict=True))
        return [ids[id(message)] for message in messages]

    def answer(self, message: Message) -> Message:
        """As in `LocalGrid`; the attackers speak for themselves."""
        if message.metadata.dst_node_id == self._node:
            return self._crowd.answer(message)
        return super().answer(message)
