"""The page of a run: whole, escaped, and with the figures of the run's own files."""

from __future__ import annotations

import io
import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from client_app.answers import app as app_module
from client_app.answers.app import app as client_app
from commands.baseline.command import baseline
from commands.cli import app
from commands.html_report import report
from commands.local_grid import LocalGrid
from commands.report import byte_rows, group_rows, show_summary
from fedrec.config.compose import compose
from fedrec.config.paths import settle
from fedrec.core.errors import FedrecError
from server_app.run import run

SMALL = [
    "dataset.n_users=40",
    "dataset.n_items=60",
    "dataset.interactions_per_user=8",
    "dataset.topics=4",
    "base_table.dim=8",
]


class Page(HTMLParser):
    """The text of a page, its tables, and what it would load."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.words: list[str] = []
        self.tags: list[str] = []
        self.loads: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.loads += [
            str(value) for name, value in attrs if name in ("src", "href") and not str(value).startswith("#")
        ]

    def handle_data(self, data: str) -> None:
        self.words.append(data)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    texts = [
        *SMALL,
        "strategy.rounds=3",
        "strategy.warmup_rounds=1",
        "strategy.merge_every=1",
        "evaluation.every=1",
        "evaluation.sampled_negatives=10",
        f"runs_dir={folder}/runs",
        f"cache_dir={folder}/cache",
        "run_id=one",
    ]
    app_module._node.cache_clear()
    return Path(run(settle(compose(texts, base=None), None), texts, LocalGrid(client_app, 2))["run"])


def test_the_page_has_the_figures_of_the_run(finished: Path) -> None:
    done = CliRunner().invoke(app, ["report", str(finished), "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["report"] == str(finished / "report.html")
    page, summary = Page(finished / "report.html"), json.loads((finished / "summary.json").read_text())
    for metrics in (summary["test"], *summary["baselines"].values()):
        assert f"{metrics['ndcg@10']:.4f}" in page.text
        assert f"{metrics['sampled10/ndcg@10']:.4f}" in page.text
    rate = summary["test"]["hr@10"]
    assert f"{rate:.4f} ± {(rate * (1 - rate) / 40) ** 0.5:.4f}" in page.text
    for said in (
        "merges into tables, and steps",
        "dataset.n_users 1000 40",
        "base_table.dim 32 8",
        "flwr",
        "training loss",
        summary["chosen"],
        summary["standing"],
    ):
        assert said in page.text, said
    assert "NDCG@10 at validation" in page.text
    assert page.loads == []
    assert "script" not in page.tags
    assert page.tags.count("svg") == 1


def test_what_comes_from_elsewhere_is_escaped(finished: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(finished, copy)
    summary = json.loads((copy / "summary.json").read_text())
    summary["warnings"] = ["<script>alert(1)</script>", "<img src=x onerror=alert(1)>"]
    summary["run"] = "/a/<b>name"
    (copy / "summary.json").write_text(json.dumps(summary))
    lines = [json.loads(line) for line in (copy / "metrics.jsonl").read_text().splitlines()]
    lines[0]["dropped_users"] = {"<i>late</i>": 3}
    lines[0]["loss"] = lines[1]["validation"]["ndcg@10"] = None  # of a model that diverged
    (copy / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    page = Page(report(copy, tmp_path / "page.html"))
    assert not {"script", "img", "i"} & set(page.tags)
    assert "users left out by their own node: <i>late</i> 3" in page.text
    assert "<script>alert(1)</script>" in page.text
    assert "<b>name" in page.text


def test_a_baseline_has_a_page_too_without_bytes(finished: Path, tmp_path: Path) -> None:
    texts = [
        *SMALL,
        "central.epochs=2",
        "strategy=full",
        f"runs_dir={tmp_path}",
        f"cache_dir={finished.parents[1]}/cache",
    ]
    config = settle(compose(texts, base=None), None)
    summary = baseline("central", config, texts, console=Console(file=io.StringIO()))
    page = Page(report(Path(summary["run"]), None))
    assert "NDCG@10 at validation" in page.text
    assert "bytes per user" not in page.text.lower()


def test_groups_and_bytes_are_those_that_the_command_prints(finished: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(finished, copy)
    summary = json.loads((copy / "summary.json").read_text())
    test = {"users": 20, "hr@10": 0.5, "ndcg@10": 0.25, "mrr": 0.125}
    summary["groups"] = {"a": {"test": test}, "b": {"test": {**test, "ndcg@10": 0.75}}}
    (copy / "summary.json").write_text(json.dumps(summary))
    shown = io.StringIO()
    show_summary(summary, Console(file=shown, width=200))
    page = Page(report(copy, tmp_path / "page.html"))
    for row in (
        *group_rows({name: ranked["test"] for name, ranked in summary["groups"].items()})[1],
        *byte_rows(summary["bytes_per_user"]),
    ):
        assert " ".join(cell for cell in row if cell) in page.text
        assert all(cell in shown.getvalue() for cell in row)
    assert "worst 0.5000 0.2500" in page.text


@pytest.mark.parametrize("damaged", ["{}", '{"test": 3}', "[1]", '{"test": {"users": "x"}, "run": "r"}'])
def test_a_damaged_summary_is_said(finished: Path, tmp_path: Path, damaged: str) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(finished, copy)
    (copy / "summary.json").write_text(damaged)
    with pytest.raises(FedrecError, match="damaged"):
        report(copy, None)


def test_the_same_run_has_the_same_page(finished: Path, tmp_path: Path) -> None:
    pages = [report(finished, tmp_path / name).read_bytes() for name in ("one.html", "two.html")]
    assert pages[0] == pages[1]


def test_what_cannot_be_reported_is_said(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FedrecError, match="is not the folder of a finished run"):
        report(tmp_path, None)
    with pytest.raises(FedrecError, match="give another file with --out"):
        report(finished, tmp_path / "nowhere" / "page.html")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(FedrecError, match="a report needs matplotlib, which is not installed"):
        report(finished, tmp_path / "page.html")
    assert not (tmp_path / "page.html").exists()


@pytest.mark.runtime
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_browser_shows_it(finished: Path, tmp_path: Path, scheme: str) -> None:
    """Needs Chromium on the path."""
    page, shot = report(finished, tmp_path / "page.html"), tmp_path / "page.png"
    quiet = "--headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking --disable-sync"
    dark = ["--blink-settings=preferredColorScheme=0"] if scheme == "dark" else []
    common = ["chromium", *quiet.split(), *dark, f"--user-data-dir={tmp_path}/profile", "--window-size=1200,1600"]
    dom = subprocess.run(
        [*common, "--dump-dom", page.as_uri()], capture_output=True, text=True, check=True, timeout=120
    )
    assert "NDCG@10 at test" in re.sub(r"<[^>]*>", "", dom.stdout)
    subprocess.run([*common, f"--screenshot={shot}", page.as_uri()], capture_output=True, check=True, timeout=120)
    from matplotlib.image import imread

    brightness = float(imread(shot)[:, :, :3].mean())
    assert brightness > 0.8 if scheme == "light" else brightness < 0.4
