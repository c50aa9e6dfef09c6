"""A site that lists the apps it runs, beside one that lists none, and a server that ships others."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from commands.flower_app import assemble, bundle_digest

ROOT = Path(__file__).resolve().parents[2]
if str(ROOT) not in sys.path:  # benchmarks are not installed
    sys.path.append(str(ROOT))

from benchmarks.deployment import Sites  # noqa: E402

pytestmark = pytest.mark.runtime

DATA = "dataset=synthetic dataset.n_users=20 dataset.n_items=40 dataset.interactions_per_user=8"
RUN = ["base_table.dim=8", "embedding.rank=2", "strategy.rounds=2", "strategy.warmup_rounds=1"]
SPY = '''
"""Asks every site for its secret; says at each import, in a file of the site's, that it ran."""
import json
from pathlib import Path
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp

FOUND = Path({found!r})
client = ClientApp()
server = ServerApp()


@client.query()
def answer(message, context):
    secret = Path(context.node_config["state-dir"], "secret").read_bytes().hex()
    return Message(RecordDict({{"c": ConfigRecord({{"secret": secret}})}}), reply_to=message)


@server.main()
def main(grid, context):
    nodes = list(grid.get_node_ids())
    messages = [Message(RecordDict({{"c": ConfigRecord({{"a": 1}})}}), node, "query") for node in nodes]
    told = []
    for reply in grid.send_and_receive(messages, timeout=180):
        told.append({{"error": reply.error.reason}} if reply.has_error() else dict(reply.content["c"]))
    FOUND.write_text(json.dumps(told))
'''


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sites]:
    """Two sites, of which the first lists the app of this checkout."""
    made = Sites(tmp_path_factory.mktemp("federation"), 30_000 + os.getpid() % 20_000, DATA)
    state = made.folder / "site-0/state"
    state.mkdir(parents=True, mode=0o700)
    (state / "policy.toml").write_text(f'apps = ["{bundle_digest()}"]\n')
    try:
        done = made.call("start", "2")
        assert done.returncode == 0, done.stdout
        yield made
    finally:
        made.call("stop")


def log(federation: Sites, site: int) -> str:
    return (federation.folder / f"site-{site}/log").read_text()


def ship(federation: Sites, app: Path, *more: str) -> str:
    """Run another app, as whoever reaches the SuperLink's own port can."""
    env = {**federation.env, "FLWR_HOME": str(federation.folder / "superlink/home"), "FLWR_TELEMETRY_ENABLED": "0"}
    flwr = str(Path(sys.executable).with_name("flwr"))
    done = subprocess.run(
        [flwr, "run", str(app), "local", "--stream", *more],
        env={**env, "FLWR_DISABLE_UPDATE_CHECK": "1"},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=600,
        check=False,
    )
    return done.stdout


def ranked(federation: Sites, run: str) -> int:
    """Users whom a run has ranked at its end."""
    return int(json.loads((federation.folder / f"runs/{run}/summary.json").read_text())["test"]["users"])


def completes(federation: Sites, run: str) -> int:
    done = federation.call("run", f"run_id={run}", "federation.min_nodes=2", *RUN)
    assert done.returncode == 0, done.stdout[-3000:]
    assert not [line for line in federation.metrics(run) if line["dropped_replies"]]
    return ranked(federation, run)


def test_a_site_runs_what_it_lists_and_nothing_else(federation: Sites, tmp_path: Path) -> None:
    assert "ANY app that the server sends may run at this site" in log(federation, 1)
    assert "1 app(s) may run at this site" in log(federation, 0)
    all_users = completes(federation, "honest")
    assert f"the app {bundle_digest()} may run: it is allowed" in log(federation, 0)

    spy, found = tmp_path / "spy", tmp_path / "found.json"
    (spy / "spy").mkdir(parents=True)
    (spy / "spy/__init__.py").write_text("")
    (spy / "spy/app.py").write_text(SPY.format(found=str(found)))
    (spy / "pyproject.toml").write_text(
        '[project]\nname = "spy"\nversion = "1.0"\nlicense = "Apache-2.0"\ndependencies = []\n'
        '[tool.flwr.app]\npublisher = "p"\n[tool.flwr.app.components]\nserverapp = "spy.app:server"\n'
        'clientapp = "spy.app:client"\n'
    )
    told = ship(federation, spy)
    assert found.exists(), told[-3000:]
    secrets = [(federation.folder / f"site-{site}/state/secret").read_bytes().hex() for site in range(2)]
    answers = json.loads(found.read_text())
    assert {"secret": secrets[1]} in answers, "without a list, as ever: a site runs what the server ships"
    assert secrets[0] not in found.read_text()
    (refused,) = (answer["error"] for answer in answers if "error" in answer)
    assert "PolicyError" in refused
    assert "was refused: it is not among the apps of this site's policy" in refused
    assert "of which nothing was run" in log(federation, 0)
    apps = {path.name for path in (federation.folder / "site-0/state/launch/apps").iterdir()}
    assert apps == {bundle_digest()}, "nothing else was even unpacked"
    assert not list((federation.folder / "site-0").rglob("*spy*"))

    changed = assemble(tmp_path / "fedrec")
    (changed / "client_app/entry.py").write_text((changed / "client_app/entry.py").read_text() + "# a comment\n")
    items = federation.folder / "items.csv"
    place = f"runs_dir={federation.folder}/runs cache_dir={federation.folder}/cache dataset.item_table={items}"
    words = [*RUN, "runtime=deployment", "dataset=table", "dataset.text_columns=[text]", "federation.min_nodes=1"]
    overrides = " ".join([*words, place, "run_id=changed"])
    told = ship(federation, changed, "--run-config", f'overrides="{overrides}"')
    assert (federation.folder / "runs/changed/summary.json").exists(), told[-3000:]
    assert 0 < ranked(federation, "changed") < all_users, "of the site that lists nothing"
    summary = json.loads((federation.folder / "runs/changed/summary.json").read_text())
    assert "failed" in json.dumps(summary["warnings"])
    assert log(federation, 0).count("of which nothing was run") >= 2

    assert completes(federation, "again") == all_users, "the site goes on"
    lines = [json.loads(line) for line in (federation.folder / "site-0/state/sent.jsonl").read_text().splitlines()]
    assert len([line for line in lines if line["exchange"] == "app"]) >= 2
