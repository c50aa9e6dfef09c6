"""Runs side by side: every figure by hand, what cannot be compared, and the picture."""

from __future__ import annotations

import importlib
import io
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

from commands.cli import app
from commands.compare import compare, read_run, show_comparison
from commands.curve_plot import draw
from fedrec.core.errors import FedrecError
from fedrec.evaluation.compared_by import curve_metric
from fedrec.evaluation.curves import Point, curve, reached, read_records, write_curve

ROOT = Path(__file__).resolve().parents[2]
if str(ROOT) not in sys.path:  # benchmarks are not installed
    sys.path.append(str(ROOT))


def metrics(ndcg: float) -> dict[str, float]:
    return {"ndcg@10": ndcg, "hr@10": 2 * ndcg}


def moved(up: float, merges: float = 0.0) -> dict[str, float]:
    return {"up": up, "down": 2 * up, "one_time": 100.0, "merges": merges, "total": 3 * up + 100 + merges}


def folder(
    path: Path,
    values: Mapping[int, float],
    *,
    federated: bool = True,
    data: str = "d",
    last: int | None = None,
    timed: float | None = None,
) -> Path:
    """A run that was validated after some of its rounds, in each of which a user uploads 1,000 bytes.

    With `timed` a round takes so many simulated seconds.
    """
    path.mkdir()
    rounds = last or max(values)
    lines: list[dict[str, Any]] = [{"round": number} for number in range(1, rounds + 1)]
    for line in lines:
        if federated:
            line["bytes_per_user"] = moved(1000.0 * line["round"], 50.0 * (line["round"] > 2))
        if timed:
            line["simulated_seconds"] = timed * line["round"]
        if line["round"] in values:
            line["validation"] = metrics(values[line["round"]])
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    summary: dict[str, Any] = {"rounds": rounds, "seconds": 61.0, "test": metrics(0.04)}
    summary["validation"] = metrics([*values.values()][-1]) if values else {}
    if federated:
        summary["bytes_per_user"] = lines[-1]["bytes_per_user"]
    if timed:
        summary["simulated_seconds"] = lines[-1]["simulated_seconds"]
    (path / "summary.json").write_text(json.dumps(summary))
    about = {"catalogue": "c", "interactions": data, "validation": bool(values)}
    (path / "manifest.json").write_text(json.dumps({"data": about, "overrides": []}))
    return path


def test_runs_with_groups_are_compared_over_them(tmp_path: Path, runs: list[str]) -> None:
    """Groups of .02, .04 and .09: their mean is .05, and the variance (.03^2 + .01^2 + .04^2) / 3."""
    grouped = folder(tmp_path / "grouped", {2: 0.05, 4: 0.06})
    summary = json.loads((grouped / "summary.json").read_text())
    summary["groups"] = {str(place): {"test": metrics(value)} for place, value in enumerate((0.02, 0.04, 0.09))}
    (grouped / "summary.json").write_text(json.dumps(summary))
    found = compare([str(grouped), runs[0]], None)
    told = found.as_dict()["runs"]
    expected = {"mean": 0.05, "worst": 0.02, "standard_deviation": (0.0026 / 3) ** 0.5}
    assert told[0]["over_groups"] == pytest.approx(expected)
    assert "over_groups" not in told[1]
    shown = io.StringIO()
    show_comparison(found, Console(file=shown, width=200))
    (row,) = [line for line in shown.getvalue().splitlines() if "grouped" in line and "0.0294" in line]
    assert [cell.strip() for cell in row.strip("│ ").split("│")] == ["grouped", "3", "0.0500", "0.0200", "0.0294"]
    alone = io.StringIO()
    show_comparison(compare(runs, None), Console(file=alone, width=200))
    assert "over groups" not in alone.getvalue()


