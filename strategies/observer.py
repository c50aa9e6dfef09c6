"""Who is told what happens in a run."""

from __future__ import annotations

from typing import Any, Protocol

from strategies.meter import Meter
from strategies.server_model import ServerState


class Observer(Protocol):
    """Is told what happens; writes it down or shows it."""

    def on_round(self, record: dict[str, Any]) -> None:
        """A round has ended; `record` is its metrics, one JSON object."""

    def on_checkpoint(self, round: int, state: ServerState, meter: Meter) -> None:
        """The global model after `round` is to be kept."""
