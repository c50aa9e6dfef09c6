"""Mechanisms with noise, in whole runs: one account, the same result wherever users live, and honest words."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from flwr.app import Message
from rich.console import Console
from scipy import stats

from client_app.answers.app import app
from commands.describe import describe, show_sizes
from exchanges.records import UPDATE
from fedrec.config.compose import compose
from fedrec.config.describe import from_dict
from fedrec.core.errors import BudgetError, ConfigError
from fedrec.core.tensors import TableSpec
from fedrec.privacy.accounting import Sampled, epsilon_of
from fedrec.stages.base import Release
from fedrec.wire.protocol import UPDATE_SCALARS, Setup
from server_app.watching import Recorder

Federate = Callable[..., Any]

SMALL = ["strategy=full", "strategy.rounds=2", "evaluation.every=0", "federation.fraction=0.3"]
LARGE = ["privacy.epsilon=null", "privacy.noise_multiplier=2.0"]
ITEMS = {"embedding.items": TableSpec((100, 8))}
ACCOUNTED = {
    "central_laplace": ("laplace", 0.3),
    "local_gaussian": ("gaussian", 1.0),
    "local_laplace": ("laplace", 1.0),
    "distributed_gaussian": ("skellam", 1.0),
}
"""What the ledger calls the noise, and the sampling that is counted at a fraction of 0.3."""


@pytest.mark.parametrize("name", ACCOUNTED)
def test_the_account_is_that_of_the_noise_that_was_drawn(federate: Federate, name: str) -> None:
    kind, sampling = ACCOUNTED[name]
    outcome = federate(f"privacy={name}", "privacy.epsilon=3", *SMALL)
    config = from_dict(yaml.safe_load((outcome.folder / "config.yaml").read_text()))
    privacy: Any = config.privacy
    lines = [json.loads(line) for line in (outcome.folder / "ledger.jsonl").read_text().splitlines()]
    assert [(line["round"], line["mechanism"], line["sampling"]) for line in lines] == [
        (1, kind, sampling),
        (2, kind, sampling),
    ]
    account = outcome.summary["privacy"]
    sampled = Sampled(privacy.noise_multiplier, sampling, kind, lines[0].get("grid"))
    assert account["epsilon"] == pytest.approx(epsilon_of({sampled: 2}, 1e-5))
    assert 2.9 < account["epsilon"] <= 3.0
    manifest = json.loads((outcome.folder / "manifest.json").read_text())["privacy"]
    assert {key: manifest[key] for key in account if key in manifest} == pytest.approx(account)
    told = describe(config, 100).privacy
    assert told is not None
    assert told["unit"] == account["unit"]


@pytest.mark.parametrize("codec", ["float32", "int8"])
@pytest.mark.parametrize("name", ["local_gaussian", "local_laplace", "distributed_gaussian"])
def test_where_users_live_changes_neither_noise_nor_model(federate: Federate, name: str, codec: str) -> None:
    given = [f"privacy={name}", *LARGE, *SMALL, f"codec={codec}"]
    one = federate(*given, nodes=1)
    for nodes in (7,) if codec == "int8" else (60,):
        many = federate(*given, nodes=nodes)
        torch.testing.assert_close(
            many.checkpoint()["trainable.embedding.items"],
            one.checkpoint()["trainable.embedding.items"],
            atol=1e-5,
            rtol=1e-5,
        )
        assert many.metrics[-1]["bytes"] == one.metrics[-1]["bytes"]


def sent(outcome: Any) -> tuple[list[torch.Tensor], list[dict[str, float]]]:
    """What lone devices sent: their tables, flat, and what they told beside them."""
    setup = Setup.from_json((outcome.folder / "setup.json").read_text())
    form = setup.update_format(ITEMS, 1)
    packets = [form.decode(data) for _, _, data in outcome.grid.packets(outcome.grid.received, UPDATE)]
    scalars = [dict(zip(UPDATE_SCALARS, packet.scalars, strict=True)) for packet in packets]
    return [packet.tensors["embedding.items"].double().flatten() for packet in packets], scalars


@pytest.mark.parametrize(("name", "deviation"), [("local_gaussian", 1.2), ("local_laplace", 40.0 * 2**0.5)])
def test_what_leaves_a_device_is_noise_on_every_number_and_nothing_beside(
    federate: Federate, name: str, deviation: float
) -> None:
    tables, scalars = sent(federate(f"privacy={name}", *LARGE, *SMALL, nodes=60))
    drawn = torch.cat(tables)
    assert len(drawn) == 2 * 18 * 800
    assert float(drawn.std()) == pytest.approx(deviation, rel=0.03)
    standard = stats.norm(scale=1.2) if name == "local_gaussian" else stats.laplace(scale=40.0)
    assert stats.kstest(drawn.numpy(), standard.cdf).pvalue > 1e-3
    assert len({table.numpy().tobytes() for table in tables}) == len(tables)
    for told in scalars:
        assert told["weight"] == told["users"] == 1, "a weight by the length of the history would tell it"
        assert not any(value for key, value in told.items() if key not in ("weight", "users"))


def test_shares_are_whole_numbers_that_add_up_to_the_noise_that_is_accounted(federate: Federate) -> None:
    """Of 18 devices; the noise of 16 is enough."""
    outcome = federate("privacy=distributed_gaussian", *LARGE, *SMALL, "privacy.bits=10", nodes=60)
    tables, _ = sent(outcome)
    clip = 0.3 * 2.0**11
    assert all(bool((table == table.round()).all()) for table in tables)
    share = torch.cat(tables).numpy()
    assert share.std() == pytest.approx(2.0 * clip / 16**0.5, rel=0.03)
    total = torch.stack(tables[:18]).sum(0).numpy()
    assert total.std() >= 2.0 * clip * 0.95
    assert total.std() == pytest.approx(2.0 * clip * (18 / 16) ** 0.5, rel=0.1)
    setup = Setup.from_json((outcome.folder / "setup.json").read_text())
    assert setup.privacy["survivors"] == 16


def test_noise_drawn_at_once_has_the_distribution_of_the_shares(federate: Federate) -> None:
    """The same round by each, and what its users gave taken off: two samples of one distribution."""
    given = ["privacy=distributed_gaussian", *LARGE, *SMALL, "strategy.rounds=1", "checkpoint_every=1"]
    silent = [*given, "privacy.noise_multiplier=1.0e-5"]
    moved = []
    for drawn in ("devices", "sum"):
        noisy, plain = (federate(*texts, f"privacy.drawn={drawn}", *SGD) for texts in (given, silent))
        name = "trainable.embedding.items"
        moved.append((noisy.checkpoint()[name] - plain.checkpoint()[name]).flatten().numpy())
    assert stats.ks_2samp(*moved).pvalue > 1e-3
    for noise in moved:
        assert np.std(noise) == pytest.approx(2.0 * 0.3 * (18 / 16) ** 0.5 / 18, rel=0.1)


SGD = ["optim=fast", "optim.server.kind=sgd", "optim.server.lr=1.0"]


def test_with_too_few_survivors_nothing_is_released_which_is_said(federate: Federate) -> None:
    given = ["privacy=distributed_gaussian", *LARGE, *SMALL, "checkpoint_every=1"]

    def client(message: Message, context: Any) -> Message:
        if message.metadata.message_type == "train" and context.node_config["partition-id"] == 1:
            raise RuntimeError("this node is down")
        return app(message, context)

    outcome = federate(*given, "privacy.survivors=18", client=client)
    assert 0 < outcome.metrics[-1]["users"] < 18
    assert all(record["unchanged"] for record in outcome.metrics)
    assert "2 of 2 rounds have changed nothing" in outcome.summary["warnings"][0]
    start, end = (outcome.checkpoint(round)["trainable.embedding.items"] for round in (1, 2))
    assert torch.equal(start, end)
    assert outcome.summary["privacy"]["releases"] == 2, "it was in the ledger before anybody was asked"


def test_what_can_never_count_is_said_before_anything_is_trained(federate: Federate) -> None:
    with pytest.raises(ConfigError, match=r"privacy\.survivors=19: 18 of 60 users are chosen .* give at most 18"):
        federate("privacy=distributed_gaussian", *LARGE, *SMALL, "privacy.survivors=19")
    loud = ["privacy.epsilon=null", "privacy.noise_multiplier=2000", "privacy.clip=1000"]
    with pytest.raises(ConfigError, match=r"federation\.max_update_norm=1e\+06: with the noise that this budget asks"):
        federate("privacy=local_laplace", *loud, *SMALL)


@pytest.mark.parametrize("name", ["local_gaussian", "distributed_gaussian"])
def test_a_round_is_in_the_ledger_before_a_device_is_asked(
    federate: Federate, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that a run that would overspend asks nobody: of two rounds, one is within the budget."""
    spent: list[int] = []
    original = Recorder.on_release

    def spy(recorder: Recorder, round: int, releases: Sequence[Release]) -> None:
        original(recorder, round, releases)
        spent.append(round)

    monkeypatch.setattr(Recorder, "on_release", spy)
    asked: list[list[int]] = []

    def client(message: Message, context: Any) -> Message:
        if message.metadata.message_type.endswith("train"):
            asked.append(list(spent))
        return app(message, context)

    multiplier = {"local_gaussian": 2.05, "distributed_gaussian": 2.2}[name]
    with pytest.raises(BudgetError, match="round 2 would take the run to"):
        federate(
            f"privacy={name}", *SMALL, "privacy.epsilon=2", f"privacy.noise_multiplier={multiplier}", client=client
        )
    assert asked
    assert all(rounds == [1] for rounds in asked)


