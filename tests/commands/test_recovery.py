"""`fedrec audit recovery`: what the command says is what the attack recovers; noise on devices leaves nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

from client_app.answers import app as app_module
from commands import cli
from commands.audit.recovery import recovery
from fedrec.config.compose import compose
from fedrec.config.paths import settle
from fedrec.core.errors import ConfigError, FederationError

SMALL = [
    "dataset.n_users=60",
    "dataset.n_items=80",
    "base_table.dim=8",
    "strategy=full",
    "optim=paper",
    "strategy.rounds=4",
    "federation.fraction=0.5",
]


def audited(tmp_path: Path, *overrides: str, users: int = 10) -> dict[str, Any]:
    app_module._node.cache_clear()
    typed = {text.partition("=")[0] for text in overrides}
    texts = [
        *(text for text in SMALL if text.partition("=")[0] not in typed),
        *overrides,
        f"runs_dir={tmp_path}/runs",
        f"cache_dir={tmp_path}/cache",
    ]
    return recovery(settle(compose(texts, base=None), None), texts, users, console=Console(stderr=True, quiet=True))


def test_lone_users_are_recovered_and_from_noised_updates_are_not(tmp_path: Path) -> None:
    plain = audited(tmp_path)
    assert plain["one_update"]["history_precision"] > 0.95
    assert plain["one_update"]["history_auc"] > plain["popularity"]["history_auc"]
    manifest = json.loads((Path(plain["run"]) / "manifest.json").read_text())
    assert "runtime=deployment" in manifest["overrides"]
    noised = audited(tmp_path, "privacy=local_gaussian", "privacy.epsilon=null", "privacy.noise_multiplier=1.0")
    assert noised["one_update"]["history_auc"] < 0.65


@pytest.mark.parametrize(
    ("given", "users", "said"),
    [
        (["downlink=actions", "optim=fast"], 5, "downlink=actions: the attack reads"),
        ([], 60, "--users 60: the data have 60 users"),
    ],
)
def test_what_an_audit_cannot_take_is_said(tmp_path: Path, given: list[str], users: int, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        audited(tmp_path, *given, users=users)


def test_that_nobody_was_looked_at_is_said(tmp_path: Path) -> None:
    with pytest.raises(FederationError, match="none of 2 lone users was chosen in any round"):
        audited(tmp_path, "federation.fraction=0.01", "strategy.rounds=1", users=2)


def test_the_line_of_json_and_the_words(tmp_path: Path) -> None:
    short = [text.replace("rounds=4", "rounds=2") for text in SMALL]
    words = [*short, f"runs_dir={tmp_path}", f"cache_dir={tmp_path}/cache"]
    done = CliRunner().invoke(cli.app, ["audit", "recovery", "--users", "6", "--json", *words])
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["lone_users"] == 6
    assert "from one update: AUC" in done.stderr
    assert "from popularity alone: AUC" in done.stderr
