"""Every benchmark runs at a tiny size and writes a valid result; page and plots are made from those results."""

from __future__ import annotations

import importlib
import json
import math
import re
import sys
from operator import attrgetter
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:  # benchmarks are not installed
    sys.path.append(str(ROOT))

from benchmarks import (  # noqa: E402
    accuracy,
    common,
    fedras,
    groups,
    methods,
    own_share,
    page,
    paired_groups,
    private_accuracy,
    split,
    timeline,
    title_runs,
)
from benchmarks.phases import clocked  # noqa: E402
from client_app.training.engine import GlobalModel  # noqa: E402
from fedrec.config.compose import compose  # noqa: E402
from fedrec.core.registry import backbones  # noqa: E402
from peft_embeddings.model import Model  # noqa: E402

IN_PROCESS = (
    "engine",
    "scaling",
    "evaluation",
    "reading",
    "pretraining",
    "clipping",
    "uplinks",
    "secure_sums",
    "language_model",
    "many_devices",
    "title_generator",
)
THROUGH_FLOWER = ("round_phases", "sequences", "stock_flower", "one_user_per_node", "startup")
OVER_TLS = ("deployment", "large_catalogue")


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


def run(name: str, out: Path, cache: Path, *more: str) -> dict[str, Any]:
    if name not in ("scaling", "clipping", "uplinks", "many_devices", *OVER_TLS):
        more = ("--synthetic", *more)
    arguments = ["--sizes", "small", "--out", str(out / f"{name}.json"), "--cache", str(cache), *more]
    importlib.import_module(f"benchmarks.{name}").main(arguments)
    result: dict[str, Any] = json.loads((out / f"{name}.json").read_text())
    return result


def numbers(value: Any) -> list[float]:
    if isinstance(value, dict):
        return [number for part in value.values() for number in numbers(part)]
    if isinstance(value, list):
        return [number for part in value for number in numbers(part)]
    return [float(value)] if isinstance(value, int | float) else []


def check(result: dict[str, Any], name: str) -> None:
    assert result["benchmark"] == name
    assert result["environment"]["cores"] >= 1
    assert {"torch", "numpy", "flwr"} <= result["environment"]["packages"].keys()
    text = json.dumps(result)
    assert '"failed"' not in text, text
    assert str(Path.home()) not in text
    assert numbers(result["figures"])
    assert all(math.isfinite(number) for number in numbers(result["figures"]))


@pytest.fixture
def inline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(common, "INLINE", True)


@pytest.mark.usefixtures("inline")
@pytest.mark.parametrize("name", IN_PROCESS)
def test_a_benchmark_runs_and_writes_a_valid_result(name: str, tmp_path: Path, cache: Path) -> None:
    result = run(name, tmp_path, cache)
    check(result, name)
    filled = page.fill(page.PAGES[0].read_text(), {name: result})
    assert "Not measured yet" in filled
    assert f"benchmarks.{name} " not in filled.split("<!-- speed:where:begin -->")[1]
    if name == "engine":
        for entry in result["figures"]["same_numbers"]:
            assert entry["vmap"] < 1e-9
            assert entry["oracle"] < 1e-9
        assert all(not entry["not_found"] for entry in result["figures"]["parts"])


@pytest.mark.runtime
def test_a_checkout_is_timed_against_another(tmp_path: Path, cache: Path) -> None:
    result = run("against", tmp_path, cache, str(ROOT))
    check(result, "against")
    assert list(result["figures"]) == ["engine full", "engine lora", "round full", "round lora"]
    assert all(entry["ratio"]["repeats"] == 1 for entry in result["figures"].values())


def test_recipes_are_timed_against_another_checkout(tmp_path: Path, cache: Path) -> None:
    result = run("against", tmp_path, cache, str(ROOT), "--recipes", "--only", "ranking pfedrec")
    check(result, "recipes")
    assert list(result["figures"]) == ["ranking pfedrec"]
    assert min(result["figures"]["ranking pfedrec"]["peak_bytes"].values()) > 2**20


@pytest.mark.runtime
def test_the_message_of_a_device_is_measured(tmp_path: Path) -> None:
    importlib.import_module("benchmarks.light_client").main(["--out", str(tmp_path / "light_client.json")])
    result = json.loads((tmp_path / "light_client.json").read_text())
    check(result, "light_client")
    for figures in result["figures"].values():
        stages = [value["median"] for name, value in figures["seconds"].items() if name.startswith("cpu_")]
        assert sum(stages) == pytest.approx(figures["seconds"]["cpu"]["median"])
        assert figures["peak_bytes"]["median"] < 500e6


