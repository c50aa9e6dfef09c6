"""Sites with a split language model: each finds it in its own register, and lets texts be read only if it says so."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from client_app.answers import app as app_module
from client_app.answers.app import app as client_app
from client_app.answers.granting import require_granted
from client_app.answers.node import Node
from client_app.homes.policy import DISCLOSING, EXCHANGES, Policy
from client_app.homes.site import site_of
from commands.local_grid import LocalGrid
from fedrec.config.compose import compose
from fedrec.config.describe import load_member
from fedrec.config.paths import settle
from fedrec.core.errors import FederationError, PolicyError
from fedrec.language.models import register
from fedrec.testing.language import tiny
from fedrec.wire.protocol import Setup
from server_app.run import run


@pytest.fixture
def sites(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Three sites of eight users, each a group; in the first is one more, who has too few items to be ranked."""
    monkeypatch.setenv("FEDREC_HOME", str(tmp_path / "home"))
    words = ("red", "blue", "steel", "box of", "paint", "tape")
    listed = [f"i{item},{words[item % 6]} {words[item // 6]} lamp" for item in range(30)]
    (tmp_path / "items.csv").write_text("item_id,title\n" + "\n".join(listed) + "\n")
    rng, found = np.random.default_rng(0), []
    for site, group in enumerate(("north", "south", "west")):
        lines = [
            f"u{site}-{user},i{item},{time}" for user in range(8) for time, item in enumerate(rng.permutation(30)[:6])
        ]
        if site == 0:
            lines += ["short,i0,0", "short,i1,1"]
        (tmp_path / f"site{site}.csv").write_text("user_id,item_id,timestamp\n" + "\n".join(lines) + "\n")
        state = tmp_path / f"state{site}"
        found.append({"interactions": str(tmp_path / f"site{site}.csv"), "state-dir": str(state), "group": group})
    return found


def deploy(folder: Path, sites: list[dict[str, Any]], *more: str) -> dict[str, Any]:
    model = register(tiny("bert", folder / "model", 8).folder)
    texts = [
        *("runtime=deployment", "dataset=table", f"dataset.item_table={folder}/items.csv", "base_table.dim=8"),
        *("strategy=fellrec", "embedding=fixed", "backbone=language_model", f"backbone.model={model}"),
        *("backbone.length=24", "backbone.item_tokens=10", "backbone.split=1", "optim=fast", "strategy.rounds=2"),
        *("encoder=tfidf", "reduction=pca", "federation.fraction=1.0", "run_id=r"),
        *("grouping=site", "grouping.groups=[north,south,west]"),
        *(f"runs_dir={folder}/runs", f"cache_dir={folder}/cache", *more),
    ]
    app_module._node.cache_clear()
    return run(settle(compose(texts, base=None), None), texts, LocalGrid(client_app, sites))


def grant(sites: list[dict[str, Any]], *exchanges: str) -> None:
    for site in sites:
        state = Path(site["state-dir"])
        state.mkdir(mode=0o700, exist_ok=True)
        named = ", ".join(f'"{name}"' for name in ("enroll", "train", "evaluate", *exchanges))
        (state / "policy.toml").write_text(f"exchanges = [{named}]\n")


def test_sites_train_and_are_ranked_with_a_split_model(tmp_path: Path, sites: list[dict[str, Any]]) -> None:
    grant(sites, "read", "judge")
    summary = deploy(tmp_path, sites)
    assert {group: found["test"]["users"] for group, found in summary["groups"].items()} == {
        "north": 8,
        "south": 8,
        "west": 8,
    }
    assert summary["bytes_per_user"]["crossing"] > 0
    assert not list(tmp_path.glob("state*/**/*.model")), "a part of a model is of no use to recommend with"


def test_a_site_that_has_not_said_so_lets_no_text_be_read(
    tmp_path: Path, sites: list[dict[str, Any]], caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(FederationError):
        deploy(tmp_path, sites, "federation.node_timeout=0.5", "federation.repeats=0")
    assert "the run's backbone is split, and this site answers no read" in caplog.text
    assert not any((Path(site["state-dir"]) / "sent.jsonl").exists() for site in sites), "not even keys have left"
    setup = Setup.from_json((tmp_path / "runs" / "r" / "setup.json").read_text())
    for kind in EXCHANGES:
        must_refuse(Node(setup, site_of(sites[0])), kind)


def must_refuse(node: Node, kind: str) -> None:
    """Whatever is asked for, a split run is granted only by who discloses, and neither noise nor masks are promised."""
    every = Policy(exchanges=EXCHANGES)
    require_granted(node, every, kind)
    refused = [
        (replace(every, exchanges=tuple(name for name in EXCHANGES if name != lacking)), f"answers no {lacking}")
        for lacking in DISCLOSING
    ]
    refused += [
        (replace(every, training_epsilon=1.0), "training_epsilon=1: nothing noises"),
        (replace(every, only_masked=True), "nothing masks"),
        (replace(every, pins=(64 * "0",)), "nothing masks"),
    ]
    for policy, said in refused:
        with pytest.raises(PolicyError, match=said):
            require_granted(node, policy, kind)
    for family, member in (("privacy", "central_gaussian"), ("aggregation", "secagg")):
        changed: dict[str, Any] = {family: asdict(load_member(family, member))}
        with pytest.raises(PolicyError, match=f"a split backbone with {family}={member}"):
            require_granted(Node(replace(node.setup, **changed), node.place), every, kind)