def test_noise_without_a_guarantee_says_so_wherever_it_is_told(federate: Federate) -> None:
    given = [*SMALL, *SGD, "strategy.rounds=1"]
    outcome = federate("privacy=noise_without_guarantee", "privacy.scale=0.05", *given)
    assert not (outcome.folder / "ledger.jsonl").exists()
    said = outcome.summary["privacy"]
    assert said["epsilon"] is None
    assert "epsilon is infinite" in said["caveat"]
    assert json.loads((outcome.folder / "manifest.json").read_text())["privacy"] == said
    config = from_dict(yaml.safe_load((outcome.folder / "config.yaml").read_text()))
    assert "epsilon is infinite" in shown(config)
    name = "trainable.embedding.items"
    noise = outcome.checkpoint()[name] - federate(*given).checkpoint()[name]
    assert float(noise.std()) == pytest.approx(0.05, rel=0.1)
    seven = federate("privacy=noise_without_guarantee", "privacy.scale=0.05", *given, nodes=7)
    torch.testing.assert_close(seven.checkpoint()[name], outcome.checkpoint()[name], atol=1e-5, rtol=1e-5)


def shown(config: Any) -> str:
    written = io.StringIO()
    show_sizes(describe(config, 100), Console(width=400, file=written))
    return written.getvalue()