def test_a_case_has_a_process_and_a_peak_of_its_own(cache: Path) -> None:
    found = common.case("benchmarks.task:make_synthetic", threads=None, cache=str(cache), users=50, items=40, history=6)
    assert found["items"] == 40
    assert found["peak_bytes"] >= found["imported_bytes"] > 2**20
    assert "failed" in common.case("benchmarks.task:no_such_function")


def test_the_clock_gives_every_second_to_the_innermost_and_leaves_the_code_as_it_was() -> None:
    from fedrec.data import negatives

    before = negatives.NegativeSampler.unknown
    targets = [
        ("outer", "fedrec.data.negatives", "NegativeSampler.draw"),
        ("inner", "fedrec.data.negatives", "NegativeSampler.unknown"),
        ("gone", "fedrec.data.negatives", "no.such.thing"),
    ]
    with clocked(targets) as clock:
        sampler = negatives.NegativeSampler(np.arange(10))
        sampler.draw(0, np.zeros(1, np.uint64), np.array([0, 2]), np.array([1, 2]), 0, 1)
    assert clock.calls == {"outer": 1, "inner": 1}
    assert all(spent > 0 for spent in clock.seconds.values())
    assert clock.not_found == ["gone: fedrec.data.negatives.no.such.thing"]
    assert negatives.NegativeSampler.unknown is before


def test_benchmarks_read_no_private_name_of_the_product() -> None:
    found = {
        f"{path.name}: {name}"
        for path in (ROOT / "benchmarks").rglob("*.py")
        for name in re.findall(r"(?<!\bself)(?<!\bcls)\._(?!asdict|replace|_)\w+", path.read_text(encoding="utf-8"))
    }
    assert not found


def test_the_page_says_what_the_results_say() -> None:
    assert page.main(["--check"]) == 0


