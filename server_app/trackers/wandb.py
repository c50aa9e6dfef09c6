"""Weights & Biases: a run of a project, sent at once or kept in the run's folder until `wandb sync`.

It is told figures and the configuration alone: no code, no repository, no terminal's output, nothing of the machine.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

from annotated_types import MaxLen, MinLen
from typing_extensions import override

from fedrec.core.registry import MemberConfig, trackers
from fedrec.core.strict_json import json_page, parsed_object
from fedrec.core.whole_files import write_text
from server_app.trackers.base import Tracked, Tracker

if TYPE_CHECKING:
    import wandb


KEPT = "wandb.json"
"""In the run's folder: its name there, drawn at random, with which it goes on."""


@dataclass(frozen=True)
class WandbConfig(MemberConfig):
    """Configuration of `wandb`.

    Attributes:
        project: The project's name.
        mode: `online`, for which its own variables hold the key; or `offline`, kept in the run's folder.
    """

    name: Literal["wandb"]
    project: Annotated[str, MinLen(1), MaxLen(128)]
    mode: Literal["online", "offline"]


@trackers.register("wandb")
class Wandb(Tracker):
    """Figures by round; a run that is resumed goes on under its name there."""

    config_class = WandbConfig
    package = "wandb"

    def __init__(self, config: WandbConfig) -> None:
        self._config = config
        self._run: wandb.Run | None = None

    @override
    def begin(self, run: Tracked) -> bool:
        import wandb

        kept = run.folder / KEPT
        told = kept.is_file() or not run.after
        if not (run.after and kept.is_file()):
            write_text(kept, json_page({"run": secrets.token_hex(8)}))
        quiet: dict[str, Any] = {
            "silent": True,
            "console": "off",
            "disable_git": True,
            "disable_code": True,
            "save_code": False,
            "x_disable_stats": True,
            "x_disable_meta": True,
            "x_disable_machine_info": True,
        }
        self._run = wandb.init(
            project=self._config.project,
            mode=self._config.mode,
            name=run.name,
            id=str(parsed_object(kept.read_text(encoding="utf-8"))["run"]),
            resume="allow",
            dir=str(run.folder),
            config=dict(run.settings),
            settings=wandb.Settings(**quiet),
        )
        return told

    @override
    def tell(self, round: int, figures: Mapping[str, float]) -> None:
        assert self._run is not None, "it has begun"
        self._run.log(dict(figures), step=round)

    @override
    def end(self, figures: Mapping[str, float], *, finished: bool) -> None:
        assert self._run is not None, "it has begun"
        self._run.summary.update({f"end/{name}": value for name, value in figures.items()})
        self._run.finish(exit_code=0 if finished else 1)
