"""TensorBoard: event files in the run's folder, which `tensorboard --logdir runs` shows side by side."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from typing_extensions import override

from fedrec.core.registry import MemberConfig, trackers
from server_app.trackers.base import Tracked, Tracker

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

FOLDER = "tensorboard"
"""In the run's folder."""


@dataclass(frozen=True)
class TensorBoardConfig(MemberConfig):
    """Nothing to choose."""

    name: Literal["tensorboard"]


@trackers.register("tensorboard")
class TensorBoard(Tracker):
    """A scalar for each figure, and the configuration as text."""

    config_class = TensorBoardConfig
    package = "tensorboard"

    def __init__(self, config: TensorBoardConfig) -> None:
        self._writer: SummaryWriter | None = None

    @override
    def begin(self, run: Tracked) -> bool:
        from torch.utils.tensorboard import SummaryWriter

        told = (run.folder / FOLDER).is_dir() or not run.after
        # Of rounds that are done again only the last figures are shown.
        after = run.after + 1 if run.after else None
        self._writer = SummaryWriter(str(run.folder / FOLDER), purge_step=after)
        lines = [f"| `{key}` | `{value}` |" for key, value in run.settings.items()]
        text = "\n".join(["| key | value |", "|---|---|", *lines])
        self._writer.add_text("configuration", text, run.after)
        return told

    @override
    def tell(self, round: int, figures: Mapping[str, float]) -> None:
        assert self._writer is not None, "it has begun"
        for name, value in figures.items():
            self._writer.add_scalar(name, value, round)
        self._writer.flush()

    @override
    def end(self, figures: Mapping[str, float], *, finished: bool) -> None:
        assert self._writer is not None, "it has begun"
        for name, value in figures.items():
            self._writer.add_scalar(f"end/{name}", value)
        self._writer.close()
