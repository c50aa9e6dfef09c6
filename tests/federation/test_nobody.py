"""A run in which nobody's update counts has failed, or says so; what is left out is said with its mend."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from commands.train import train
from fedrec.config.compose import compose
from fedrec.config.paths import settle
from fedrec.core.errors import FederationError

SMALL = [
    "dataset.n_users=60",
    "dataset.n_items=80",
    "dataset.interactions_per_user=8.0",
    "base_table.dim=8",
    "strategy.rounds=6",
    "strategy.warmup_rounds=2",
    "federation.fraction=0.5",
    "evaluation.baselines=false",
    "run_id=r",
]


def trained(folder: Path, *overrides: str) -> tuple[dict[str, Any], list[dict[str, Any]], str]:
    """A run's summary and records, and what it showed on the screen."""
    texts = [*SMALL, *overrides, f"runs_dir={folder}/runs", f"cache_dir={folder}/cache"]
    out = io.StringIO()
    summary = train(settle(compose(texts, base=None), None), texts, console=Console(file=out, width=400))
    lines = (folder / "runs/r/metrics.jsonl").read_text().splitlines()
    return summary, [json.loads(line) for line in lines], out.getvalue()


def test_a_round_in_which_nobodys_update_counts_ends_the_run_with_reason_and_mend(tmp_path: Path) -> None:
    with pytest.raises(FederationError) as caught:
        trained(tmp_path, "optim.lr=80.0", "federation.max_update_norm=0.1")
    said = str(caught.value)
    assert "round 1: the updates of 0 of 30 chosen users count, federation.min_users=1 are needed" in said
    assert "30 too_large (" in said
    assert "lower optim.lr" in said
    assert "round_repeated" not in said, "all nodes have answered: doing it again would change nothing"
    assert not (tmp_path / "runs/r/summary.json").exists()


def test_with_min_users_0_it_passes_and_everything_says_so(tmp_path: Path) -> None:
    summary, records, shown = trained(
        tmp_path, "optim.lr=80.0", "federation.max_update_norm=0.1", "federation.min_users=0"
    )
    assert [record["loss"] for record in records] == [None] * 6
    assert [record["users"] for record in records] == [0] * 6
    written = (tmp_path / "runs/r/summary.json").read_text()
    assert json.loads(written)["warnings"] == summary["warnings"]
    assert "6 of 6 rounds have changed nothing: nobody's update counted" in summary["warnings"][0]
    assert "180 of 180 times (100 %) that a user was chosen it was left out, too_large" in summary["warnings"][1]
    log = (tmp_path / "runs/r/log.txt").read_text()
    for text in (log, shown):
        assert "round 1: the model is as it was: nobody's update counted" in text
        assert "round 1: 30 of 30 chosen users were left out, too_large: " in text
        assert "lower optim.lr" in text
        assert "loss -" in text or "loss=-" in text
        assert "round 3: 30 of" not in text, "the same is not said in every round"


def test_half_left_out_is_said_too(tmp_path: Path) -> None:
    summary, records, shown = trained(tmp_path, "optim.lr=10.0", "federation.max_update_norm=100.0")
    dropped = sum(record["dropped_users"].get("too_large", 0) for record in records)
    assert 0 < dropped < 180
    (warning,) = [text for text in summary["warnings"] if "too_large" in text]
    assert warning.startswith(f"{dropped} of 180 times")
    assert warning in shown
    assert "lower optim.lr" in warning


def test_a_run_in_which_all_counts_warns_of_nothing(tmp_path: Path) -> None:
    summary, _, shown = trained(tmp_path)
    assert summary["warnings"] == []
    assert "WARNING" not in shown
    assert "warning" not in shown