@pytest.fixture
def runs(tmp_path: Path) -> list[str]:
    fast = folder(tmp_path / "fast", {2: 0.0899, 4: 0.09, 6: 0.096, 8: 0.093})
    slow = folder(tmp_path / "slow", {2: 0.05, 4: 0.07})
    ceiling = folder(tmp_path / "central", {1: 0.08, 2: 0.1, 3: 0.09}, federated=False)
    return [str(fast), str(slow), str(ceiling)]


def shown(paths: Sequence[str], ceiling: str | None = None) -> str:
    stream = io.StringIO()
    show_comparison(compare(paths, ceiling), Console(file=stream, width=80))
    return stream.getvalue()


def test_every_figure_by_hand(runs: list[str]) -> None:
    found = compare(runs, None).as_dict()
    assert found["ceiling"] == {"value": 0.1, "source": "the best of these runs, central"}
    fast, slow, central = found["runs"]
    assert (fast["run"], fast["rounds"], fast["seconds"], fast["validation"]) == ("fast", 8, 61.0, 0.093)
    assert fast["test"] == {"ndcg@10": 0.04, "hr@10": 0.08}
    # 8 rounds of 1,000 up and 2,000 down, 100 once, 50 for merges.
    assert fast["bytes_per_user"] == {"up": 8000, "down": 16000, "one_time": 100, "merges": 50, "total": 24150}
    # .0899 is below 90 % of .1, .09 is not; .096 is the first at or above 95 %; nothing is at .099.
    at = {"simulated_seconds": None}
    four, six = {"round": 4, "bytes": 12150, **at}, {"round": 6, "bytes": 18150, **at}
    assert fast["to_reach"] == {"90": four, "95": six, "99": None}
    assert slow["to_reach"] == {"90": None, "95": None, "99": None}
    assert central["bytes_per_user"] is None
    assert central["to_reach"] == {share: {"round": 2, "bytes": None, **at} for share in ("90", "95", "99")}


def test_simulated_time_is_compared_where_there_is_some(runs: list[str], tmp_path: Path) -> None:
    from matplotlib.image import imread

    assert "Simulated time" not in shown(runs)
    timed = str(folder(tmp_path / "timed", {2: 0.05, 4: 0.09, 6: 0.095}, timed=20.25))
    found = compare([*runs, timed], None)
    run = found.as_dict()["runs"][3]
    assert run["simulated_seconds"] == 121.5
    assert {share: point and point["simulated_seconds"] for share, point in run["to_reach"].items()} == {
        "90": 81.0,
        "95": 121.5,
        "99": None,
    }
    text = shown([*runs, timed]).partition("Simulated time")[2]
    lines = [[cell.strip() for cell in line.strip("│").split("│")] for line in text.splitlines() if "│" in line]
    assert ["timed", "81.0 s", "2:02 min", "not reached", "2:02 min"] in lines
    assert ["fast", "-", "-", "-", "-"] in lines
    draw(found, tmp_path / "plot.png")
    assert imread(tmp_path / "plot.png").shape[1] == 1885
    write_curve(Path(timed))
    assert (Path(timed) / "curve.csv").read_text().splitlines()[:2] == [
        "round,up,down,one_time,merges,total,simulated_seconds,ndcg@10",
        "2,2000.0,4000.0,100.0,0.0,6100.0,40.5,0.05",
    ]


def test_the_first_round_at_or_above_a_target_counts_and_nothing_in_between() -> None:
    points = [Point(1, None, 0.2), Point(5, None, 0.4), Point(9, None, 0.3), Point(13, None, 0.5)]
    assert [getattr(reached(points, target), "round", None) for target in (0.1, 0.2, 0.21, 0.4, 0.45, 0.51)] == [
        1,
        1,
        5,
        5,
        13,
        None,
    ]


