"""`fedrec describe`: what a run would hold and move, beside the paper's sizes; real runs are in `tests/federation`."""

from __future__ import annotations

import dataclasses
import io
import json
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from typer.testing import CliRunner

from commands.cli import app
from commands.describe import describe, show_sizes
from federation.sizes import EACH_ROUND, NEVER, ONCE, Exchange, Sizes
from fedrec.config.compose import compose

HEADER, DOWN, UP = 36, 8, 8 * 8
"""Of a packet; of the scalars that go with a model, and with an update."""


def of(*overrides: str, items: int | None = 3952) -> Sizes:
    return describe(compose(list(overrides), base=Path("/somewhere")), items)


@pytest.mark.parametrize(
    ("overrides", "tensors"),
    [
        (["strategy=full"], 505_856),
        (["embedding.rank=4"], 63_744),
        (["strategy=full", "backbone=fedncf"], 505_856 + 83_204),
        (["embedding.rank=4", "backbone=fedncf"], 63_744 + 83_204),
        (["embedding.rank=4", "backbone=pfedrec"], 63_744),
    ],
)
def test_movielens_1m_at_the_papers_sizes(overrides: list[str], tensors: int) -> None:
    """3,952 items, 32 numbers each: the bytes of `A` *and* `B`, and of the network."""
    phase = of(*overrides).phases[-1]
    assert sum(row.bytes for row in phase.tensors if row.crosses == EACH_ROUND) == tensors
    assert (phase.down, phase.up) == (HEADER + DOWN + tensors, HEADER + UP + tensors)


def test_who_holds_what_and_when_it_crosses() -> None:
    warmup, peft = of("backbone=pfedrec", items=100).phases
    assert {row.tensor: row.crosses for row in warmup.tensors if not row.tensor.startswith("private.")} == {
        "embedding.items": EACH_ROUND
    }
    assert {row.tensor: row.crosses for row in peft.tensors if not row.tensor.startswith("private.")} == {
        "embedding.A": EACH_ROUND,
        "embedding.B": EACH_ROUND,
        "base": ONCE,
    }
    private = [row for row in peft.tensors if row.tensor.startswith("private.")]
    assert {(row.crosses, row.held_by) for row in private} == {(NEVER, "own device")}
    assert sum(row.bytes for row in private) == 4 * 4225
    assert (warmup.once, peft.once) == (0, HEADER + 4 * 100 * 32)


def test_totals_follow_the_plan() -> None:
    found = of("strategy.rounds=100", "strategy.warmup_rounds=20", "federation.fraction=0.1", items=50)
    warmup, peft = found.phases
    joining = sum(found.joining.values())
    assert found.joining["eligible items"] == HEADER + 7
    assert (found.run.rounds, found.per_1000_rounds.rounds) == (100, 1000)
    assert found.run.up == pytest.approx(2 * warmup.up + 8 * peft.up)
    assert found.per_1000_rounds.down == pytest.approx(2 * warmup.down + 98 * peft.down)
    assert found.run.one_time == found.per_1000_rounds.one_time == joining + peft.once
    cut_off = of("strategy.rounds=3000", "strategy.warmup_rounds=2000", items=50).per_1000_rounds
    assert (cut_off.up, cut_off.one_time) == (pytest.approx(100 * warmup.up), joining)


def test_the_command_needs_no_data_when_the_number_of_items_is_given() -> None:
    missing = ["dataset=ml_100k", "dataset.root=/nowhere/at/all"]
    done = CliRunner().invoke(app, ["describe", *missing, "--items", "3706", "--json"])
    assert done.exit_code == 0, done.stderr
    line = json.loads(done.stdout)
    assert done.stdout.count("\n") == 1
    assert line["items"] == 3706
    assert line["phases"][0]["tensors"][0]["shape"] == [3706, 32]
    assert line["run"]["one_time"] == sum(line["joining"].values()) + sum(phase["once"] for phase in line["phases"])
    without = CliRunner().invoke(app, ["describe", *missing])
    assert without.exit_code == 1
    assert "/nowhere/at/all" in without.stderr


