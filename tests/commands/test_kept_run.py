"""Recommending and comparing from what a run has left: damaged, moved, without its cache, or another account's."""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from client_app.answers import app as app_module
from client_app.answers.app import app as client_app
from client_app.stores.frozen import _load
from client_app.stores.last_model import kept_models
from commands.cli import app
from commands.local_grid import LocalGrid
from fedrec.config.compose import compose
from fedrec.config.paths import settle
from fedrec.data.store import open_store
from server_app.checkpoints import _digest
from server_app.run import run

SMALL = [
    "dataset.n_users=30",
    "dataset.n_items=40",
    "strategy.rounds=4",
    "strategy.warmup_rounds=2",
    "federation.fraction=0.5",
    "checkpoint_every=2",
    "evaluation.every=0",  # the last round is then the best, too
    "run_id=r",
]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run, and its cache beside it."""
    place = tmp_path_factory.mktemp("made")
    texts = [*SMALL, f"runs_dir={place}/runs", f"cache_dir={place}/cache"]
    run(settle(compose(texts, base=None), None), texts, LocalGrid(client_app, 2))
    return place


@pytest.fixture
def place(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the run, to be damaged; there is nothing in this account's own cache."""
    shutil.copytree(made / "runs" / "r", tmp_path / "r")
    monkeypatch.setenv("FEDREC_HOME", str(tmp_path / "home"))
    open_store.cache_clear()
    _load.cache_clear()
    return tmp_path / "r"


def recommend(place: Path, *typed: str) -> tuple[int, dict[str, Any]]:
    """Status and line of `fedrec recommend`; nothing that is not JSON, and no stack trace, ever."""
    done = CliRunner().invoke(app, ["recommend", str(place), "--top", "3", "--json", *typed])
    assert "Traceback" not in done.stderr, done.stderr
    assert done.stdout.count("\n") == 1
    return done.exit_code, json.loads(done.stdout, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))


def users_of(place: Path) -> str:
    interactions = json.loads((place / "setup.json").read_text())["simulation"]["interactions"]
    return open_store(Path(interactions)).user_ids[3]


def newest(place: Path) -> Path:
    return max((place / "checkpoints").glob("*.safetensors"))


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-30] ^= 1
    path.write_bytes(content)


def not_finite(path: Path) -> None:
    tensors = load_file(path)
    tensors["frozen.base"][5:12] = float("nan")
    save_file(tensors, path)


def overwrite(path: Path, text: str) -> None:
    path.write_text(text)


