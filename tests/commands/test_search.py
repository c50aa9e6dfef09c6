"""`fedrec tune --trials`: the study is resumed to the same end, and every declared space lies within what is legal."""

from __future__ import annotations

import io
import json
import shlex
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

from commands import search as searching
from commands.candidates import search_of
from commands.cli import app
from commands.search import STUDY, space_of
from commands.tune import search
from fedrec.config.compose import compose
from fedrec.config.describe import load_member
from fedrec.config.validate import member_config, plain
from fedrec.core.errors import ConfigError, FedrecError
from fedrec.core.registry import FAMILIES
from fedrec.core.space import OneOf

SHOP = ["dataset.n_users=30", "dataset.n_items=60", "dataset.interactions_per_user=8", "dataset.topics=4"]
SMALL = ["base_table.dim=8", "federation.fraction=0.3", "optim=fast", "backbone=recency", "strategy=full"]
SMALL += ["strategy.rounds=16", "optim.loss=softmax", "optim.server.lr=0.02", "evaluation.beyond_accuracy=false"]
MEMBERS = [(family, name) for family in FAMILIES for name in FAMILIES[family].names()]
DECLARED = [(family, name) for family, name in MEMBERS if hasattr(FAMILIES[family].get(name), "space")]


def searched(place: Path, trials: int, *more: str) -> dict[str, Any]:
    texts = [*SHOP, *SMALL, *more, f"runs_dir={place}/runs", f"cache_dir={place}/cache", "run_id=t"]
    return search(texts, trials, place, console=Console(file=io.StringIO(), width=300))


def test_a_search_that_is_killed_goes_on_to_the_same_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = searched(tmp_path / "whole", 2)
    attempt: Any = searching.Search._try
    tried = 0

    def killed(self: Any, *arguments: Any) -> None:
        nonlocal tried
        tried += 1
        if tried == 2:
            *before, let = arguments

            def stops(candidate: Any, parts: int, console: Console) -> None:
                let(candidate, parts, console)
                raise KeyboardInterrupt

            attempt(self, *before, stops)
        attempt(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(searching.Search, "_try", killed)
        with pytest.raises(KeyboardInterrupt):
            searched(tmp_path / "killed", 2)
    resumed = searched(tmp_path / "killed", 2)
    assert resumed["test"] == whole["test"]
    keys = ("experiment", "tried", "validation", "bytes_per_user")
    figures = [[{key: each[key] for key in keys} for each in run["tune"]["candidates"]] for run in (whole, resumed)]
    assert figures[0] == figures[1]
    assert len(figures[0]) == 2
    run = Path(resumed["run"])
    assert (run / STUDY).is_file()
    assert not (run.parent / "t-search" / STUDY).exists()
    found = json.loads((run / "tune.json").read_text())
    best = next(each for each in found["candidates"] if each["experiment"] == found["experiment"])
    half = [each["validation"] for each in found["candidates"] if each["tried"] >= 8]
    assert best["validation"] >= max(half)
    drawn = {text.partition("=")[0] for text in shlex.split(found["command"])[2:]}
    assert drawn >= {"optim.negatives", "backbone.length"}
    assert found["bytes_per_user"] == sum(each["bytes_per_user"] for each in found["candidates"] if each is not best)


def test_a_search_goes_on_only_for_what_it_was_begun_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stops(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(searching.Search, "_try", stops)
    with pytest.raises(KeyboardInterrupt):
        searched(tmp_path, 1)
    with pytest.raises(ConfigError, match="was begun with other overrides"):
        searched(tmp_path, 1, "seed=1")
    typed = ["strategy=full", "optim=paper", *(f"optim.{key}=1" for key in FAMILIES["optim"].get("paper").space)]
    with pytest.raises(ConfigError, match="none of the chosen members declares values"):
        search([*typed, f"runs_dir={tmp_path}/other"], 1, tmp_path, console=Console(file=io.StringIO()))


def test_a_damaged_journal_is_said(tmp_path: Path) -> None:
    folder = search_of(tmp_path / "runs" / "t")
    folder.mkdir(parents=True)
    (folder / searching.STUDY).write_text("rubbish\n" * 3)
    with pytest.raises(FedrecError, match=r"study\.log is damaged"):
        searched(tmp_path, 1)


def test_trials_and_experiments_do_not_go_together() -> None:
    done = CliRunner().invoke(app, ["tune", "--trials", "2", "--among", "steady"])
    assert done.exit_code == 2
    assert "give one" in done.output


def test_what_is_typed_is_not_searched() -> None:
    config = compose(["optim=fast"], base=None)
    assert set(space_of(config, ["optim=fast", "optim.negatives=7"])) == set(space_of(config, [])) - {"optim.negatives"}
    assert "embedding.rank" in space_of(config, [])


@pytest.mark.parametrize(("family", "name"), DECLARED)
def test_a_declared_space_lies_within_what_is_legal(family: str, name: str) -> None:
    for key, axis in FAMILIES[family].get(name).space.items():
        values = axis.values if isinstance(axis, OneOf) else (axis.low, axis.high)
        assert len(set(values)) == len(values) > 1
        section, _, inner = key.partition(".")
        for value in values:
            member = plain(load_member(family, name))
            changed = {section: {**member[section], inner: value}} if inner else {section: value}
            member_config(family, {**member, **changed})