def test_the_command_reads_the_configured_data_set_and_prints_tables() -> None:
    overrides = ["dataset.n_items=321", "dataset.n_users=50", "backbone=pfedrec"]
    done = CliRunner().invoke(app, ["describe", *overrides], env={"COLUMNS": "100"})
    assert done.exit_code == 0, done.stderr
    assert "321 x 32" in done.stdout
    assert "private.weight1.item" in done.stdout
    assert f"{HEADER + DOWN + 4 * 4 * (321 + 32):,}" in done.stdout


@pytest.mark.parametrize("items", ["0", "-3", "many"])
def test_a_number_of_items_that_cannot_be_is_refused(items: str) -> None:
    assert CliRunner().invoke(app, ["describe", "--items", items]).exit_code == 2


def test_merges_are_told_where_there_are_some() -> None:
    phase = of("strategy.merge_every=20").phases[-1]
    assert (phase.merge_every, phase.merge) == (20, HEADER + 63_744)
    every_round = of("strategy.merge_every=20", "federation.fraction=1.0")
    assert every_round.run.merges == 3 * phase.merge, "after rounds 20, 40 and 60 of 80"
    assert every_round.per_1000_rounds.merges == 48 * phase.merge
    plain = of()
    assert (plain.phases[-1].merge, plain.run.merges) == (0, 0.0)
    shown = CliRunner().invoke(app, ["describe", "strategy.merge_every=20", "--items", "3952"], env={"COLUMNS": "100"})
    assert f"{phase.merge:,}" in shown.stdout
    assert "merges" not in CliRunner().invoke(app, ["describe", "--items", "3952"], env={"COLUMNS": "100"}).stdout


def test_an_exchange_beside_the_rounds_is_told_where_there_is_one() -> None:
    plain = of()

    def shown(found: Sizes) -> str:
        console = Console(width=200, file=io.StringIO(), record=True)
        show_sizes(found, console)
        return " ".join(console.export_text().split())

    alike = dataclasses.replace(plain, exchanges=(Exchange(10, 564, 172, 564, 564),))
    assert "Every 10 rounds, but not after the last" in shown(alike)
    assert "moves 564 bytes up, and 172 bytes down" in shown(alike)
    differing = dataclasses.replace(plain, exchanges=(Exchange(1, 1234.5, 0, 8, 2000),))
    assert "8 to 2,000 bytes up, 1,234.5 on average" in shown(differing)
    assert "beside training" not in shown(plain)


def test_who_is_there_in_half_of_the_rounds_is_chosen_half_as_often() -> None:
    whole, half = (
        describe(compose(["strategy=full", "network=mobile", *more], base=None), 100)
        for more in ([], ["network.availability=0.5"])
    )
    assert half.fraction == whole.fraction / 2
    assert half.per_1000_rounds.up == pytest.approx(whole.per_1000_rounds.up / 2)


def test_the_time_of_a_round_is_told_where_a_network_is_simulated() -> None:
    assert describe(compose([], base=None), 100).times is None
    chosen = ["strategy=full", "network=homogeneous", "network.latency=0.5"]
    found = describe(compose(chosen, base=None), 100)
    (phase,) = found.phases
    by_hand = 0.5 + 8 * phase.down / 20e6 + 8 * phase.up / 5e6
    assert found.times is not None
    assert (found.times["full"].median, found.times["full"].slow) == pytest.approx((by_hand, by_hand))
    mobile = describe(compose(["strategy=full", "network=mobile", "network.latency=0.5"], base=None), 100).times
    assert mobile is not None
    assert mobile["full"].median == pytest.approx(by_hand, rel=0.01)
    assert mobile["full"].slow - 0.5 == pytest.approx((by_hand - 0.5) * np.exp(2.326), rel=0.2)
    done = CliRunner().invoke(app, ["describe", *chosen, "--items", "100"])
    assert f"on the way for {by_hand:.3g} s" in " ".join(done.output.split())