def test_a_plot_is_drawn_from_results(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from benchmarks import plot

    point = {"seconds": {"min": 1.0, "median": 2.0, "max": 3.0, "repeats": 3}, "peak_bytes": 2**30}
    axes = {axis: [{axis: 10, **point}, {axis: 20, **point}] for axis in ("users", "items", "history", "cohort")}
    (tmp_path / "scaling.json").write_text(json.dumps({"figures": axes}))
    images = plot.main(["--results", str(tmp_path), "--images", str(tmp_path / "img")])
    assert [image.name for image in images] == ["speed-scaling.png"]
    assert images[0].stat().st_size > 1000


@pytest.mark.parametrize(("stage", "module", "dotted"), [*timeline.SERVER, *timeline.CLIENT])
def test_every_stage_of_a_start_is_a_function_that_there_is(stage: str, module: str, dotted: str) -> None:
    assert callable(attrgetter(dotted)(importlib.import_module(module))), stage


@pytest.mark.runtime
@pytest.mark.parametrize("name", [*THROUGH_FLOWER, *OVER_TLS])
def test_a_benchmark_runs_through_flower(name: str, tmp_path: Path, cache: Path) -> None:
    result = run(name, tmp_path, cache)
    check(result, name)
    filled = [page.fill(path.read_text(), {name: result}) for path in page.PAGES]
    assert not any(f"benchmarks.{name} --sizes" in text for text in filled)


def test_the_page_of_fedras_has_the_table_of_the_kept_runs() -> None:
    assert fedras.main(["--check"]) == 0


def test_the_page_of_groups_has_the_table_of_the_kept_runs() -> None:
    assert groups.main(["--check"]) == 0


def test_groups_are_compared_user_by_user_by_hand() -> None:
    """Users of two groups: leads of .2 and .4 in the first, of 0 and -.2 in the second, which is the lower in both."""
    groups = np.array([0, 0, 1, 1])
    one = paired_groups.Gains(np.array([0.7, 0.9, 0.3, 0.3]), groups)
    other = paired_groups.Gains(np.array([0.5, 0.5, 0.3, 0.5]), groups)
    assert paired_groups.over_all(one, other) == pytest.approx((0.1, (0.2 / 3) ** 0.5 / 2))
    assert paired_groups.over_groups(one, other) == pytest.approx((0.1, (0.1**2 + 0.1**2) ** 0.5 / 2))
    assert paired_groups.of_worst(one, other) == pytest.approx((-0.1, 0.1))
    swapped = paired_groups.Gains(np.array([0.3, 0.3, 0.5, 0.5]), groups)
    assert paired_groups.of_worst(swapped, other) == pytest.approx((-0.1, 0.1)), "of two groups: errors of 0 and .1"
    both = [paired_groups.Ahead(0.1, 0.2), paired_groups.Ahead(0.3, 0.4)]
    assert paired_groups.over_seeds(both) == pytest.approx((0.2, 0.3))


def test_a_share_of_a_groups_own_model_lies_between_the_two() -> None:
    pooled, own = (GlobalModel(cast(Model, None), {"a": torch.tensor([value, 1.0])}, {}) for value in (2.0, 6.0))
    mixed = {share: own_share.mixed(pooled, own, share).trainable["a"].tolist() for share in own_share.SHARES}
    assert (mixed[0.0], mixed[0.25], mixed[1.0]) == ([2.0, 1.0], [3.0, 1.0], [6.0, 1.0])


def test_the_page_of_split_models_has_the_tables_of_what_was_measured() -> None:
    assert split.main(["page", "--check"]) == 0
    kept = json.loads((split.RESULTS / "memory.json").read_text())["cases"]
    for stage in ("stages 1 and 3", "stage 2"):
        of_stage, whole = (kept[f"{name}, 16"] for name in (stage, "whole model"))
        assert of_stage["parameters"] + of_stage["saved"] < 0.6 * (whole["parameters"] + whole["saved"])
        assert of_stage["resident"] < 0.6 * whole["resident"]


def test_the_page_of_title_generators_has_the_table_of_the_kept_runs(tmp_path: Path) -> None:
    assert title_runs.main(["--check"]) == 0
    lines = [f"{user},{item},{time}" for user in "abcdefg" for time, item in enumerate((3, 1, 2))]
    (tmp_path / "all.csv").write_text("\n".join(["user_id,item_id,timestamp", *lines]) + "\n")
    for to in ("one.csv", "other.csv"):
        assert title_runs.main(["--sample", "3", str(tmp_path / "all.csv"), str(tmp_path / to)]) == 0
    head, *sampled = (tmp_path / "one.csv").read_text().splitlines()
    assert (tmp_path / "other.csv").read_text().splitlines() == [head, *sampled]
    assert head == "user_id,item_id,timestamp"
    chosen = {line[0] for line in sampled}
    assert len(chosen) == 3
    assert sampled == [line for line in lines if line[0] in chosen], "all that they did, in its order"


def test_the_page_of_privacy_has_the_table_of_the_kept_runs() -> None:
    assert private_accuracy.main(["--check"]) == 0


def test_the_methods_page_has_the_tables_of_the_kept_runs() -> None:
    assert methods.page(check=True) == 0
    kept = [json.loads(path.read_text()) for path in sorted(methods.FOLDER.glob("*.json"))]
    assert {methods.Cell(**result["cell"]) for result in kept} <= set(methods.cells())
    text = methods.PAGE.read_text()
    for result in kept:
        assert result["summary"]["rounds"] == methods.ROUNDS
        assert f"| {result['cell']['backbone']} | {result['cell']['method']} |" in text


def test_the_page_of_accuracy_has_the_tables_of_the_kept_runs() -> None:
    assert accuracy.main(["--check"]) == 0
    text, found = accuracy.PAGE.read_text(), accuracy.comparison()
    assert any(run.bytes is not None for run in found.runs)
    assert all(f"| {re.sub(r',? seed [0-9]+$', '', run.name)} |" in text for run in found.runs)


def test_every_cell_of_the_comparison_is_a_configuration_without_errors(tmp_path: Path) -> None:
    for folder, _ in methods.DATA.values():
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "interactions.csv").write_text("user_id,item_id,timestamp\n")
        (tmp_path / folder / "items.csv").write_text("item_id\n")
    known = [cell for cell in methods.cells() if cell.backbone in backbones.names()]
    assert len(known) >= 6
    for cell in known:
        config = compose(methods.overrides(cell, tmp_path, None), base=None)
        assert config.backbone.name == cell.backbone
        assert config.seed == cell.seed
