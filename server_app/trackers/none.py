"""No tracker: a run is in its folder, and nowhere else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from typing_extensions import override

from fedrec.core.registry import MemberConfig, trackers
from server_app.trackers.base import Tracked, Tracker


@dataclass(frozen=True)
class NoTrackerConfig(MemberConfig):
    """Nothing to choose."""

    name: Literal["none"]


@trackers.register("none")
class NoTracker(Tracker):
    """Is told, and keeps nothing."""

    config_class = NoTrackerConfig

    def __init__(self, config: NoTrackerConfig) -> None:
        pass

    @override
    def begin(self, run: Tracked) -> bool:
        return True

    @override
    def tell(self, round: int, figures: Mapping[str, float]) -> None:
        pass

    @override
    def end(self, figures: Mapping[str, float], *, finished: bool) -> None:
        pass
