"""What several commands are told: overrides, and whether to end with JSON."""

from __future__ import annotations

from typing import Annotated

import typer

from commands.ending import JSON_OPTION
from fedrec.config.compose import compose
from fedrec.config.paths import portable, settle, working_directory
from fedrec.config.schema import RunConfig

Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[OVERRIDES]...", help="group=member or section.key=value", show_default=False),
]
AsJson = Annotated[
    bool, typer.Option(JSON_OPTION, help="End with one line of JSON on stdout; all else goes to stderr.")
]


def prepared(overrides: list[str]) -> tuple[RunConfig, list[str]]:
    """The configuration, and overrides that make the same one in any working directory."""
    config = settle(compose(overrides, base=working_directory()), working_directory())
    return config, portable(overrides, config)
