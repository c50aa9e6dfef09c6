"""All that a run has to remember after a round, so that it can go on from there as if it had never stopped.

The users' private tensors are no part of it: they are on the users' own devices, which keep the versions that belong to
the checkpoints to which the server may go back.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from exchanges.records import grouped
from federation.best_round import BestRound
from federation.server_model import ServerState
from federation.versions import OF_ANOTHER_PROTOCOL, Merges
from fedrec.core.errors import StoreError
from fedrec.core.tensors import Tensors

_STATE = ("trainable", "frozen", "kept", "optimiser")
_MERGED = "merged"
_BEST = "best"
_LASTING = ("frozen", "kept")
"""What stays as it is while the name of what is frozen does: it is not written twice."""


@dataclass(frozen=True)
class Checkpoint:
    """A run after a round.

    Attributes:
        round: The round after which it is.
        states: The global model and the server optimiser of each group.
        meter: Everything counted so far, as `Meter.state` gives it.
        users: uint64 [users], the keys of all users seen so far, in the order of their numbers.
        groups: int64 [users], the place of each one's group among the run's.
        counts: Users per item [items] as the backbone had them counted; None if it had not.
        reports: What the embedding of each phase so far said of its start, by group.
        record: After the last round, what is known of it before its ranking; None after every other round. This
            checkpoint is made before the ranking, so that a model that is trained to the end outlives whatever comes
            after it: a run that goes on from here has nothing left to do but to rank.
        clock: Simulated seconds since the start; 0 without a simulated network.
        best: The round with the best validation so far; None if there was none, or validation chooses no round.
    """

    round: int
    states: Mapping[str, ServerState]
    meter: Mapping[str, NDArray[Any]]
    users: NDArray[np.uint64]
    groups: NDArray[np.int64]
    counts: Tensor | None = None
    reports: Mapping[str, Mapping[str, Mapping[str, float]]] = field(default_factory=dict)
    record: Mapping[str, Any] | None = None
    clock: float = 0.0
    best: BestRound | None = None

    @property
    def for_use(self) -> tuple[int, Mapping[str, ServerState]]:
        """The round whose models are for use, and these: those of the best round, or else of this one."""
        return (self.round, self.states) if self.best is None else (self.best.round, self.best.states)

    @property
    def needs(self) -> int:
        """The earliest round whose private tensors are needed to go on from here: that of the models for use."""
        return self.for_use[0]

    def tensors(self) -> Tensors:
        """Everything that is numbers by the thousand, by names that say what it belongs to."""
        found = {f"meter.{name}": torch.from_numpy(counts) for name, counts in self.meter.items()}
        for group, state in self.states.items():
            found |= _tensors(state, group)
        for group, state in {} if self.best is None or self.best.round == self.round else self.best.states.items():
            shared = _LASTING if _same_version(state, self.states[group]) else ()
            # Cloned: after a round in which nobody's update counted, the model is still the very same tensors.
            found |= {f"{_BEST}.{name}": tensor.clone() for name, tensor in _tensors(state, group, shared).items()}
        found["meter.users"] = torch.from_numpy(self.users.view(np.int64))
        found["meter.groups"] = torch.from_numpy(self.groups)
        if self.counts is not None:
            found["counts"] = self.counts
        return {name: tensor.contiguous() for name, tensor in found.items()}

    def facts(self) -> dict[str, Any]:
        """The rest, as plain data for JSON."""
        best = {} if self.best is None else {group: _about(state) for group, state in self.best.states.items()}
        return {
            "round": self.round,
            "groups": {
                group: {
                    **_about(state),
                    "reports": {phase: dict(facts) for phase, facts in self.reports.get(group, {}).items()},
                }
                for group, state in self.states.items()
            },
            "record": None if self.record is None else dict(self.record),
            "clock": self.clock,
            "best": None if self.best is None else self.best.facts() | {"states": best},
        }

    @staticmethod
    def restored(tensors: Tensors, facts: Mapping[str, Any]) -> Checkpoint:
        """The inverse of `tensors` and `facts`.

        Raises KeyError if something is not among them, StoreError if a fedrec of another protocol has written them.
        """
        if "phase" in facts:  # the one model of a run, before there were groups
            raise StoreError(OF_ANOTHER_PROTOCOL)

        meter = {name: tensor.numpy() for name, tensor in _part(tensors, "meter").items()}
        groups = facts["groups"]
        states = {group: _restored(tensors, about, group) for group, about in groups.items()}
        return Checkpoint(
            round=facts["round"],
            states=states,
            users=meter.pop("users").view(np.uint64),
            groups=meter.pop("groups"),
            meter=meter,
            counts=tensors.get("counts"),
            reports={group: about["reports"] for group, about in groups.items()},
            record=facts.get("record"),
            clock=facts.get("clock", 0.0),
            best=_best(tensors, facts, states),
        )


def _part(tensors: Tensors, name: str) -> Tensors:
    start = f"{name}."
    return {key.removeprefix(start): tensor for key, tensor in tensors.items() if key.startswith(start)}


def _tensors(state: ServerState, group: str, without: Collection[str] = ()) -> Tensors:
    """The tensors of a group's state, but for the parts `without`, by names that say what they belong to."""
    parts = {part: getattr(state, part) for part in _STATE if part not in without} | {_MERGED: state.merges.state()[1]}
    return {
        f"{grouped(part, group)}.{name}": tensor for part, tensors in parts.items() for name, tensor in tensors.items()
    }


def _about(state: ServerState) -> dict[str, Any]:
    """The rest of it."""
    return {"phase": state.phase, "frozen_digest": state.frozen_digest, **state.merges.state()[0]}


def _same_version(one: ServerState, other: ServerState) -> bool:
    return (one.phase, one.frozen_digest) == (other.phase, other.frozen_digest)


def _restored(tensors: Tensors, about: Mapping[str, Any], group: str) -> ServerState:
    """The inverse of `_tensors` and `_about`."""
    return ServerState(
        phase=about["phase"],
        frozen_digest=about["frozen_digest"],
        merges=Merges.restored(about, _part(tensors, grouped(_MERGED, group))),
        **{name: _part(tensors, grouped(name, group)) for name in _STATE},
    )


def _best(tensors: Tensors, facts: Mapping[str, Any], states: Mapping[str, ServerState]) -> BestRound | None:
    """The best round of a checkpoint whose own states are `states`."""
    if (chosen := facts.get("best")) is None:
        return None
    if chosen["round"] == facts["round"]:
        then = {group: replace(state, optimiser={}) for group, state in states.items()}
    else:
        then = {group: _restored(_part(tensors, _BEST), about, group) for group, about in chosen["states"].items()}
    for group, state in then.items():
        if _same_version(state, states[group]):
            then[group] = replace(state, **{part: getattr(states[group], part) for part in _LASTING})
    return BestRound(chosen["round"], chosen["validation"], then, chosen["groups"], chosen["since"])