DAMAGES: dict[str, Callable[[Path], None]] = {
    "a flipped bit": lambda place: flip(newest(place)),
    "numbers that are not finite": lambda place: not_finite(newest(place)),
    "cut": lambda place: os.truncate(newest(place), newest(place).stat().st_size - 9),
    "gone": lambda place: newest(place).unlink(),
    "no JSON": lambda place: overwrite(newest(place).with_suffix(".json"), "{"),
    "no object": lambda place: overwrite(newest(place).with_suffix(".json"), "[]"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_passed_over_and_that_is_said(
    place: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    user = users_of(place)
    assert recommend(place, "--user", user)[1]["passed_over"] == []
    DAMAGES[damage](place)
    with caplog.at_level(logging.WARNING, logger="fedrec"):
        status, found = recommend(place, "--user", user)
    assert (status, found["round"], found["passed_over"]) == (0, 2, [4])
    assert "checkpoint round-000004 is damaged and is passed over" in caplog.text
    shown = CliRunner().invoke(app, ["recommend", str(place), "--user", user]).stdout
    assert "from the model of round 2; newer ones are damaged" in shown


def test_nothing_is_recommended_from_damaged_checkpoints_alone(place: Path) -> None:
    for path in (place / "checkpoints").glob("*.safetensors"):
        flip(path)
    status, found = recommend(place, "--history", "i01")
    assert status == 1
    assert "every checkpoint in" in found["error"]


def diverged(place: Path, value: float) -> None:
    """The newest checkpoint as a training that diverged would have left it: sound, and not finite."""
    path = newest(place)
    tensors = load_file(path)
    tensors["frozen.base"][7] = value
    save_file(tensors, path)
    facts = json.loads(path.with_suffix(".json").read_text())
    path.with_suffix(".json").write_text(json.dumps({**facts, "digest": _digest(path.read_bytes())}))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 3e38])
def test_a_model_that_diverged_ranks_nothing(place: Path, value: float) -> None:
    diverged(place, value)
    for typed in (("--user", users_of(place)), ("--history", "i01,i02")):
        status, found = recommend(place, *typed)
        if status == 0:  # a huge number that is one
            assert all(abs(item["score"]) < 1e300 for item in found["items"])
            assert value == 3e38
        else:
            assert "has diverged" in found["error"]


def items(place: Path, change: Callable[[Any], Any]) -> None:
    listed = json.loads((place / "items.json").read_text())
    (place / "items.json").write_text(json.dumps(change(listed)))


BROKEN: dict[str, tuple[Callable[[Path], Any], str]] = {
    "items: a list": (lambda place: items(place, lambda _: []), "items.json is damaged (expected a JSON object"),
    "items: cut": (lambda place: items(place, lambda x: {**x, "ids": x["ids"][:5]}), "it has 5 ids, and the model 40"),
    "items: titles cut": (lambda place: items(place, lambda x: {**x, "titles": []}), "it has 0 titles"),
    "items: numbers": (lambda place: items(place, lambda x: {**x, "ids": list(range(40))}), "not a list of texts"),
    "items: twice": (lambda place: items(place, lambda x: {**x, "ids": ["a"] * 40}), "names an item twice"),
    "items: no ids": (lambda place: items(place, lambda x: {"titles": x["titles"]}), "is damaged (no 'ids')"),
    "items: gone": (lambda place: (place / "items.json").unlink(), "items.json is missing"),
    "setup: a list": (lambda place: (place / "setup.json").write_text("[]"), "is not the folder of a run"),
    "setup: binary": (lambda place: (place / "setup.json").write_bytes(b"\xff\xfe\x00"), "is not the folder of a run"),
    "eligible: damaged": (
        lambda place: [flip(path) for path in (place / "state/frozen").iterdir()],
        "may be recommended",
    ),
    "eligible: gone": (lambda place: shutil.rmtree(place / "state/frozen"), "may be recommended"),
    "private tensors: gone": (
        lambda place: (place / "state/users.sqlite").unlink(),
        "private tensors of the users, is mi",
    ),
    "private tensors: no store": (
        lambda place: (place / "state/users.sqlite").write_bytes(b"x" * 5000),
        "users' store",
    ),
    "checkpoints: gone": (lambda place: shutil.rmtree(place / "checkpoints"), "checkpoints is missing"),
    "checkpoints: none": (
        lambda place: [path.unlink() for path in (place / "checkpoints").iterdir()],
        "no checkpoint yet",
    ),
    "checkpoint: another model's": (lambda place: other_shape(place), "are not those of the model"),
    "seed: another": (lambda place: other_seed(place), "does not know user"),
}


def other_shape(place: Path) -> None:
    path = newest(place)
    tensors = load_file(path)
    tensors["trainable.embedding.B"] = torch.zeros(2, 3)
    save_file(tensors, path)
    facts = json.loads(path.with_suffix(".json").read_text())
    path.with_suffix(".json").write_text(json.dumps({**facts, "digest": _digest(path.read_bytes())}))


def other_seed(place: Path) -> None:
    setup = json.loads((place / "setup.json").read_text())
    (place / "setup.json").write_text(json.dumps({**setup, "seed": 7}))


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_run_folder_is_said_plainly(place: Path, kind: str) -> None:
    user = users_of(place)
    change, said = BROKEN[kind]
    change(place)
    status, found = recommend(place, "--user", user)
    assert status == 1
    assert said in found["error"]
    assert re.search("restore|give runs/<id>|wait for one|move it away", found["error"]), "it says how to mend it"


def test_an_emptied_cache_and_a_copied_folder_are_made_good(
    made: Path, place: Path, caplog: pytest.LogCaptureFixture
) -> None:
    user = users_of(place)
    known, new = recommend(place, "--user", user), recommend(place, "--history", "i01,i02")
    interactions = made / "cache" / "interactions"
    (made / "cache").rename(made / "elsewhere")
    open_store.cache_clear()
    try:
        assert recommend(place, "--history", "i01,i02") == new
        assert "prepared anew" not in caplog.text, "a new user's items are all that is needed"
        assert recommend(place, "--user", user) == known
        assert "they are prepared anew from its config.yaml" in caplog.text
        caplog.clear()
        open_store.cache_clear()
        assert recommend(place, "--user", user) == known
        assert "prepared anew" not in caplog.text, "they are in this account's own cache now"
        assert not interactions.exists()
    finally:
        (made / "elsewhere").rename(made / "cache")


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (("n_users: 30", "n_users: 31"), "is no longer the one that the run was trained on"),
        (("name: synthetic", "name: nowhere"), "cannot be prepared anew"),
        (("seed: 0", "seed: ["), "config.yaml cannot be read"),
    ],
)
def test_other_data_are_never_taken_for_the_runs(made: Path, place: Path, config: tuple[str, str], said: str) -> None:
    user = users_of(place)
    text = (place / "config.yaml").read_text()
    assert config[0] in text
    (place / "config.yaml").write_text(text.replace(*config))
    setup = json.loads((place / "setup.json").read_text())
    stored = Path(setup["simulation"]["interactions"])
    setup["simulation"]["interactions"] = f"/nowhere/{stored.name}"
    (place / "setup.json").write_text(json.dumps(setup))
    status, found = recommend(place, "--user", user)
    assert status == 1
    assert said in found["error"]
    assert "--history" in found["error"]
    assert recommend(place, "--history", "i01")[0] == 0


def test_a_run_is_only_read(place: Path) -> None:
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in place.rglob("*") if path.is_file()}
    assert recommend(place, "--history", "i01")[0] == 0
    after = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in place.rglob("*") if path.is_file()}
    changed = {path.relative_to(place).parts[:2] for path in after if after[path] != before.get(path)}
    assert changed <= {("state", "frozen")}, "the time of the last reading"
    assert before.keys() == after.keys()


