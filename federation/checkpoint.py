"""All that a run has to remember after a round, so that it can go on from there as if it had never stopped.

The users' private tensors are no part of it: they are on the users' own devices, which keep the versions that belong to
the checkpoints to which the server may go back.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from exchanges.records import grouped
from federation.server_model import ServerState
from federation.versions import OF_ANOTHER_PROTOCOL, Merges
from fedrec.core.errors import StoreError
from fedrec.core.tensors import Tensors

_STATE = ("trainable", "frozen", "kept", "optimiser")
_MERGED = "merged"


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

    def tensors(self) -> Tensors:
        """Everything that is numbers by the thousand, by names that say what it belongs to."""
        found = {f"meter.{name}": torch.from_numpy(counts) for name, counts in self.meter.items()}
        for group, state in self.states.items():
            parts = {part: getattr(state, part) for part in _STATE} | {_MERGED: state.merges.state()[1]}
            for part, tensors in parts.items():
                found |= {f"{grouped(part, group)}.{name}": tensor for name, tensor in tensors.items()}
        found["meter.users"] = torch.from_numpy(self.users.view(np.int64))
        found["meter.groups"] = torch.from_numpy(self.groups)
        if self.counts is not None:
            found["counts"] = self.counts
        return {name: tensor.contiguous() for name, tensor in found.items()}

    def facts(self) -> dict[str, Any]:
        """The rest, as plain data for JSON."""
        return {
            "round": self.round,
            "groups": {
                group: {
                    "phase": state.phase,
                    "frozen_digest": state.frozen_digest,
                    **state.merges.state()[0],
                    "reports": {phase: dict(facts) for phase, facts in self.reports.get(group, {}).items()},
                }
                for group, state in self.states.items()
            },
            "record": None if self.record is None else dict(self.record),
            "clock": self.clock,
        }

    @staticmethod
    def restored(tensors: Tensors, facts: Mapping[str, Any]) -> Checkpoint:
        """The inverse of `tensors` and `facts`.

        Raises KeyError if something is not among them, StoreError if a fedrec of another protocol has written them.
        """
        if "phase" in facts:  # the one model of a run, before there were groups
            raise StoreError(OF_ANOTHER_PROTOCOL)

        def part(name: str) -> Tensors:
            start = f"{name}."
            return {key.removeprefix(start): tensor for key, tensor in tensors.items() if key.startswith(start)}

        meter = {name: tensor.numpy() for name, tensor in part("meter").items()}
        states = {
            group: ServerState(
                phase=about["phase"],
                frozen_digest=about["frozen_digest"],
                merges=Merges.restored(about, part(grouped(_MERGED, group))),
                **{name: part(grouped(name, group)) for name in _STATE},
            )
            for group, about in facts["groups"].items()
        }
        return Checkpoint(
            round=facts["round"],
            states=states,
            users=meter.pop("users").view(np.uint64),
            groups=meter.pop("groups"),
            meter=meter,
            counts=tensors.get("counts"),
            reports={group: about["reports"] for group, about in facts["groups"].items()},
            record=facts.get("record"),
            clock=facts.get("clock", 0.0),
        )