def composed(name: str, *overrides: str) -> Any:
    return compose([f"privacy={name}", "strategy=full", *overrides], base=Path("/somewhere"))


def test_distributed_noise_says_what_it_does_not_protect_and_refuses_a_deployment(federate: Federate) -> None:
    assert "keeps the server from the sums of single nodes" in shown(composed("distributed_gaussian"))
    deployed = ["runtime=deployment", "dataset=table", "dataset.item_table=items.csv", "dataset.items=listed"]
    deployed += ["dataset.k_core=0", "dataset.min_rating=null"]
    with pytest.raises(ConfigError, match="with aggregation=plain it sees them"):
        composed("distributed_gaussian", *deployed)
    masked = ["aggregation=secagg", "federation.min_nodes=3"]
    with pytest.raises(ConfigError, match="the noise would be the server's"):
        composed("distributed_gaussian", *deployed, *masked, "privacy.drawn=sum")
    said = shown(composed("distributed_gaussian", *deployed, *masked))
    assert "all that a server which follows the protocol sees" in said
    assert composed("local_gaussian", *deployed).privacy.name == "local_gaussian"


@pytest.mark.parametrize(
    ("name", "override", "said"),
    [
        ("central_laplace", "cohort=fixed", "give cohort=poisson"),
        ("central_laplace", "uplink=sparse", "give uplink=dense"),
        ("local_gaussian", "federation.weight_cap=200", r"give federation\.weight_cap=1"),
        ("local_laplace", "federation.max_update_norm=1000.0", r"give federation\.max_update_norm=1000000\.0"),
        ("local_gaussian", "federation.max_row_norm=auto", r"give federation\.max_row_norm=null"),
        ("local_gaussian", "federation.repeats=1", r"give federation\.repeats=0"),
        ("local_gaussian", "backbone=fedpergnn", "its users report items"),
        ("local_gaussian", "grouping=key", "take grouping=one"),
        ("distributed_gaussian", "uplink=sparse", "give uplink=dense"),
        ("distributed_gaussian", "uplink=actions", "give uplink=dense"),
        ("distributed_gaussian", "cohort=poisson", "give cohort=fixed"),
        ("distributed_gaussian", "federation.max_row_norm=5.0", r"give federation\.max_row_norm=null"),
    ],
)
def test_what_does_not_go_with_a_mechanism_is_refused(name: str, override: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        composed(name, override)


def test_noise_that_no_table_holds_is_refused_before_the_run(federate: Federate) -> None:
    with pytest.raises(ConfigError, match=r"privacy\.bits=20: .*give fewer bits"):
        federate("privacy=distributed_gaussian", *LARGE, *SMALL, "privacy.bits=20", "privacy.noise_multiplier=10.0")
