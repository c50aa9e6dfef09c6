"""What a person sees of a run: a bar in a terminal, plain lines otherwise."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from commands.progress import RunProgress, amount, duration


def record(number: int, **more: Any) -> dict[str, Any]:
    return {"round": number, "rounds": 100, "phase": "warmup", "loss": 0.6931, "seconds": 2.0, **more}


def shown(records: list[dict[str, Any]], *, terminal: bool) -> str:
    out = io.StringIO()
    console = Console(file=out, force_terminal=terminal, width=140, color_system=None, legacy_windows=False)
    with RunProgress(console) as progress:
        progress.stage("starting Flower")
        for each in records:
            progress.update(each)
    return out.getvalue()


def test_a_log_gets_whole_lines_with_round_phase_metric_bytes_and_remaining_time() -> None:
    validation = {"hr@10": 0.2, "ndcg@10": 0.1234, "sampled100/ndcg@10": 0.5}
    # The first round says nothing of how long the others take: workers start in it.
    lines = shown(
        [record(1, seconds=90.0), record(2, validation=validation, bytes_per_user={"total": 12_345})], terminal=False
    )
    assert lines.splitlines() == [
        "starting Flower",
        "round 1/100 warmup  loss 0.6931",
        "round 2/100 warmup  loss 0.6931  ndcg@10 0.1234  12.3 kB/user  3:16 min left",
    ]


def test_a_log_is_not_flooded() -> None:
    lines = shown([record(number) for number in range(1, 101)], terminal=False).splitlines()
    assert [line.split()[1] for line in lines[1:]] == ["1/100", "100/100"]


def test_a_new_phase_is_always_told() -> None:
    lines = shown([record(1), record(2), record(3, phase="peft")], terminal=False).splitlines()
    assert [line.split()[2] for line in lines[1:]] == ["warmup", "peft"]


def test_a_terminal_gets_a_bar_that_keeps_the_last_validation() -> None:
    text = shown([record(1, validation={"ndcg@10": 0.25}), record(2)], terminal=True)
    assert "round 2/100 warmup" in text
    assert text.rindex("ndcg@10 0.2500") > text.rindex("round 2/100")
    assert "━" in text or "╸" in text


def test_text_with_brackets_is_printed_as_it_is() -> None:
    out = io.StringIO()
    with RunProgress(Console(file=out, width=40)) as progress:
        progress.note("WARNING evaluation.ks=[5, 10] [red]and a line that is longer than the console is wide[/red]")
    assert "[5, 10] [red]and" in out.getvalue()
    assert out.getvalue().count("\n") == 1


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.2, "0 s"), (99.4, "99 s"), (185, "3:05 min"), (5_999, "1:40 h"), (7_800, "2:10 h")]
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (999, "999 B"), (1_000, "1.0 kB"), (999_999, "1.0 MB"), (3.2e12, "3200.0 GB")]
)
def test_amounts(count: float, text: str) -> None:
    assert amount(count) == text
