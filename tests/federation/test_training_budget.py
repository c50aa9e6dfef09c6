"""What a site's users give away by training: counted by the site over all runs, before it leaves, up to its limit."""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

import dp_accounting
import numpy as np
import pytest
from dp_accounting.rdp import RdpAccountant
from typer.testing import CliRunner

from client_app.answers import app as app_module
from client_app.answers.app import app as client_app
from client_app.homes.policy import Policy
from client_app.homes.training_budget import LEDGER, spend_training, trained
from commands.cli import app
from commands.local_grid import LocalGrid
from fedrec.config.compose import compose
from fedrec.config.paths import settle
from fedrec.core.errors import PolicyError, StoreError
from fedrec.core.strict_json import parsed_object
from fedrec.privacy.accounting import Sampled, epsilon_of
from fedrec.privacy.divergences import ORDERS, divergence, epsilon
from fedrec.stages.base import Release
from fedrec.wire.protocol import Setup
from server_app.run import run
from server_app.setup import make_setup

USERS, ITEMS, ROUNDS = 6, 20, 3
WORDS = ("red", "blue", "green")
SMALL = ["base_table.start=random", "base_table.dim=4", "strategy=full", f"strategy.rounds={ROUNDS}", "optim=fast"]
SMALL += ["federation.fraction=1.0", "evaluation.every=0", "evaluation.validation=false", "checkpoint_every=0"]
NOISED = ["privacy=local_gaussian", "privacy.noise_multiplier=5.0", "privacy.clip=0.5"]
CENTRAL = ["privacy=central_gaussian", "privacy.noise_multiplier=5.0", f"privacy.population={USERS}"]
GAUSSIAN = Release("gaussian", 5.0, in_secret=False)


# ---- the arithmetic --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("release", "event"),
    [
        (GAUSSIAN, dp_accounting.GaussianDpEvent(5.0)),
        (Release("gaussian", 0.7), dp_accounting.GaussianDpEvent(0.7)),
        (Release("laplace", 8.0), dp_accounting.LaplaceDpEvent(8.0)),
        (Release("laplace", 0.5), dp_accounting.LaplaceDpEvent(0.5)),
    ],
)
@pytest.mark.parametrize("count", [1, 40])
def test_divergences_are_those_of_the_package(release: Release, event: Any, count: int) -> None:
    accountant = RdpAccountant(ORDERS)
    accountant.compose(event, count)
    for order, theirs in zip(ORDERS, accountant._rdp, strict=True):
        assert count * divergence(release, order) == pytest.approx(float(theirs), rel=1e-9), order
    ours, theirs = epsilon({release: count}, 1e-5), float(accountant.get_epsilon(1e-5))
    pure = count / release.noise_multiplier if release.mechanism == "laplace" else math.inf
    assert ours == pytest.approx(min(theirs, pure), rel=1e-9)


@pytest.mark.parametrize("release", [GAUSSIAN, Release("laplace", 30.0), Release("skellam", 5.0, grid=2.0**14)])
def test_no_epsilon_is_below_that_of_the_servers_account(release: Release) -> None:
    for count in (1, 10, 60):
        kind = Sampled(release.noise_multiplier, 1.0, release.mechanism, release.grid)
        account = epsilon_of({kind: count}, 1e-5)
        assert account * (1 - 1e-3) <= epsilon({release: count}, 1e-5) <= 1.35 * account


def test_kinds_add_up_and_nothing_is_nothing() -> None:
    others = {Release("laplace", 30.0): 3, Release("skellam", 4.0, grid=1000.0): 2}
    together = epsilon({GAUSSIAN: 4, **others}, 1e-5)
    assert max(epsilon({GAUSSIAN: 4}, 1e-5), epsilon(others, 1e-5)) < together
    assert together < epsilon({GAUSSIAN: 4}, 1e-5) + epsilon(others, 1e-5)
    assert epsilon({}, 1e-5) == epsilon({GAUSSIAN: 0}, 1e-5) == 0.0
    with pytest.raises(ValueError, match="no divergence"):
        epsilon({Release("magic", 1.0): 1}, 1e-5)


# ---- a site ----------------------------------------------------------------------------------------------------------