def test_the_tables_for_people(runs: list[str]) -> None:
    text = shown(runs)
    lines = [[cell.strip() for cell in line.strip("│").split("│")] for line in text.splitlines() if "│" in line]
    assert ["fast", "0.0400", "0.0800", "8", "61 s"] in lines
    assert ["fast", "8.0 kB", "16.0 kB", "150 B", "24.1 kB"] in lines
    assert ["central", "-", "-", "-", "-"] in lines
    assert ["fast", "12.2 kB, round 4", "18.1 kB, round 6", "not reached"] in lines
    assert ["central", "round 2", "round 2", "round 2"] in lines
    assert "ceiling: validation NDCG@10 0.1000, the best of these runs, central\n" in text
    assert "same data" not in text


def test_a_ceiling_is_a_number_a_run_or_the_best(runs: list[str]) -> None:
    assert compare(runs, "0.0999").ceiling == (compare(runs[:2], "0.0999").ceiling)
    assert compare(runs[:2], "0.0999").as_dict()["ceiling"] == {"value": 0.0999, "source": "as given"}
    assert compare(runs[:2], runs[2]).as_dict()["ceiling"] == {"value": 0.1, "source": "central"}
    # The best validation, also where the last is worse.
    assert compare(runs[:2], None).ceiling.value == 0.096
    for wrong in ("7", "0", "nan"):
        with pytest.raises(FedrecError, match="between 0 and 1"):
            compare(runs, wrong)
    with pytest.raises(FedrecError, match="there is no such run"):
        compare(runs, "nowhere")


def test_a_run_without_validation_is_compared_by_its_test_and_is_no_ceiling(runs: list[str], tmp_path: Path) -> None:
    last = folder(tmp_path / "last", {}, last=3)
    found = compare([runs[0], str(last)], None)
    assert found.ceiling.source.endswith("fast")
    shown_run = found.as_dict()["runs"][1]
    assert (shown_run["test"]["ndcg@10"], shown_run["validation"]) == (0.04, None)
    assert set(shown_run["to_reach"].values()) == {None}
    assert "last" in shown([runs[0], str(last)])
    for paths, ceiling in (([str(last)], None), (runs, str(last))):
        with pytest.raises(FedrecError, match="last has no validation to be a ceiling"):
            compare(paths, ceiling)
    assert compare([str(last)], "0.1").ceiling.value == 0.1


def test_other_data_equal_names_and_a_lone_validation_are_told(runs: list[str], tmp_path: Path) -> None:
    (tmp_path / "more").mkdir()
    twin = folder(tmp_path / "more" / "fast", {3: 0.05}, data="other")
    text = shown([*runs, str(twin)])
    assert "not about the same data" in text
    found = compare([*runs, str(twin)], None)
    assert [run.name for run in found.runs] == [runs[0], "slow", "central", str(twin)]
    assert f"Of {twin} only one validation is known" in text
    assert "not about the same data" in shown(runs, str(twin)), "a ceiling is compared with too"
    assert "not about the same data" not in shown(runs[:2], runs[2])


def break_summary(path: Path, text: str | None) -> None:
    if text is None:
        (path / "summary.json").unlink()
    else:
        (path / "summary.json").write_text(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "no finished run"),
        ("{", "cannot be read as a run"),
        ("[]", "expected a JSON object"),
        ('{"rounds": 3}', "cannot be read as a run"),
        ('{"rounds": 3, "seconds": 1, "test": {"ndcg@5": 1}, "validation": {}}', "its test has no ndcg@10; runs are"),
        ('{"rounds": 3, "test": {"ndcg@10": 1, "hr@10": 1}, "validation": {"ndcg@10": 1, "hr@10": 1}}', "'seconds'"),
    ],
)
def test_a_folder_that_is_no_run_is_a_plain_error(runs: list[str], text: str | None, message: str) -> None:
    break_summary(Path(runs[0]), text)
    with pytest.raises(FedrecError, match=message) as error:
        read_run(Path(runs[0]))
    assert runs[0] in str(error.value)


def test_damaged_metrics_are_a_plain_error(runs: list[str]) -> None:
    (Path(runs[0]) / "metrics.jsonl").write_text('{"round": 1,\n')
    with pytest.raises(FedrecError, match="restore its files"):
        read_run(Path(runs[0]))


