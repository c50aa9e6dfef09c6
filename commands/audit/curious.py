"""A server that follows the protocol to the letter and looks at what lone users' nodes send: which items are theirs?

It uses nothing but the messages of a run, and what every server of one knows: the rules of the run, the catalogue, the
public seed. Of a user who is alone on a node it sees each update as it left the device. The update of an item table is
close to a product: of a number for each item, large where the user has it, and of the user's own direction. So for
each update the attack

- takes, item by item, how far the changed tables move the item's vector (`moves`);
- finds the direction that most of these moves share, and each item's move along it (`along`);
- chooses the sign. Where all positives of a user share its negatives, negatives are the many. Where there is one for
  each positive, the user's start decides, which follows from the public seed and the user's key; a later update takes
  the sign that agrees with those before.

Moves of several updates of one user are added up: positives come again, negatives and pseudo items are drawn anew.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from flwr.app import Message
from flwr.clientapp import ClientApp
from numpy.typing import NDArray
from torch import Tensor

from commands.local_grid import LocalGrid
from exchanges.records import CONTENT, FROZEN, KEYS, MODEL, TRAIN, UPDATE, Content, unpack
from fedrec.core.tensors import Tensors
from fedrec.wire.protocol import Setup
from peft_embeddings.model import BASE, Model, models_of
from peft_embeddings.versions import held_format


@dataclass
class Seen:
    """What was seen of one user.

    Attributes:
        phases: The phase of each update.
        scores: For each update, how far every item moves along the user's direction, in units of its root mean square
            over the items that move; float32 [n_items].
        examples: How many interactions the user trains on, as its updates say.
    """

    phases: list[int] = field(default_factory=list)
    scores: list[NDArray[np.float32]] = field(default_factory=list)
    examples: int = 0

    def score(self, phases: Sequence[int] | None = None, updates: int | None = None) -> NDArray[np.float64]:
        """The sum over updates: of these phases (None: of all), and of the first so many of them (None: of all)."""
        chosen = [score for phase, score in zip(self.phases, self.scores, strict=True) if not phases or phase in phases]
        total: NDArray[np.float64] = np.sum(chosen[:updates], axis=0, dtype=np.float64)
        return total

    def always(self) -> NDArray[np.bool_]:
        """The items that every update moves towards the user."""
        towards: NDArray[np.bool_] = np.all([score > 0 for score in self.scores], axis=0)
        return towards


class CuriousGrid(LocalGrid):
    """An in-process grid that keeps what the server sees of some nodes."""

    def __init__(self, client: ClientApp, configs: Sequence[Mapping[str, Any]], lone: int) -> None:
        """Nodes of these configurations; the first `lone` have one user each."""
        super().__init__(client, configs)
        self.seen = [Seen() for _ in range(lone)]
        self._numbers = {node: number for number, node in enumerate(self.get_node_ids()) if number < lone}
        self._starts: dict[int, NDArray[np.uint64]] = {}
        self._frozen: dict[str, Tensors] = {}
        self._setup: Setup | None = None

    def answer(self, message: Message) -> Message:
        """A client's reply, which is looked at on its way."""
        reply = super().answer(message)
        number = self._numbers.get(message.metadata.dst_node_id)
        if reply.has_content():
            sent, answer = unpack(message.content), unpack(reply.content)
            if "setup" in sent.fields:
                self._setup = Setup.from_json(sent.text("setup"))
            self._remember_frozen(sent)
            if number is not None and KEYS in answer.arrays:
                self._starts[number] = answer.array(KEYS).astype(np.uint64)
            if number is not None and message.metadata.message_type == TRAIN and UPDATE in answer.arrays:
                self._look(number, sent, answer)
        return reply

    def model(self, phase: int) -> Model:
        """The model of a phase, as the setup describes it."""
        setup = self._setup
        assert setup is not None, "a node is told the setup before anything else"
        return models_of(setup)[phase]

    def _remember_frozen(self, sent: Content) -> None:
        """Keep hash functions and codes; the base table is not needed, for moves do not depend on it."""
        setup = self._setup
        for array in sent.arrays:
            name = array.removeprefix(FROZEN)
            if setup is None or not array.startswith(FROZEN) or name in (setup.catalogue, setup.eligible):
                continue
            if name not in self._frozen:
                merged = name == sent.fields.get("frozen") != sent.fields.get(CONTENT)
                form = held_format(setup, self.model(sent.integer("phase")), merged=merged)
                self._frozen[name] = dict(form.decode(sent.packet(array)).tensors)

    def _look(self, number: int, sent: Content, answer: Content) -> None:
        setup, phase, round = self._setup, sent.integer("phase"), sent.integer("round")
        assert setup is not None
        model = self.model(phase)
        received = setup.model_format(model.trainable).decode(sent.packet(MODEL), phase=phase, round=round)
        update = setup.update_format(model.trainable, 1).decode(answer.packet(UPDATE), phase=phase, round=round)
        _, users, examples, *_ = update.scalars
        if not users:
            return
        frozen = self._frozen.get(sent.text("frozen"), {})
        found = moves(model, received.tensors, update.tensors, frozen)
        if not found.any():
            return  # as in the first round of a product of two factors, one of which is still zero
        seen = self.seen[number]
        start = model.backbone.init_private(setup.seed, self._starts[number])["user"][0]
        score = along(found, start if self._paired(setup) else None, seen.score() if seen.scores else None)
        seen.phases.append(phase)
        seen.scores.append(score)
        seen.examples = max(seen.examples, int(examples))

    @staticmethod
    def _paired(setup: Setup) -> bool:
        """Whether a user has as many negatives as positives, so that numbers do not tell the two apart."""
        return not setup.optim.get("shared_negatives", False)


def moves(model: Model, sent: Tensors, update: Tensors, frozen: Tensors) -> Tensor:
    """How far an update's tables move each item's vector [n_items, dim], beside what its dense tensors do to all."""
    everything = torch.arange(model.embedding.n_items)
    fixed = {**frozen, BASE: torch.zeros(model.embedding.n_items, model.embedding.dim)}
    tables = {model.embedding_name(name) for name in model.embedding.tables}
    before = {name: tensor if name in tables else tensor + update[name] for name, tensor in sent.items()}
    after = {name: tensor + update[name] for name, tensor in sent.items()}
    return model.item_vectors(after, fixed, everything) - model.item_vectors(before, fixed, everything)


def along(moved: Tensor, start: Tensor | None, earlier: NDArray[np.float64] | None) -> NDArray[np.float32]:
    """Each item's move along the direction that most moves share, as `Seen.scores` has it.

    Args:
        moved: [n_items, dim].
        start: The user's vector at its start [dim], towards which positives move; None: fewer items move towards the
            user than away from it.
        earlier: What earlier updates of the user add up to [n_items]; None: there are none.
    """
    table = moved.double()
    direction = torch.linalg.eigh(table.T @ table).eigenvectors[:, -1]
    score = (table @ direction).numpy()
    if start is None:
        sign = float((score < 0).sum() - (score > 0).sum())
    else:
        sign = float(direction @ start.double()) if earlier is None else float(score @ earlier)
    size = np.sqrt(np.mean(score[score != 0] ** 2)) if (score != 0).any() else 1.0
    found: NDArray[np.float32] = (np.copysign(1.0, sign) * score / size).astype(np.float32)
    return found
