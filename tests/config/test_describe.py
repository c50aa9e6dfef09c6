from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedrec.config.compose import compose
from fedrec.config.describe import ABSENT, Change, differences, from_dict, load_member, to_dict, to_yaml
from fedrec.config.validate import member_config
from fedrec.core.errors import ConfigError

BASE = Path("/somewhere")
ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.usefixtures("tree")


def test_there_and_back_through_json_and_yaml() -> None:
    config = compose(["dataset.root=data", "evaluation.ks=[1,2,3]", "run_id='007'"], base=BASE)
    assert from_dict(json.loads(json.dumps(to_dict(config)))) == config
    assert from_dict(yaml.safe_load(to_yaml(config))) == config


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    norm=st.floats(0, 1e6),
    ks=st.lists(st.integers(1, 10**9), min_size=1, unique=True),
    run_id=st.none() | st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9._-]*", fullmatch=True),
)
def test_any_legal_values_come_back(norm: float, ks: list[int], run_id: str | None) -> None:
    values = to_dict(compose([], base=BASE))
    values["base_table"]["norm"], values["evaluation"]["ks"], values["run_id"] = norm, ks, run_id
    config = from_dict(values)
    assert from_dict(json.loads(json.dumps(to_dict(config)))) == config
    assert from_dict(yaml.safe_load(to_yaml(config))) == config


def test_a_stored_configuration_is_checked_as_strictly() -> None:
    values = to_dict(compose([], base=BASE))
    values["embedding"]["rank"] = "4"
    values["embedding"]["rnk"] = 4
    values["dataset"]["root"] = 3
    del values["seed"], values["optim"]["lr"], values["simulation"]
    values["codec"] = {"name": "stand_on"}
    values["backbone"] = {}
    with pytest.raises(ConfigError) as caught:
        from_dict(values)
    assert list(caught.value.problems) == [
        "embedding.rnk: there is no key embedding.rnk; did you mean embedding.rank?",
        "embedding.rank: expected an integer >= 1, got the text '4'",
        "backbone: expected the keys of a member, `name` among them, got the mapping {}",
        "optim.lr: has no default and needs a value: give optim.lr=... (a number > 0 and <= 1)",
        "dataset.root: expected a path or null, got the integer 3; to mean a text, quote it inside the override: "
        "\"dataset.root='3'\"",
        "codec=stand_on: there is no such codec; did you mean stand_in?",
        "simulation: the section is missing",
        "seed: has no default and needs a value: give seed=... (an integer >= 0 and <= 18446744073709551615)",
    ]


def test_a_stored_relative_path_is_refused() -> None:
    values = to_dict(compose([], base=BASE))
    values["runs_dir"] = "runs"
    with pytest.raises(ConfigError, match=r"runs_dir: the relative path 'runs' means nothing in a running app"):
        from_dict(values)


def test_changes_are_those_of_the_overrides_and_of_what_their_choices_bring() -> None:
    default = compose([], base=BASE)
    assert differences(default, compose(["strategy=whole", "seed=3", "evaluation.every=10"], base=BASE)) == [
        Change("strategy", "two_phase", "whole"),
        Change("strategy.warmup_rounds", 20, ABSENT),
        Change("embedding", "low", "table"),
        Change("embedding.rank", 4, ABSENT),
        Change("embedding.init_std", 0.1, ABSENT),
        Change("seed", 0, 3),
    ]
    assert differences(default, compose([], base=BASE)) == []


def test_one_member_from_plain_data() -> None:
    config = member_config("embedding", {"name": "low", "rank": 2, "init_std": 1})
    assert config == load_member("embedding", "low", rank=2, init_std=1.0)
    assert load_member("strategy", "whole").name == "whole"
    assert load_member("dataset", "asked", root=Path("/x")).root == Path("/x")  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"name": "low", "rank": 0, "init_std": 1}, "embedding.rank: expected an integer >= 1, got the integer 0"),
        ({"name": "low", "rank": 1}, "embedding.init_std: has no default and needs a value"),
        ({"name": "os"}, "embedding=os: there is no such embedding"),
        ({"name": ["low"]}, "embedding: expected the keys of a member"),
        ([1], "embedding: expected the keys of a member, `name` among them, got the list \\[1\\]"),
    ],
)
def test_plain_data_that_is_no_member(values: object, problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        member_config("embedding", values)


@pytest.mark.parametrize(
    ("module", "heavy"), [("validate", "hydra omegaconf yaml torch"), ("describe", "hydra omegaconf torch")]
)
def test_what_a_client_imports_is_light(module: str, heavy: str) -> None:
    code = f"import sys, fedrec.config.{module}; sys.exit(str(set('{heavy}'.split()) & set(sys.modules)))"
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT).stderr
    assert output == "set()\n"


def test_a_configuration_written_before_there_was_a_federation_section_can_be_read(tree: Path) -> None:
    config = compose(["federation.fraction=0.3"], base=None)
    values = to_dict(config)
    values["strategy"] |= values.pop("federation")
    assert from_dict(values) == config
