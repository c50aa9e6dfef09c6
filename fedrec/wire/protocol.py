"""What server and client tell each other: the setup of a run, and the scalars of each kind of packet.

The setup is JSON made of names and numbers. A client checks it like any input from the network: members are looked
up in the registry by name and their values validated against the member's own configuration class.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from annotated_types import Ge, Gt, Le, MaxLen, MinLen, Predicate
from numpy.typing import NDArray
from pydantic import Field

from fedrec.aggregations.base import Aggregation
from fedrec.backbones.base import Backbone
from fedrec.codecs.base import Codec
from fedrec.codecs.rounding import RoundingCodec
from fedrec.core import registry
from fedrec.core.bounds import (
    LARGEST_NORM,
    LARGEST_SEED,
    LARGEST_TABLE,
    MOST_DIMENSIONS,
    MOST_ITEMS,
    MOST_NEGATIVES,
    MOST_WEIGHT,
    CutOffs,
)
from fedrec.core.errors import PacketError
from fedrec.core.tensors import Spec, without_tables
from fedrec.downlinks.base import Downlink
from fedrec.groupings.base import Grouping
from fedrec.networks.base import Network
from fedrec.optim.base import Recipe
from fedrec.stages.chain import Stages
from fedrec.stages.limits import Limits
from fedrec.stages.rows import RowLimits
from fedrec.uplinks.base import Room, Uplink
from fedrec.wire.packet import Kind, Packet, PacketFormat
from fedrec.wire.updates import DROPPED

PROTOCOL_VERSION = 3

_CHECKED: Mapping[str, Any] = {"extra": "forbid", "strict": True, "allow_inf_nan": False}
_LONGEST_SETUP = 2**20
_DENSE: Mapping[str, Any] = {"name": "dense"}
_NO_NETWORK: Mapping[str, Any] = {"name": "none"}
_PLAIN: Mapping[str, Any] = {"name": "plain"}

Short = Annotated[str, MaxLen(200)]
_Path = Annotated[str, MaxLen(4096), Predicate(lambda text: "\0" not in text)]
_Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{0,64}\z")]

MODEL_SCALARS = ("checkpoint_round",)
"""With the model goes the round of the oldest checkpoint that is kept: the server may go back so far, and a node keeps
the versions of private tensors that it would need then."""

UPDATE_SCALARS = ("weight", "users", "examples", "loss", "cold_users", *DROPPED)
"""With an update go sums over the node's users: weight, users in the sum, examples, weighted loss, users who trained
for the first time, and users left out by reason. Where devices list the rows that they changed, one more goes with the
sum of several: the bytes of the tensors in the packets that they would have sent, together."""


METRICS_COUNTS = ("users", "cold_users", "diverged_users")
"""Before the sums of metrics go the users who were ranked, those of them who never trained, and users who were left out
because their own tensors are not finite."""


@dataclass(frozen=True)
class SimulatedData:
    """Where a simulated node finds what a real device would own: absolute paths on a disk that all workers share.

    Attributes:
        interactions: Folder of the prepared interactions.
        state_dir: Folder of what the simulated devices keep.
        token: What the server has written into the state-dir, to be found there by every worker.
    """

    __pydantic_config__: ClassVar[Mapping[str, Any]] = _CHECKED

    interactions: _Path
    state_dir: _Path
    token: Short


@dataclass(frozen=True)
class PhaseSetup:
    """One phase of training: its name and the embedding that is trained in it."""

    __pydantic_config__: ClassVar[Mapping[str, Any]] = _CHECKED

    name: Short
    embedding: Mapping[str, Any]


@dataclass(frozen=True)
class Setup:
    """Everything a client must know about a run before its first round."""

    __pydantic_config__: ClassVar[Mapping[str, Any]] = _CHECKED

    protocol: int
    run_key: Short
    seed: Annotated[int, Ge(0), Le(LARGEST_SEED)]
    n_items: Annotated[int, Ge(1), Le(MOST_ITEMS)]
    dim: Annotated[int, Ge(1), Le(MOST_DIMENSIONS)]
    catalogue: _Digest
    eligible: _Digest
    phases: Annotated[tuple[PhaseSetup, ...], MinLen(1), MaxLen(256)]
    backbone: Mapping[str, Any]
    optim: Mapping[str, Any]
    codec: Mapping[str, Any]
    privacy: Mapping[str, Any]
    grouping: Mapping[str, Any]
    ks: CutOffs
    sampled_negatives: Annotated[int, Ge(0), Le(MOST_NEGATIVES)]
    validation: bool
    weight_cap: Annotated[int, Ge(1), Le(MOST_WEIGHT)]
    max_update_norm: Annotated[float, Gt(0), Le(LARGEST_NORM)]
    max_row_norm: Annotated[float, Gt(0), Le(LARGEST_NORM)] | Literal["auto"] | None
    engine: Short
    pairs_at_once: Annotated[int, Ge(1), Le(MOST_ITEMS)]
    simulation: SimulatedData | None
    network: Mapping[str, Any] = field(default_factory=lambda: dict(_NO_NETWORK))
    uplink: Mapping[str, Any] = field(default_factory=lambda: dict(_DENSE))
    downlink: Mapping[str, Any] = field(default_factory=lambda: dict(_DENSE))
    aggregation: Mapping[str, Any] = field(default_factory=lambda: dict(_PLAIN))
    item_labels: _Digest = ""

    def to_json(self) -> str:
        """One line of JSON with sorted keys; nothing of what is the plain one, or not there."""
        told = dataclasses.asdict(self)
        if not self.item_labels:
            del told["item_labels"]
        if told["aggregation"] == _PLAIN:
            del told["aggregation"]
        for link in ("uplink", "downlink"):
            if told[link] == _DENSE:
                del told[link]
        if self.network == _NO_NETWORK:
            del told["network"]
        return json.dumps(told, sort_keys=True, separators=(",", ":"))

    def device_json(self) -> str:
        """What a real device would be told: neither where a simulated node finds its data, nor what is simulated of it.

        A budget for its replies it would be told.
        """
        network = self.network if self.network_of_run.limits_replies else _NO_NETWORK
        return dataclasses.replace(self, simulation=None, network=network).to_json()

    @staticmethod
    def from_json(text: str) -> Setup:
        """Parse and check what came over the network. Raises PacketError (`malformed`, `oversized`) that says why."""
        from pydantic import TypeAdapter, ValidationError

        if len(text) > _LONGEST_SETUP:
            raise PacketError("oversized", f"the server's setup has {len(text)} characters, at most {_LONGEST_SETUP}")
        try:
            setup = TypeAdapter(Setup).validate_json(text)
        except ValidationError as error:
            raise PacketError("malformed", f"the server's setup is not valid: {error}") from error
        if setup.protocol != PROTOCOL_VERSION:
            raise PacketError(
                "malformed",
                f"the server speaks protocol {setup.protocol}, this client {PROTOCOL_VERSION}: install the same fedrec",
            )
        if setup.n_items * setup.dim > LARGEST_TABLE:
            raise PacketError(
                "malformed",
                f"the server's setup has n_items={setup.n_items} and dim={setup.dim}: a table of them has more than "
                f"{LARGEST_TABLE} numbers",
            )
        return setup

    def metric_names(self) -> tuple[str, ...]:
        """Names of the metrics that clients sum, in the order in which they travel."""
        plain = [f"{name}@{k}" for k in self.ks for name in ("hr", "ndcg", "recall")] + ["mrr"]
        prefixes = ["", f"sampled{self.sampled_negatives}/"] if self.sampled_negatives else [""]
        return tuple(prefix + name for prefix in prefixes for name in plain)

    def _member(self, family: str, *given: object) -> Any:
        """The member of a family that the run names, made of its configuration and what else it is given."""
        from fedrec.config.validate import member_config

        config = member_config(family, dict(getattr(self, family)))
        return registry.FAMILIES[family].get(config.name)(config, *given)

    @cached_property
    def backbone_of_run(self) -> Backbone:
        """Scores items for users; one object for all phases."""
        backbone: Backbone = self._member("backbone", self.dim)
        return backbone

    @cached_property
    def recipe_of_run(self) -> Recipe:
        """How users train, and how the server steps."""
        recipe: Recipe = self._member("optim", self.backbone_of_run.advice)
        return recipe

    @cached_property
    def grouping_of_run(self) -> Grouping:
        """Which groups there are, and which of them a user belongs to."""
        grouping: Grouping = self._member("grouping", self.seed)
        return grouping

    @cached_property
    def network_of_run(self) -> Network:
        """What is known of users' devices."""
        network: Network = self._member("network", self.seed)
        return network

    @cached_property
    def aggregation_of_run(self) -> Aggregation:
        """How users' updates are added up."""
        aggregation: Aggregation = self._member("aggregation")
        return aggregation

    @property
    def groups(self) -> tuple[str, ...]:
        """The names of the groups."""
        return self.grouping_of_run.names

    @cached_property
    def codec_of_run(self) -> Codec:
        """Of models and users' updates."""
        codec: Codec = self._member("codec")
        return codec

    @cached_property
    def stages(self) -> Stages:
        """What becomes of users' updates on devices of no grade, and of their sum on the server."""
        return self.stages_of("")

    def stages_of(self, grade: str) -> Stages:
        """The same on devices of which their node says this grade: on lesser ones an uplink may send less."""
        limits = Limits(self.weight_cap, self.max_update_norm)
        members = [self._member("privacy")]
        room: Room | None = None
        if self.network_of_run.limits_replies:
            room = partial(self._room, grade)
        uplink: Uplink = self._member("uplink", self.codec_of_run, room)
        aggregation = self.aggregation_of_run
        return Stages(
            members,
            self.codec_of_run,
            limits,
            self._row_limits,
            uplink=uplink,
            bits=aggregation.bits,
            masked=aggregation.masked,
        )

    def _room(self, grade: str, keys: NDArray[np.uint64]) -> NDArray[np.int64]:
        """What the budget of a reply leaves to the tensors in it."""
        head = PacketFormat(Kind.UPDATE, {}, self.codec_of_run, len(UPDATE_SCALARS)).size()
        return self.network_of_run.reply_budget(keys, grade) - head

    @property
    def _row_limits(self) -> RowLimits | None:
        """Those of the recipe, or the one that was given for all rows."""
        limit, cap = self.max_row_norm, self.weight_cap
        if limit is None:
            return None
        if limit != "auto":
            return RowLimits(lambda width: limit, cap)
        recipe = self.recipe_of_run
        if math.isinf(recipe.row_reach(1)):
            return None
        return RowLimits(lambda width: cap * recipe.row_reach(width), cap)

    @cached_property
    def downlink_of_run(self) -> Downlink:
        """How the trained tables travel to devices."""
        downlink: Downlink = self._member("downlink", self.codec_of_run)
        return downlink

    def model_format(self, trainable: Spec) -> PacketFormat:
        """Server to client, every round: what is trained, without the tables where devices hold these."""
        sent = without_tables(trainable) if self.downlink_of_run.every else trainable
        return PacketFormat(Kind.MODEL, sent, self.codec_of_run, len(MODEL_SCALARS))

    def update_format(self, trainable: Spec, users: int) -> PacketFormat:
        """Client to server, every round, from a node that was asked to train `users` users: the sum over them.

        The sum over one user is what its own device would send. With `UPDATE_SCALARS` go the bytes that the users' own
        devices would have sent, where these differ and nobody sees them.
        """
        spec, codec = self.stages.sum_format(trainable, users)
        unseen = users > 1 and self.stages.uplink.tells_rows
        return PacketFormat(Kind.UPDATE, spec, codec, len(UPDATE_SCALARS) + unseen)

    def held_format(self, held: Spec, coded: Sequence[str], *, merged: bool) -> PacketFormat:
        """Server to client: all that devices hold under the model, once a phase, and for who is too far behind.

        What the packet decodes to, to the bit, is what is held, on the server too.

        Args:
            held: What that is.
            coded: The tables in it that travel in the run's codec; everything else travels exactly.
            merged: Whether something was merged into a base table among them, which travels exactly from then on.
                Tables that are moved by steps stay of the codec's numbers instead, whose scales are steady then.
        """
        from fedrec.codecs.base_table import BaseTableCodec

        codec, steps = self.codec_of_run, bool(self.downlink_of_run.every)
        if not isinstance(codec, RoundingCodec) or (merged and not steps):
            return frozen_format(held)
        codec = codec.steady() if steps else codec
        return PacketFormat(Kind.FROZEN, held, BaseTableCodec(coded, codec, _plain_codec()), 0)

    def merged_format(self, merged: Spec) -> PacketFormat:
        """Server to client: what makes a version of what devices hold of the one before it.

        Where tables are moved by steps that is a step, else a correction of the base table.
        """
        codec = self.downlink_of_run.packet if self.downlink_of_run.every else self.codec_of_run
        return PacketFormat(Kind.MERGED, merged, codec, 0)

    def metrics_format(self) -> PacketFormat:
        """Client to server after an evaluation: `METRICS_COUNTS`, then the sums of the metrics."""
        return PacketFormat(Kind.METRICS, {}, self.codec_of_run, len(METRICS_COUNTS) + len(self.metric_names()))


def frozen_format(frozen: Spec) -> PacketFormat:
    """Server to client: what is frozen after a merge, and public lists; exact, whatever the run's codec."""
    return PacketFormat(Kind.FROZEN, frozen, _plain_codec(), 0)


def checkpoint_round(packet: Packet) -> int:
    """The round in the scalars of a packet with `MODEL_SCALARS`: the earliest to which the server may go back.

    Raises PacketError (`malformed`) if it is no round up to that of the packet.
    """
    (value,) = packet.scalars
    if not (0 <= value <= packet.round and value == int(value)):  # neither NaN nor infinity passes the first
        raise PacketError(
            "malformed",
            f"the earliest round to go back to should be a whole one up to {packet.round}, not {value!r}",
        )
    return int(value)


def _plain_codec() -> Codec:
    from fedrec.codecs.float32 import Float32Codec, Float32Config

    return Float32Codec(Float32Config("float32"))
