"""The end of a run as a person reads it."""

from __future__ import annotations

import io
import re
from typing import Any

import pytest
from rich.console import Console

from commands.report import show_summary

METRICS = {
    "hr@5": 0.1,
    "ndcg@5": 0.05,
    "recall@5": 0.1,
    "hr@10": 0.25,
    "ndcg@10": 0.125,
    "recall@10": 0.25,
    "mrr": 0.0625,
}
BYTES = {
    "up": 1500.0,
    "down": 2500.0,
    "one_time": 4_000_000.0,
    "total": 4_004_000.0,
    "by_phase": {"warmup": {"up": 1000.0, "down": 2000.0}, "peft": {"up": 500.0, "down": 500.0}},
    "evaluation": 950.0,
}


def summary(**changes: Any) -> dict[str, Any]:
    base = {
        "run": "/runs/[bold]a long name that no terminal should ever break in the middle of a word: it is copied",
        "rounds": 100,
        "chosen": "the model is that of round 70, with the best validation, not of the last, 100",
        "standing": "NDCG@10 is 0.0375 above that of popularity",
        "ahead": True,
        "seconds": 185.0,
        "test": {**METRICS, "users": 6040, "cold_users": 1234},
        "baselines": {"random": dict.fromkeys(METRICS, 0.01), "popularity": dict.fromkeys(METRICS, 0.0875)},
        "bytes_per_user": BYTES,
    }
    return {**base, **changes}


def shown(values: dict[str, Any], width: int = 80) -> str:
    stream = io.StringIO()
    show_summary(values, Console(file=stream, width=width))
    return stream.getvalue()


def row(text: str, name: str) -> list[str]:
    """The cells of the one row that begins with `name`."""
    lines = [line.strip(" │┃|") for line in text.splitlines()]
    found = [line for line in lines if re.match(rf"{re.escape(name)}(?= [ │]| │|$)", line)]
    assert len(found) == 1, (name, lines)
    return [cell.strip() for cell in re.split(r"│|  +", found[0].removeprefix(name)) if cell.strip()]


def test_what_the_embedding_reports_of_its_start_is_one_line_a_phase() -> None:
    text = shown(summary(embedding={"peft": {"distinct_codes": 3818, "expected": 3776.317, "used": 0.5}}))
    assert "peft started with distinct_codes=3818, expected=3776.32, used=0.5\n" in text
    assert "started with" not in shown(summary(embedding={})) + shown(summary())


def test_the_metrics_stand_beside_the_baselines() -> None:
    text = shown(summary())
    assert "Test, full ranking" in text
    assert row(text, "this model") == ["0.2500", "0.1250", "0.0625"]
    assert row(text, "random") == ["0.0100", "0.0100", "0.0100"]
    assert row(text, "popularity") == ["0.0875", "0.0875", "0.0875"]
    assert [name for name in ("HR@10", "NDCG@10", "MRR", "HR@5") if name in text] == ["HR@10", "NDCG@10", "MRR"]


def test_bytes_by_phase_and_direction() -> None:
    text = shown(summary())
    assert row(text, "warmup") == ["1.0 kB", "2.0 kB", "3.0 kB"]
    assert row(text, "peft") == ["500 B", "500 B", "1.0 kB"]
    assert row(text, "total") == ["1.5 kB", "2.5 kB", "4.0 MB"]
    assert row(text, "one-time (setup, frozen tensors)") == ["4.0 MB"]
    assert row(text, "evaluation (not included)") == ["950 B"]


def test_time_users_and_the_folder() -> None:
    text = shown(summary())
    assert "100 rounds in 3:05 min; 6,040 users ranked, 1,234 of them never trained" in text
    assert f"run folder: {summary()['run']}\n" in text, "in one piece, and its brackets are no markup"


def test_without_baselines_and_cold_users() -> None:
    text = shown(summary(baselines={}, test={**METRICS, "users": 3}))
    assert "3 users ranked, 0 of them never trained" in text
    assert row(text, "this model") == ["0.2500", "0.1250", "0.0625"]


def test_a_sampled_protocol_has_a_table_of_its_own() -> None:
    sampled = {f"sampled100/{name}": 2 * value for name, value in METRICS.items()}
    both = {**METRICS, **sampled}
    text = shown(summary(test={**both, "users": 3}, baselines={"random": dict.fromkeys(both, 0.01)}))
    full, _, other = text.partition("Test, sampled100")
    assert row(full, "this model") == ["0.2500", "0.1250", "0.0625"]
    assert row(other, "this model") == ["0.5000", "0.2500", "0.1250"]


@pytest.mark.parametrize("prefix", ["", "sampled20/"])
def test_other_cut_offs_show_the_first(prefix: str) -> None:
    names = ["hr@3", "ndcg@3", "recall@3", "hr@7", "ndcg@7", "recall@7", "mrr"]
    test = dict.fromkeys(names, 0.5) | {prefix + name: 0.75 for name in names}
    text = shown(summary(test={**test, "users": 3}, baselines={"random": dict.fromkeys(test, 0.01)}))
    assert "HR@3" in text
    assert "NDCG@3" in text
    assert "0.7500" in text
    assert "@7" not in text


def test_a_narrow_terminal_still_has_every_number() -> None:
    assert "0.1250" in shown(summary(), width=60)