def test_a_kept_run_has_its_curve_and_one_without_has_its_end(runs: list[str], tmp_path: Path) -> None:
    results_table = importlib.import_module("benchmarks.results_table")
    timed = folder(tmp_path / "timed", {2: 0.05, 4: 0.07}, timed=1.5)
    for run in [str(timed), *runs]:
        kept = results_table.kept("kept", Path(run))
        path = tmp_path / "kept.json"
        path.write_text(json.dumps(kept))
        assert read_run(path).points == read_run(Path(run)).points
    del kept["curve"]
    kept["summary"] = json.loads((Path(runs[0]) / "summary.json").read_text())
    path.write_text(json.dumps(kept))
    assert read_run(path).points == [Point(8, moved(8000.0, 50.0), 0.093)]


def test_the_curve_of_a_run_as_csv(runs: list[str]) -> None:
    for run in (Path(runs[1]), Path(runs[2])):
        write_curve(run)
    assert (Path(runs[1]) / "curve.csv").read_text() == (
        "round,up,down,one_time,merges,total,ndcg@10\n"
        "2,2000.0,4000.0,100.0,0.0,6100.0,0.05\n"
        "4,4000.0,8000.0,100.0,50.0,12150.0,0.07\n"
    )
    assert (Path(runs[2]) / "curve.csv").read_text().splitlines()[1] == "1,,,,,,0.08"
    assert curve_metric(["hr@5", "ndcg@5", "ndcg@20", "sampled9/ndcg@10", "mrr"]) == "ndcg@20"
    assert curve_metric(["ndcg@5", "ndcg@10", "ndcg@20"]) == "ndcg@10"


def test_no_validation_no_curve(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"round": 1}\n')
    write_curve(tmp_path)
    assert not (tmp_path / "curve.csv").exists()
    assert curve(read_records(tmp_path), "ndcg@10") == []


# ---- the picture, and the command ------------------------------------------------------------------------------------


def test_the_picture_has_all_runs(runs: list[str], tmp_path: Path) -> None:
    from matplotlib.image import imread

    for paths, width in ((runs, 1365), (runs[2:], 845)):
        path = tmp_path / "plot.png"
        draw(compare(paths, None), path)
        assert imread(path).shape[1] == width
    for name in ("plot.pdf", "nowhere/plot.png"):
        with pytest.raises(FedrecError, match="--plot"):
            draw(compare(runs, None), tmp_path / name)


def test_what_has_no_curve_cannot_be_drawn(runs: list[str], tmp_path: Path) -> None:
    (Path(runs[2]) / "metrics.jsonl").unlink()
    with pytest.raises(FedrecError, match="nothing that was named has a curve"):
        draw(compare(runs[2:], None), tmp_path / "plot.png")


def test_without_matplotlib_it_is_named(runs: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(FedrecError, match=r"pip install matplotlib"):
        draw(compare(runs, None), tmp_path / "plot.png")


def test_the_command(runs: list[str], tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["compare", *runs, "--ceiling", runs[2], "--json"])
    assert done.exit_code == 0
    assert json.loads(done.stdout) == compare(runs, runs[2]).as_dict()
    done = CliRunner().invoke(app, ["compare", *runs, "--plot", str(tmp_path / "plot.png")])
    assert done.exit_code == 0
    assert "not reached" in done.stdout
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
    done = CliRunner().invoke(app, ["compare", str(tmp_path / "nothing"), "--json"])
    assert done.exit_code == 1
    assert "there is no such run" in json.loads(done.stdout)["error"]


def test_an_unknown_baseline_is_refused_by_its_name() -> None:
    done = CliRunner().invoke(app, ["baseline", "best"])
    assert done.exit_code == 2
    assert "central" in done.output
    done = CliRunner().invoke(app, ["baseline", "--help"])
    assert "baseline central dataset=ml_1m strategy.rounds=50" in done.output
