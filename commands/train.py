"""`fedrec train`: a run in this process, with the real server and clients and no SuperLink."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from rich.console import Console

from client_app.answers.app import app as client_app
from commands.beyond_accuracy import evaluated
from commands.local_grid import LocalGrid
from commands.progress import RunProgress
from commands.report import show_summary
from fedrec.config.schema import RunConfig
from server_app.run import run


def train(config: RunConfig, overrides: Sequence[str], *, console: Console) -> dict[str, Any]:
    """Carry out a run on an in-process grid and return its summary; `config` has its folders settled."""
    # Many small operations: a second thread spends its time waiting for the first.
    torch.set_num_threads(1)
    grid = LocalGrid(client_app, config.simulation.nodes)
    with RunProgress(console) as progress, progress.warnings():
        summary = evaluated(config, run(config, overrides, grid, progress), progress.stage)
    show_summary(summary, console)
    return summary
