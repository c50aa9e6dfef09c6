"""What a curious server recovers: the attack finds what is there and no more; the page says what was measured."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:  # benchmarks are not installed
    sys.path.append(str(ROOT))

from benchmarks import item_recovery  # noqa: E402
from client_app.answers import app as app_module  # noqa: E402
from commands.audit.curious import Seen, along  # noqa: E402
from fedrec.config.compose import compose  # noqa: E402

NUMBER = {run.name: number for number, run in enumerate(item_recovery.RUNS)}
KEPT = item_recovery.RESULTS / "item_recovery.json"


def kept() -> dict[str, dict[str, Any]]:
    """The kept figures by the name of the run."""
    result: dict[str, Any] = json.loads(KEPT.read_text(encoding="utf-8"))
    assert result["sizes"] == "full"
    return {entry["name"]: entry for entry in result["figures"]["runs"]}


def direction(seed: int) -> torch.Tensor:
    return torch.nn.functional.normalize(torch.randn(8, generator=torch.Generator().manual_seed(seed)), dim=0)


@pytest.mark.parametrize("seed", range(5))
def test_positives_are_told_from_negatives_by_the_start_or_by_their_number(seed: int) -> None:
    user = direction(seed)
    amounts = torch.zeros(40)
    amounts[:4], amounts[10:30] = 1.0, -0.2
    moved = amounts[:, None] * user
    for start in (user + 0.5 * direction(seed + 100), None):
        score: NDArray[np.float32] = along(moved, start, None)
        assert (score[:4] > 1).all()
        assert (score[10:30] < 0).all()
    assert (along(-moved, user, along(moved, user, None).astype(np.float64))[:4] > 1).all(), "it agrees with the first"


def test_what_comes_again_in_every_update_is_found() -> None:
    seen = Seen([0, 0, 1], [np.array(row, np.float32) for row in ([1, 1, -1, 0], [1, 0, 1, -1], [2, -1, 0, 1])], 1)
    assert seen.always().tolist() == [True, False, False, False]
    assert seen.score().tolist() == [4.0, 0.0, 0.0, 0.0]
    assert seen.score([1]).tolist() == [2.0, -1.0, 0.0, 1.0]
    assert seen.score([0], 1).tolist() == [1.0, 1.0, -1.0, 0.0]


def test_a_server_recovers_lone_users_of_a_real_run_and_pseudo_items_halve_what_one_update_tells() -> None:
    """The real server and the real sites, at a small size: what the page says is not of one data set."""
    figures = {}
    for name in ("paper, full", "paper, full, pseudo_items"):
        app_module._node.cache_clear()
        figures[name] = item_recovery.look(NUMBER[name], None, 10, 4)
        assert figures[name]["users"] >= 5, "of ten, of whom half train in each of four rounds"
    assert figures["paper, full"]["one_update"]["history_precision"] > 0.95
    assert 0.35 < figures["paper, full, pseudo_items"]["one_update"]["history_precision"] < 0.65


def test_the_page_has_the_figures_of_the_kept_result() -> None:
    assert item_recovery.main(["--check"]) == 0


def test_the_kept_result_says_how_to_make_it_again() -> None:
    result = json.loads(KEPT.read_text(encoding="utf-8"))
    assert result["configuration"]["command"] == "python -m benchmarks.item_recovery --sizes full"
    for run in item_recovery.RUNS:
        texts = item_recovery.overrides(run, Path("items.csv"))
        assert result["configuration"]["overrides"][run.name] == texts
        compose(texts, base=ROOT)
    assert str(Path.home()) not in KEPT.read_text(encoding="utf-8")


def test_the_readme_quotes_what_was_measured() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    (paragraph,) = [text for text in readme.split("\n\n") if text.startswith("**What is not promised.**")]
    quoted = dict(re.findall(r"`([a-z, 0-9_]+)` (\d\.\d\d)", paragraph))
    measured = {f"{name}": f"{entry['whole_run']['history_precision']:.2f}" for name, entry in kept().items()}
    assert quoted
    assert {name: measured[name] for name in quoted} == quoted
