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

from federation.server_model import ServerState
from federation.versions import Merges
from fedrec.core.tensors import Tensors

_STATE = ("trainable", "frozen", "kept", "optimiser")


@dataclass(frozen=True)
class Checkpoint:
    """A run after a round.

    Attributes:
        round: The round after which it is.
        state: The global model and the server optimiser.
        meter: Everything counted so far, as `Meter.state` gives it.
        users: uint64 [users], the keys of all users seen so far, in the order of their numbers.
        counts: Users per item [items] as the backbone had them counted; None if it had not.
        reports: What the embedding of each phase so far said of its start.
        record: After the last round, what is known of it before its ranking; None after every other round. This
            checkpoint is made before the ranking, so that a model that is trained to the end outlives whatever comes
            after it: a run that goes on from here has nothing left to do but to rank.
    """

    round: int
    state: ServerState
    meter: Mapping[str, NDArray[Any]]
    users: NDArray[np.uint64]
    counts: Tensor | None = None
    reports: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    record: Mapping[str, Any] | None = None

    def tensors(self) -> Tensors:
        """Everything that is numbers by the thousand, by names that say what it belongs to."""
        found = {f"{part}.{name}": tensor for part in _STATE for name, tensor in getattr(self.state, part).items()} | {
            f"meter.{name}": torch.from_numpy(counts) for name, counts in self.meter.items()
        }
        found |= {f"merged.{name}": packet for name, packet in self.state.merges.state()[1].items()}
        found["meter.users"] = torch.from_numpy(self.users.view(np.int64))
        if self.counts is not None:
            found["counts"] = self.counts
        return {name: tensor.contiguous() for name, tensor in found.items()}

    def facts(self) -> dict[str, Any]:
        """The rest, as plain data for JSON."""
        return {
            "round": self.round,
            "phase": self.state.phase,
            "frozen_digest": self.state.frozen_digest,
            **self.state.merges.state()[0],
            "reports": {phase: dict(facts) for phase, facts in self.reports.items()},
            "record": None if self.record is None else dict(self.record),
        }

    @staticmethod
    def restored(tensors: Tensors, facts: Mapping[str, Any]) -> Checkpoint:
        """The inverse of `tensors` and `facts`. Raises KeyError if something is not among them."""

        def part(name: str) -> Tensors:
            start = f"{name}."
            return {key.removeprefix(start): tensor for key, tensor in tensors.items() if key.startswith(start)}

        meter = {name: tensor.numpy() for name, tensor in part("meter").items()}
        state = ServerState(
            phase=facts["phase"],
            frozen_digest=facts["frozen_digest"],
            trainable=part("trainable"),
            frozen=part("frozen"),
            kept=part("kept"),
            optimiser=part("optimiser"),
            merges=Merges.restored(facts, part("merged")),
        )
        return Checkpoint(
            round=facts["round"],
            state=state,
            users=meter.pop("users").view(np.uint64),
            meter=meter,
            counts=tensors.get("counts"),
            reports=facts["reports"],
            record=facts.get("record"),
        )