SUMMARIES: dict[str, Callable[[dict[str, Any]], Any]] = {
    "validation null": lambda found: found["validation"].update({"ndcg@10": None}),
    "test null": lambda found: found["test"].update({"hr@10": None}),
    "a text": lambda found: found["test"].update({"ndcg@10": "nan"}),
    "not finite": lambda found: found["test"].update({"ndcg@10": float("nan")}),
    "bytes": lambda found: found["bytes_per_user"].update({"total": "many"}),
    "rounds": lambda found: found.update({"rounds": None}),
    "test a list": lambda found: found.update({"test": []}),
    "validation a text": lambda found: found.update({"validation": "ndcg@10 hr@10"}),
}


def compared(*typed: str) -> tuple[int, dict[str, Any]]:
    done = CliRunner().invoke(app, ["compare", *typed, "--json"])
    assert "Traceback" not in done.stderr, done.stderr
    return done.exit_code, json.loads(done.stdout, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))


@pytest.mark.parametrize("change", SUMMARIES)
def test_a_run_without_its_figures_is_not_compared(made: Path, place: Path, change: str) -> None:
    found = json.loads((place / "summary.json").read_text())
    SUMMARIES[change](found)
    (place / "summary.json").write_text(json.dumps(found))
    status, line = compared(str(made / "runs" / "r"), str(place))
    assert status == 1
    assert str(place) in line["error"]


def test_a_last_line_of_metrics_that_breaks_off_is_left_out(place: Path, caplog: pytest.LogCaptureFixture) -> None:
    whole = compared(str(place))
    with (place / "metrics.jsonl").open("a") as file:
        file.write('{"round": 5, "loss"')
    assert compared(str(place)) == whole
    assert "its last line breaks off" in caplog.text
    with (place / "metrics.jsonl").open("a") as file:
        file.write("\n")
    status, line = compared(str(place))
    assert status == 1
    assert "metrics.jsonl is damaged" in line["error"]


def test_a_round_that_diverged_is_no_point_of_a_curve(place: Path) -> None:
    path = place / "metrics.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    lines[-1]["validation"]["ndcg@10"] = None
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert compared(str(place))[0] == 0


def test_a_site_passes_over_a_model_whose_every_word_is_not_as_it_was_written(made: Path, tmp_path: Path) -> None:
    """The packet has a checksum of its own; what is said of it has one here."""
    app_module._node.cache_clear()
    listed = json.loads((made / "runs/r/items.json").read_text())["ids"]
    (tmp_path / "items.csv").write_text("item_id,title\n" + "".join(f"{item},{item}\n" for item in listed))
    lines = "".join(f"u{n},{item}\n" for n in range(9) for item in listed[n : n + 7])
    (tmp_path / "clicks.csv").write_text("user_id,item_id\n" + lines)
    config = {"interactions": f"{tmp_path}/clicks.csv", "state-dir": f"{tmp_path}/device", "time-column": ""}
    texts = ["runtime=deployment", "dataset=table", f"dataset.item_table={tmp_path}/items.csv", "simulation.nodes=1"]
    texts += ["base_table.start=random", "base_table.dim=4", "strategy.rounds=2", "strategy.warmup_rounds=1"]
    texts += ["federation.fraction=1.0", "run_id=d", f"runs_dir={tmp_path}/runs", f"cache_dir={tmp_path}/cache"]
    run(settle(compose(texts, base=None), None), texts, LocalGrid(client_app, [config]))
    typed = ["recommend", "--state-dir", f"{tmp_path}/device", "--user", "u3", "--json"]
    assert CliRunner().invoke(app, typed).exit_code == 0
    (path,) = kept_models(tmp_path / "device")
    good = path.read_bytes()
    head = good.index(b"\n")
    for at in [*range(0, head, 7), head + 9, len(good) - 1]:
        bad = bytearray(good)
        bad[at] ^= 1
        path.write_bytes(bad)
        done = CliRunner().invoke(app, typed)
        assert done.exit_code == 1, at
        assert "no model in" in json.loads(done.stdout)["error"]
    path.write_bytes(good)
    for store in (tmp_path / "device" / "interactions").iterdir():
        flip_number(store / "items.npy")
    open_store.cache_clear()
    done = CliRunner().invoke(app, typed)
    assert "is damaged" in json.loads(done.stdout)["error"]


def flip_number(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-4:] = struct.pack("<i", struct.unpack("<i", content[-4:])[0] ^ 1)
    path.write_bytes(content)


def test_a_working_directory_that_is_gone_is_said(tmp_path: Path) -> None:
    code = (
        "import os, sys; os.mkdir(sys.argv[1]); os.chdir(sys.argv[1]); os.rmdir(sys.argv[1])\n"
        "from commands.cli import main; sys.argv[1:] = ['config', '--json']; main()"
    )
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "gone")],
        capture_output=True, text=True, check=False, env={"PYTHONPATH": str(root), "HOME": str(tmp_path)},
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert "the working directory has been removed" in json.loads(done.stdout)["error"]
