"""`fedrec audit promotion`: what attackers send, what they reach with limits and without, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from typer.testing import CliRunner

from client_app.training.engine import GlobalModel
from commands import cli
from commands.audit.attacks import ATTACKS, View
from commands.audit.promotion import promotion, rare_item
from fedrec.config.compose import compose
from fedrec.config.describe import load_member
from fedrec.config.paths import settle
from fedrec.core.errors import ConfigError
from fedrec.core.registry import backbones, embeddings
from fedrec.core.rng import generator
from fedrec.data.prepare import load
from fedrec.evaluation.curves import METRICS
from peft_embeddings.model import Model

SMALL = [
    "dataset.n_users=60",
    "dataset.n_items=100",
    "dataset.skew=0.7",
    "dataset.visits=0",
    "dataset.drift=0",
    "base_table.dim=8",
    "strategy=full",
    "strategy.rounds=8",
    "federation.fraction=0.5",
    "evaluation.every=0",
    "evaluation.baselines=false",
]


def audited(tmp_path: Path, attack: str, share: float, *overrides: str) -> dict[str, Any]:
    texts = [*SMALL, *overrides, f"runs_dir={tmp_path}/{attack}{len(overrides)}", f"cache_dir={tmp_path}/cache"]
    quiet = Console(stderr=True, quiet=True)
    return promotion(settle(compose(texts, base=None), None), texts, attack, share, console=quiet)


def test_attackers_without_limits_lift_their_item_and_with_them_do_not(tmp_path: Path) -> None:
    free = audited(tmp_path, "one_row", 0.1, "federation.max_row_norm=null")
    held = audited(tmp_path, "one_row", 0.1)
    assert free["er@10"] > 2 * held["er@10"]
    assert free["attackers"] == held["attackers"] == 6
    assert free["updates_of_attackers"] == held["updates_of_attackers"] > 0
    assert held["dropped_replies"] == {}, "they keep to the limit, and their updates count"
    assert held["users_without_target"] == free["users_without_target"] < 60


def test_nobody_is_an_attacker_at_a_share_of_none(tmp_path: Path) -> None:
    found = audited(tmp_path, "one_row", 0.0)
    assert (found["attackers"], found["updates_of_attackers"]) == (0, 0)


@pytest.mark.parametrize("embedding", ["full", "lora", "hash", "rqvae"])
@pytest.mark.parametrize("attack", ATTACKS)
def test_what_is_sent_keeps_to_the_limit_and_raises_the_target(attack: str, embedding: str) -> None:
    rng, items, dim, target = generator(0, "audit"), 40, 8, 7
    sizes = {"hash": {"buckets": 60}, "rqvae": {"levels": 2, "codes": 8, "steps": 2}}.get(embedding, {})
    made = embeddings.get(embedding)(load_member("embedding", embedding, **sizes), items, dim)
    model = Model(made, backbones.get("fedmf")(load_member("backbone", "fedmf"), dim))
    started = model.start(torch.randn(items, dim, generator=rng), {}, rng)
    moved = {
        name: tensor + 0.3 * torch.randn(tensor.shape, generator=rng) for name, tensor in started.trainable.items()
    }
    given = GlobalModel(model, moved, started.frozen)
    users = torch.randn(5, dim, generator=rng) + 1.0
    tables = {model.embedding_name(name) for name in made.tables}
    view = View(given, target, torch.arange(float(items)), lambda: {"user": users}, dict.fromkeys(tables, 0.01))
    update = ATTACKS[attack](view)
    assert update.keys() == moved.keys()
    for name in tables:
        assert float(update[name].norm(dim=1).max()) == pytest.approx(0.01, rel=1e-4)
    everything = torch.arange(items)
    before, after = (
        given.item_vectors({name: moved[name] + step * update[name] for name in moved}, everything) for step in (0, 1)
    )
    if attack != "popularity":  # that is to be like others, whoever the users are
        towards = users.mean(0) if attack != "one_row" else before[view.popular].mean(0)
        assert float((after[target] - before[target]) @ towards) > 0


def test_the_target_is_an_item_that_few_have(tmp_path: Path) -> None:
    config = settle(compose([*SMALL, f"runs_dir={tmp_path}"], base=None), None)
    dataset = load(config.dataset)  # type: ignore[arg-type]
    counts = torch.bincount(torch.from_numpy(dataset.interactions.items).long(), minlength=len(dataset.catalogue))
    few = counts[torch.from_numpy(dataset.eligible)].double().quantile(0.25)
    chosen = {rare_item(dataset, seed) for seed in range(20)}
    assert len(chosen) > 3
    assert all(0 < int(counts[item]) <= few for item in chosen)


def test_what_an_audit_cannot_take_is_said(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"uplink=sparse"):
        audited(tmp_path, "one_row", 0.1, "uplink=sparse")


@pytest.mark.parametrize("attack", ["surrogate", "adaptive"])
def test_an_attack_that_needs_vectors_of_users_says_so_where_there_are_none(tmp_path: Path, attack: str) -> None:
    with pytest.raises(ConfigError, match=f"backbone=recency: the attack {attack} .* one_row, popularity"):
        audited(tmp_path, attack, 0.1, "backbone=recency")


def test_the_line_of_json(tmp_path: Path) -> None:
    short = [text.replace("rounds=8", "rounds=1") for text in SMALL]
    words = [*short, f"runs_dir={tmp_path}", f"cache_dir={tmp_path}/cache"]
    done = CliRunner().invoke(
        cli.app, ["audit", "promotion", "--attack", "one_row", "--share", "0.1", "--json", *words]
    )
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["attackers"] == 6
    assert 0 <= found["er@10"] <= 1
    assert (Path(found["run"]) / METRICS).is_file()