class Sites:
    """Two sites with half of the users each; the first has a policy."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.state = folder, folder / "state0"
        rng = np.random.default_rng(0)
        (folder / "items.csv").write_text(
            "item_id,title\n" + "".join(f"i{n},{WORDS[n % 3]} item\n" for n in range(ITEMS))
        )
        self.configs = []
        for site in range(2):
            users = range(site, USERS, 2)
            lines = [f"u{user},i{item},{n}" for user in users for n, item in enumerate(rng.permutation(ITEMS)[:6])]
            (folder / f"site{site}.csv").write_text("user_id,item_id,timestamp\n" + "\n".join(lines) + "\n")
            self.configs.append({"interactions": f"{folder}/site{site}.csv", "state-dir": f"{folder}/state{site}"})

    def policy(self, text: str) -> None:
        self.state.mkdir(mode=0o700, exist_ok=True)
        (self.state / "policy.toml").write_text(text)
        (self.state / "policy.toml").chmod(0o600)

    def deploy(self, run_id: str, *more: str) -> list[dict[str, Any]]:
        app_module._node.cache_clear()
        texts = ["runtime=deployment", "dataset=table", f"dataset.item_table={self.folder}/items.csv", *SMALL]
        texts += [f"runs_dir={self.folder}/runs", f"cache_dir={self.folder}/cache", f"run_id={run_id}", *more]
        texts = list({text.partition("=")[0]: text for text in texts}.values())
        run(settle(compose(texts, base=None), None), texts, LocalGrid(client_app, self.configs))
        lines = (self.folder / "runs" / run_id / "metrics.jsonl").read_text().splitlines()
        return [json.loads(line) for line in lines]

    def refused(self, found: list[dict[str, Any]]) -> list[int]:
        return [record["dropped_replies"].get("refused_by_site", 0) for record in found]


@pytest.fixture
def sites(tmp_path: Path) -> Sites:
    return Sites(tmp_path)


def test_every_update_is_counted_over_runs_and_the_limit_holds_before_it_is_overstepped(sites: Sites) -> None:
    five = epsilon({GAUSSIAN: 5}, 1e-5)
    sites.policy(f"training_epsilon = {five * (1 + 1e-9)}\n")
    assert sites.refused(sites.deploy("one", *NOISED)) == [0, 0, 0]
    assert trained(sites.state, 1e-5) == (USERS // 2, 3, pytest.approx(epsilon({GAUSSIAN: 3}, 1e-5)))
    assert sites.refused(sites.deploy("two", *NOISED)) == [0, 0, 1]
    assert trained(sites.state, 1e-5) == (USERS // 2, 5, pytest.approx(five))
    assert (sites.state / LEDGER).stat().st_mode & 0o077 == 0
    other = trained(sites.folder / "state1", 1e-5)
    assert other[1] == 6, "a site without a limit counts as well"
    said = CliRunner().invoke(app, ["spent", "--state-dir", str(sites.state), "--json"])
    assert parsed_object(said.output.splitlines()[-1])["training"] == {
        "users": 3,
        "most_releases": 5,
        "epsilon": pytest.approx(five),
        "delta": 1e-5,
    }
    assert "at most 5 updates of one" in CliRunner().invoke(app, ["spent", "--state-dir", str(sites.state)]).output


@pytest.mark.parametrize("more", [[], CENTRAL])
def test_a_site_with_a_limit_trains_in_no_run_whose_noise_it_cannot_count(sites: Sites, more: list[str]) -> None:
    sites.policy("training_epsilon = 100.0\n")
    limits = ["federation.max_failures=1.0", "federation.min_users=0"]
    assert sites.refused(sites.deploy("plain", *more, *limits)) == [1, 1, 1]
    assert not (sites.state / LEDGER).exists()
    assert not (sites.folder / "state1" / LEDGER).exists(), "what is not noised on the device is not counted"


def test_a_damaged_ledger_stops_noised_training_and_is_not_overwritten(sites: Sites) -> None:
    sites.deploy("one", *NOISED)
    (sites.state / LEDGER).write_text("{")
    found = sites.deploy("two", *NOISED)
    assert [record["dropped_replies"].get("failed", 0) for record in found] == [1, 1, 1]
    assert (sites.state / LEDGER).read_text() == "{"
    said = CliRunner().invoke(app, ["spent", "--state-dir", str(sites.state)])
    assert said.exit_code == 1
    assert "put it back from a copy" in said.output


# ---- the ledger ------------------------------------------------------------------------------------------------------


def setup_of(folder: Path, *more: str) -> Setup:
    """What sites are told in a run of a deployment."""
    texts = ["runtime=deployment", "dataset=table", f"dataset.item_table={folder}/items.csv", *SMALL, "run_id=told"]
    return make_setup(settle(compose([*texts, *more], base=None), None), ITEMS, "0" * 32, "0" * 32, None)


KEYS = np.array([3, 2**64 - 1], dtype=np.uint64)


def test_users_are_counted_each_by_itself(tmp_path: Path) -> None:
    setup, state = setup_of(tmp_path, *NOISED), tmp_path / "ledger"
    state.mkdir()
    for keys in (KEYS, KEYS[:1]):
        spend_training(state, Policy(), setup, 1, keys)
    values = json.loads((state / LEDGER).read_text())
    assert values["users"] == {"0000000000000003": {"0": 2}, "ffffffffffffffff": {"0": 1}}
    assert values["kinds"] == [{"mechanism": "gaussian", "noise_multiplier": 5.0, "in_secret": False, "grid": None}]
    strict = Policy(training_epsilon=epsilon({GAUSSIAN: 2}, 1e-5) * (1 + 1e-9))
    spend_training(state, strict, setup, 2, KEYS[1:])
    with pytest.raises(PolicyError, match="for one of the 2 users who should train"):
        spend_training(state, strict, setup, 3, KEYS)
    assert trained(state, 1e-5)[1] == 2, "nothing was written of what was refused"


def test_the_noise_of_a_sum_counts_by_half_and_only_under_masks(tmp_path: Path) -> None:
    """Between data and none it has the multiplier 4; between two data of a user, which differ twice as much, 2."""
    noised = ["privacy=distributed_gaussian", "privacy.noise_multiplier=4.0", "privacy.clip=0.5", "privacy.bits=10"]
    masked = ["aggregation=secagg", "privacy.survivors=1", "federation.min_nodes=3"]
    told = setup_of(tmp_path, *noised, *masked)
    state = tmp_path / "ledger"
    state.mkdir()
    spend_training(state, Policy(training_epsilon=100.0), told, 1, KEYS)
    grid = 2 * 0.5 * 2.0**11
    assert json.loads((state / LEDGER).read_text())["kinds"] == [
        {"mechanism": "skellam", "noise_multiplier": 2.0, "in_secret": False, "grid": grid}
    ]
    plain = Setup.from_json(json.dumps({**json.loads(told.to_json()), "aggregation": {"name": "plain"}}))
    with pytest.raises(PolicyError, match="only privacy=local_gaussian"):
        spend_training(state, Policy(training_epsilon=100.0), plain, 1, KEYS)


def test_so_little_noise_that_no_number_is_large_enough_is_over_any_limit(tmp_path: Path) -> None:
    told = json.loads(setup_of(tmp_path, *NOISED).to_json())
    bare = Setup.from_json(json.dumps({**told, "privacy": {**told["privacy"], "noise_multiplier": 1e-200}}))
    spend_training(tmp_path, Policy(), bare, 1, KEYS)
    assert trained(tmp_path, 1e-5)[2] == math.inf
    with pytest.raises(PolicyError, match="would make it inf"):
        spend_training(tmp_path, Policy(training_epsilon=1e6), bare, 1, KEYS)


def test_a_site_with_a_limit_joins_no_run_that_groups_users_by_their_items(sites: Sites) -> None:
    sites.policy("training_epsilon = 100.0\n")
    groups = [
        "base_table.start=text",
        "base_table.dim=1",
        "grouping=centroids",
        "grouping.groups=2",
        "strategy=fellrec",
        "federation.min_nodes=1",
    ]
    found = sites.deploy("groups", *groups, "backbone=recency", "optim.loss=softmax")
    assert sum(sites.refused(found)) >= 1
    assert all(record["cohort"] == USERS // 2 for record in found), "the other site's users alone"


def test_weights_by_the_length_of_histories_are_refused_under_a_limit(tmp_path: Path) -> None:
    told = json.loads(setup_of(tmp_path, *NOISED).to_json())
    weighing = Setup.from_json(json.dumps({**told, "weight_cap": 7}))
    with pytest.raises(PolicyError, match=r"weight_cap=7 tells how long"):
        spend_training(tmp_path, Policy(training_epsilon=100.0), weighing, 1, KEYS)


@pytest.mark.parametrize(
    "change",
    [
        {"kinds": []},
        {"kinds": [{"mechanism": "gaussian", "noise_multiplier": 0.0, "in_secret": False, "grid": None}]},
        {"kinds": [{"mechanism": "magic", "noise_multiplier": 1.0, "in_secret": False, "grid": None}]},
        {"users": {"3": {"0": 1}}},
        {"users": {"0000000000000003": {"0": -1}}},
        {"users": {"0000000000000003": {"0": 1.5}}},
        {"users": {"0000000000000003": {"7": 1}}},
        {"users": []},
    ],
)
def test_a_ledger_that_was_meddled_with_is_damaged(tmp_path: Path, change: dict[str, Any]) -> None:
    kinds = [{"mechanism": "gaussian", "noise_multiplier": 5.0, "in_secret": False, "grid": None}]
    (tmp_path / LEDGER).write_text(json.dumps({"kinds": kinds, "users": {"0000000000000003": {"0": 1}}}))
    assert trained(tmp_path, 1e-5) == (1, 1, epsilon(Counter({GAUSSIAN: 1}), 1e-5))
    (tmp_path / LEDGER).write_text(json.dumps({**json.loads((tmp_path / LEDGER).read_text()), **change}))
    with pytest.raises(StoreError, match="is damaged"):
        trained(tmp_path, 1e-5)
