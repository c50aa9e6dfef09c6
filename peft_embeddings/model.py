"""A model: an item embedding plus a backbone, and the names under which its trained tensors travel."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from fedrec.backbones.base import Backbone, History, ScoreContext
from fedrec.config.validate import member_config
from fedrec.core import registry
from fedrec.core.registry import MemberConfig
from fedrec.core.tensors import Spec, TableSpec, Tensors, tables_of
from fedrec.wire.protocol import Setup
from peft_embeddings.base import ItemEmbedding

BASE = "base"
"""Name of the base table among the frozen tensors."""

_ITEMS_AT_ONCE = 65_536

_EMBEDDING = "embedding."
_BACKBONE = "backbone."


def _state(states: Tensor, number: Tensor) -> Tensor:
    """Of states [..., n + 1, ...] those of the numbers [...]."""
    place = number.reshape(*number.shape, *[1] * (states.ndim - number.ndim))
    return torch.take_along_dim(states, place, number.ndim).squeeze(number.ndim)


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> Tensors:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


class FixedRows(NamedTuple):
    """Gathered rows that nobody trains.

    Attributes:
        tables: Of the embedding's frozen tables: name -> [..., items, r, width].
        base: Of the base table: [..., items, dim]; None for an embedding that uses none.
    """

    tables: Tensors
    base: Tensor | None


class Started(NamedTuple):
    """The tensors of a model at its start: trained and sent, sent once, kept on the server."""

    trainable: Tensors
    frozen: Tensors
    kept: Tensors


@dataclass(frozen=True)
class Model:
    """Any embedding works with any backbone; both are stateless, the tensors are handed in.

    Attributes:
        embedding: How an item becomes a vector.
        backbone: How a vector is scored for a user.
        steps: Whether devices hold the trained tables, and are sent steps of them (`fedrec.downlinks`).
    """

    embedding: ItemEmbedding
    backbone: Backbone
    steps: bool = False

    @staticmethod
    def of(embedding: MemberConfig, backbone: Backbone, n_items: int, *, steps: bool = False) -> Model:
        """The model of an embedding's configuration, for a catalogue of so many items."""
        made: ItemEmbedding = registry.embeddings.get(embedding.name)(embedding, n_items, backbone.dim)
        return Model(made, backbone, steps)

    @property
    def trainable(self) -> Spec:
        """What is trained: `embedding.<table or dense>` and `backbone.<shared>`.

        All of it travels each round, but for tables that devices hold.
        """
        parts = {**self.embedding.tables, **self.embedding.dense}
        embedding = {self.embedding_name(name): spec for name, spec in parts.items()}
        return embedding | {self.backbone_name(name): spec for name, spec in self.backbone.shared.items()}

    @property
    def trained(self) -> Spec:
        """`trainable`, and of a split backbone what is trained on the server alone: `backbone.<middle>`."""
        split = self.backbone.split
        middle = {} if split is None else split.middle
        return {**self.trainable} | {self.backbone_name(name): spec for name, spec in middle.items()}

    @property
    def lower(self) -> Spec:
        """Of `trainable`, what is read below the middle of a split backbone."""
        split = self.backbone.split
        return {} if split is None else {self.backbone_name(name): spec for name, spec in split.lower.items()}

    @property
    def upper(self) -> Spec:
        """The rest of `trainable`."""
        return {name: spec for name, spec in self.trainable.items() if name not in self.lower}

    @property
    def stepped(self) -> Spec:
        """The tables among it that devices hold, and that steps move there."""
        return tables_of(self.trainable) if self.steps else {}

    @property
    def merging(self) -> Spec:
        """What makes a version of what is held of the one before it: a step, or what is folded into the base table.

        The latter is the embedding's part of what is trained.
        """
        return self.stepped or {name: spec for name, spec in self.trainable.items() if name.startswith(_EMBEDDING)}

    @staticmethod
    def embedding_name(name: str) -> str:
        """The name under which one of the embedding's tensors travels."""
        return _EMBEDDING + name

    @staticmethod
    def backbone_name(name: str) -> str:
        """The name under which one of the backbone's shared tensors travels."""
        return _BACKBONE + name

    @property
    def held(self) -> Spec:
        """What devices hold from earlier messages: what is frozen, and tables that steps move."""
        return {**self.frozen, **self.stepped}

    @property
    def coded(self) -> Sequence[str]:
        """The tables of that which travel in the run's codec."""
        return sorted(self.stepped) if self.steps else [BASE] * self.embedding.uses_base

    def over(self, sent: Tensors, held: Tensors) -> tuple[Tensors, Tensors]:
        """The trained and the frozen tensors of what was sent with a message and what is held."""
        stepped = {name: held[name] for name in self.stepped}
        return sent | stepped, {name: tensor for name, tensor in held.items() if name not in stepped}

    @property
    def frozen(self) -> Spec:
        """What is sent once: the base table, if it is corrected, the embedding's own, and `backbone.<frozen>`."""
        items = self.embedding.n_items
        base = {BASE: TableSpec((items, self.embedding.dim))} if self.embedding.uses_base else {}
        backbone = {self.backbone_name(name): spec for name, spec in self.backbone.frozen(items).items()}
        return base | dict(self.embedding.frozen) | backbone

    def start(
        self,
        base: Tensor,
        shared: Tensors,
        rng: torch.Generator,
        counts: Tensor | None = None,
        texts: Tensors | None = None,
    ) -> Started:
        """Initial tensors.

        Args:
            base: The base table [n_items, dim].
            shared: The backbone's shared tensors, which are taken as they are.
            rng: For the embedding.
            counts: Users per item [n_items] as the backbone had them counted (None: not counted, 1 for every item).
            texts: What the backbone makes of the items' texts (`Backbone.init_texts`); None for one that makes nothing.
        """
        made = self.embedding.init(base, rng)
        kept = {name: made.pop(name) for name in self.embedding.kept}
        frozen = {name: made.pop(name) for name in self.embedding.frozen}
        if self.embedding.uses_base:
            frozen[BASE] = base
        frozen |= self.backbone_frozen(torch.ones(self.embedding.n_items) if counts is None else counts)
        frozen |= {self.backbone_name(name): tensor for name, tensor in (texts or {}).items()}
        return Started(self.named(made, shared), frozen, kept)

    def init(
        self,
        base: Tensor,
        shared: Tensors,
        rng: torch.Generator,
        counts: Tensor | None = None,
        texts: Tensors | None = None,
    ) -> tuple[Tensors, Tensors]:
        """The trainable and the frozen tensors of `start`: all that a client ever sees."""
        started = self.start(base, shared, rng, counts, texts)
        return started.trainable, started.frozen

    def named(self, embedding: Tensors, shared: Tensors) -> Tensors:
        """The embedding's and the backbone's trained tensors under the names by which they travel."""
        trainable = {self.embedding_name(name): tensor for name, tensor in embedding.items()}
        return trainable | {self.backbone_name(name): tensor for name, tensor in shared.items()}

    def backbone_frozen(self, counts: Tensor) -> Tensors:
        """The backbone's frozen tensors for users per item [n_items], by the names under which they travel."""
        return {self.backbone_name(name): tensor for name, tensor in self.backbone.init_frozen(counts).items()}

    def frozen_problem(self, frozen: Tensors) -> str | None:
        """What is wrong with frozen tensors of the right names, shapes and types that came over the network, if any."""
        return self.embedding.frozen_problem(frozen) or self.backbone.frozen_problem(_under(_BACKBONE, frozen))

    def user(self, trainable: Tensors, frozen: Tensors, private: Tensors, history: History) -> Tensors:
        """What the backbone's score reads of a user: its private tensors, or what they and its history give."""
        backbone, shared = self.backbone, self.shared(trainable)
        if backbone.causal:
            sequence = history.sequence(backbone.history_length)
            own = _under(_BACKBONE, frozen)
            states = backbone.states(shared, private, own, sequence, ScoreContext(training=False))
            last = sequence.mask.sum(-1)
            return {name: _state(tensor, last) for name, tensor in states.items()}
        if not backbone.reads_history:
            return private
        return backbone.user(shared, private, _under(_BACKBONE, frozen), history)

    def states(
        self, trainable: Tensors, frozen: Tensors, private: Tensors, history: History, context: ScoreContext
    ) -> Tensors:
        """The states [..., n + 1, ...] of a causal backbone before and after each of a user's n items."""
        own = _under(_BACKBONE, frozen)
        return self.backbone.states(self.shared(trainable), private, own, history.sequence(), context)

    def losses(
        self, trainable: Tensors, frozen: Tensors, private: Tensors, history: History, ahead: Tensor, mask: Tensor
    ) -> Tensor:
        """What items [..., n] cost that follow a history, of a backbone with a loss of its own (`Backbone.losses`)."""
        return self.backbone.losses(self.shared(trainable), private, self.of_backbone(frozen), history, ahead, mask)

    def shared(self, trainable: Tensors) -> Tensors:
        """The backbone's shared tensors among the trained ones."""
        return _under(_BACKBONE, trainable)

    def of_backbone(self, frozen: Tensors) -> Tensors:
        """The backbone's tensors among the frozen ones."""
        return _under(_BACKBONE, frozen)

    def tables(self, trainable: Tensors) -> Tensors:
        """The embedding's row-addressable tables among the trained ones."""
        return {name: trainable[self.embedding_name(name)] for name in self.embedding.tables}

    def dense(self, trainable: Tensors) -> Tensors:
        """The embedding's dense tensors among the trained ones."""
        return {name: trainable[self.embedding_name(name)] for name in self.embedding.dense}

    def fixed_rows(self, frozen: Tensors, items: Tensor) -> FixedRows:
        """What item ids [...] read of the base table, if it is used, and of the embedding's frozen tables."""
        held = [name for name, spec in self.embedding.frozen.items() if isinstance(spec, TableSpec)]
        places = self.embedding.rows(items, frozen) if held else {}
        base = None
        if self.embedding.uses_base:
            base = frozen[BASE].index_select(0, items.flatten()).reshape(*items.shape, self.embedding.dim)
        return FixedRows({name: frozen[name][places[name]] for name in held}, base)

    def embed(self, rows: Tensors, dense: Tensors, frozen: Tensors, fixed: FixedRows) -> Tensor:
        """Vectors [..., items, dim] from gathered rows of the trained tables, and those of the frozen ones."""
        return self.embedding.embed(rows | fixed.tables, dense, frozen, fixed.base)

    def item_vectors(self, trainable: Tensors, frozen: Tensors, items: Tensor) -> Tensor:
        """Vectors [..., dim] of item ids [...], read from whole tables that all users share."""
        flat = items.reshape(-1)
        rows = self.embedding.rows(flat, frozen)
        gathered = {name: table[rows[name]] for name, table in self.tables(trainable).items()}
        vectors = self.embed(gathered, self.dense(trainable), frozen, self.fixed_rows(frozen, flat))
        return vectors.reshape(*items.shape, self.embedding.dim)

    def merged(self, correction: Tensors, frozen: Tensors) -> Tensor:
        """The base table with the correction folded in [n_items, dim].

        Added up in float64 and rounded once, so that hardly ever another machine comes to another table.
        """
        dense = {name: tensor.double() for name, tensor in self.dense(correction).items()}
        parts = []
        for part in torch.split(torch.arange(self.embedding.n_items), _ITEMS_AT_ONCE):
            places, fixed = self.embedding.rows(part, frozen), self.fixed_rows(frozen, part)
            rows = {name: table[places[name]].double() for name, table in self.tables(correction).items()}
            fixed = FixedRows(fixed.tables, None if fixed.base is None else fixed.base.double())
            parts.append(self.embed(rows, dense, frozen, fixed).float())
        return torch.cat(parts)


def models_of(setup: Setup) -> tuple[Model, ...]:
    """The model of each phase of a run: what the server trains, a client is sent, and `fedrec describe` counts.

    Raises ConfigError if the setup, which may have come over the network, describes none.
    """
    embeddings = [member_config("embedding", dict(phase.embedding)) for phase in setup.phases]
    steps = bool(setup.downlink_of_run.every)
    return tuple(Model.of(embedding, setup.backbone_of_run, setup.n_items, steps=steps) for embedding in embeddings)
