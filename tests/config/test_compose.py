from __future__ import annotations

import contextlib
import threading
from pathlib import Path

import hydra
import pytest
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedrec.config.compose import compose
from fedrec.config.paths import assign, portable, settle
from fedrec.core.errors import ConfigError

BASE = Path("/somewhere")


def problems(*overrides: str, base: Path | None = BASE) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        compose(overrides, base=base)
    return list(caught.value.problems)


@pytest.mark.usefixtures("tree")
class TestValues:
    def test_members_have_their_own_class_and_values_are_typed(self) -> None:
        config = compose(["embedding.rank=8", "embedding.init_std=1", "evaluation.ks=[1,3]", "seed=5"], base=BASE)
        assert type(config.embedding).__name__ == "Low"
        assert (config.embedding.rank, config.seed, config.evaluation.ks) == (8, 5, (1, 3))  # type: ignore[attr-defined]
        assert isinstance(config.embedding.init_std, float)  # type: ignore[attr-defined]

    def test_a_value_may_refer_to_another(self) -> None:
        assert compose(["seed=${base_table.dim}"], base=BASE).seed == 32

    def test_the_order_of_overrides_does_not_matter(self) -> None:
        overrides = ["dataset=asked", "dataset.root=/x", "seed=2"]
        assert compose(overrides, base=BASE) == compose(overrides[::-1], base=BASE)

    def test_a_strategy_may_bring_an_embedding_unless_one_is_chosen(self) -> None:
        assert compose(["strategy=whole"], base=BASE).embedding.name == "table"
        assert problems("strategy=whole", "embedding=low") == ["this strategy needs embedding=table"]

    def test_an_experiment_changes_several_values_and_overrides_win(self) -> None:
        config = compose(["experiment=tiny", "seed=8"], base=BASE)
        assert (config.strategy.name, config.embedding.name, config.seed) == ("whole", "table", 8)
        assert config.strategy.rounds == 3  # type: ignore[attr-defined]

    def test_spaces_around_an_override_are_no_part_of_it(self) -> None:
        assert compose([" seed=3 "], base=BASE).seed == 3


KS = "expected a list of (an integer >= 1 and <= 2147483647), at least 1 long, at most 100 long"

CASES = [
    ("embedding.rnk=8", "there is no key embedding.rnk; did you mean embedding.rank?"),
    ("embedding.rank=abc", "expected an integer >= 1, got the text 'abc'"),
    ("embedding.rank=0", "expected an integer >= 1, got the integer 0"),
    ("embedding.rank=4.0", "expected an integer >= 1, got the number 4.0"),
    ("embedding.rank=true", "expected an integer >= 1, got true"),
    ("embedding.rank=null", "expected an integer >= 1, got null"),
    ("optim.lr=true", "expected a number > 0 and <= 1, got true"),
    ("optim.lr='0.1'", "expected a number > 0 and <= 1, got the text '0.1'"),
    ("optim.lr=2", "expected a number > 0 and <= 1, got the integer 2"),
    ("embedding.init_std=nan", "expected a number, got the number nan"),
    ("embedding.init_std=inf", "expected a number, got the number inf"),
    ("optim.loss=bpp", "expected bpr or bce, got the text 'bpp'"),
    ("evaluation.baselines=1", "expected true or false, got the integer 1"),
    ("evaluation.ks=[]", f"{KS}, got the list []"),
    ("evaluation.ks=[5,x]", f"{KS}, got the list [5, 'x']"),
    ("evaluation.ks=[0]", f"{KS}, got the list [0]"),
    ("evaluation.ks=5", f"{KS}, got the integer 5"),
    ("dataset.root=3", "expected a path or null, got the integer 3; to mean a text, quote it inside the override: "
     "\"dataset.root='3'\""),
    ("run_id=7", "expected text or null, got the integer 7; "
     "to mean a text, quote it inside the override: \"run_id='7'\""),
    ("dataset=mde", "there is no such dataset; did you mean made?"),
    ("dataset=zzzzzz", "there is no such dataset; legal are asked, made"),
    ("dataset=null", "expected the name of one dataset; legal are asked, made"),
    ("dataset={a:1}", "expected the name of one dataset; set its values by their keys, dataset.<key>=...; "
     "legal are asked, made"),
    ("experiment=tinny", "there is no such experiment; did you mean tiny?"),
    ("rank=8", "there is no key rank; did you mean embedding.rank?"),
    ("embeding.rank=8", "there is no key embeding.rank; did you mean embedding.rank?"),
    ("embedding.lr=1", "there is no key embedding.lr; did you mean central.lr or optim.lr?"),
    ("sede=1", "there is no key sede; did you mean seed?"),
    ("seed.x=1", "there is no key seed.x; did you mean seed?"),
    ("embedding/rank=1", "there is no key embedding/rank; did you mean embedding.rank?"),
    ("base_table.zzz=1", "there is no key base_table.zzz; legal are base_table.start, base_table.dim, base_table.norm"),
    (
        "base_table=1",
        "base_table is a section, not a value; its keys are base_table.start, base_table.dim, base_table.norm",
    ),
    ("embedding.name=table", "the embedding is chosen by its group; write embedding=table"),
    ("seed=1,2", "expected one value: start one run for each value of a sweep"),
    ("embedding=low,table", "expected one value: start one run for each value of a sweep"),
    ("seed=range(1,3)", "expected one value: start one run for each value of a sweep"),
    ("seed=choice(1,3)", "expected one value: start one run for each value of a sweep"),
    ("evaluation.ks=5,10", "a list is written evaluation.ks=[5,10]; "
     "expected one value: start one run for each value of a sweep"),
    ("hydra.run.dir=x", "hydra only composes the configuration here, its own settings have no effect; leave it out"),
    ("hydra/launcher=x", "hydra only composes the configuration here, its own settings have no effect; leave it out"),
    ("+seed=1", "keys cannot be added; to set seed, leave out the '+'"),
    ("++seed=1", "keys cannot be added; to set seed, leave out the '+'"),
    ("~seed", "keys cannot be removed; give seed a value (null where it may be empty)"),
    ("embedding@backbone=low", "a group cannot be put elsewhere; leave out '@backbone'"),
    ("seed", "expected key=value or group=member"),
    ("=3", "expected key=value or group=member"),
    ("dataset.root=~/x", "cannot be read (token recognition error at: '~'); quote the value: \"dataset.root='~/x'\""),
    ("seed=${nope}", "Interpolation key 'nope' not found"),
]  # fmt: skip


@pytest.mark.usefixtures("tree")
class TestProblems:
    @pytest.mark.parametrize(("override", "expected"), CASES, ids=[case[0] for case in CASES])
    def test_one_override_one_line(self, override: str, expected: str) -> None:
        found = problems(override)
        if override.startswith(("seed=1,2",)):
            expected = "a list is written seed=[1,2]; " + expected
        assert found == [f"{override}: {expected}"]

    def test_all_at_once(self) -> None:
        overrides = [
            "embedding.rank=abc", "embedding.rnk=8", "strategy.rounds=0", "sede=3", "encoder=stand_on",
            "dataset=asked", "seed=1,2", "+a=1", "evaluation.every=1.5",
        ]  # fmt: skip
        found = problems(*overrides)
        assert len(found) == 9
        for override in overrides:
            if override != "dataset=asked":
                assert sum(line.startswith(f"{override}: ") for line in found) == 1
        assert "dataset.root: has no default and needs a value: give dataset.root=... (a path or null)" in found
        assert all("\n" not in line for line in found)

    def test_the_values_of_a_misspelt_member_are_judged_as_those_of_the_likeliest(self) -> None:
        assert problems("embedding=lw", "embedding.rank=abc", "embedding.whatever=1") == [
            "embedding=lw: there is no such embedding; did you mean low?",
            "embedding.rank=abc: expected an integer >= 1, got the text 'abc'",
        ]

    def test_a_key_of_another_member_is_not_a_key_of_the_chosen_one(self) -> None:
        assert problems("strategy=whole", "strategy.warmup_rounds=3") == [
            "strategy.warmup_rounds=3: there is no key strategy.warmup_rounds; did you mean strategy.rounds?"
        ]

    def test_a_key_given_twice_is_an_error(self) -> None:
        assert problems("seed=1", "seed=2") == ["seed=2: seed was given before (seed=1); give it once"]
        assert problems("embedding=low", "embedding=table") == [
            "embedding=table: embedding was given before (embedding=low); give it once"
        ]

    def test_an_empty_override(self) -> None:
        assert problems("") == ["an empty override: expected key=value or group=member"]

    def test_a_wrong_key_in_a_file_of_the_tree_is_found(self) -> None:
        assert problems("experiment=wrong")[0].startswith("embedding.rnk: there is no key embedding.rnk; did you mean")

    def test_checks_of_the_whole(self) -> None:
        found = problems("evaluation.ks=[5,5]", "run_id=a/b", "embedding=table")
        assert found[0].startswith("evaluation.ks=[5, 5]: [5] is given twice")
        assert found[1].startswith("run_id=a/b: expected the name of a folder")
        assert found[2] == "this strategy needs embedding=low"

    @settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(st.lists(st.one_of(st.text(max_size=12), st.builds("embedding.rank={}".format, st.text(max_size=8)))))
    def test_whatever_is_typed_is_a_configuration_or_a_configuration_error(self, overrides: list[str]) -> None:
        with contextlib.suppress(ConfigError):
            compose(overrides, base=BASE)


@pytest.mark.usefixtures("tree")
class TestPaths:
    def test_a_relative_path_is_taken_against_the_base(self) -> None:
        config = compose(["dataset.root=data/../ml", "runs_dir=out"], base=BASE)
        assert config.dataset.root == Path("/somewhere/ml")  # type: ignore[attr-defined]
        assert config.runs_dir == Path("/somewhere/out")

    def test_a_tilde_is_the_home(self) -> None:
        assert compose(["dataset.root='~/x'"], base=BASE).dataset.root == Path.home() / "x"  # type: ignore[attr-defined]

    def test_in_a_running_app_a_relative_path_is_an_error_with_the_absolute_form(self) -> None:
        assert problems("dataset.root=data", "runs_dir=out", base=None) == [
            f"dataset.root=data: the relative path 'data' means nothing in a running app; "
            f"give it absolute: dataset.root={Path.cwd()}/data",
            f"runs_dir=out: the relative path 'out' means nothing in a running app; "
            f"give it absolute: runs_dir={Path.cwd()}/out",
        ]

    def test_the_default_folders(self, monkeypatch: pytest.MonkeyPatch) -> None:
        config = compose([], base=BASE)
        assert settle(config, BASE).runs_dir == BASE / "runs"
        assert settle(config, None).runs_dir == Path.home() / ".fedrec" / "runs"
        monkeypatch.setenv("FEDREC_HOME", "/elsewhere")
        assert settle(config, None).runs_dir == Path("/elsewhere/runs")
        assert settle(config, BASE).cache_dir == Path("/elsewhere/cache")
        monkeypatch.setenv("FEDREC_HOME", "elsewhere")
        with pytest.raises(ConfigError, match="FEDREC_HOME=elsewhere: expected an absolute path"):
            settle(config, BASE)

    def test_folders_that_are_given_stay(self) -> None:
        config = settle(compose(["runs_dir=/r", "cache_dir=/c"], base=BASE), BASE)
        assert (config.runs_dir, config.cache_dir) == (Path("/r"), Path("/c"))

    def test_portable_overrides_mean_the_same_in_an_app(self) -> None:
        overrides = ["seed=3", "dataset.root='it''s/ü ~(1)'".replace("''", "\\'"), "embedding.rank=2"]
        config = settle(compose(overrides, base=BASE), BASE)
        same = portable(overrides, config)
        assert "seed=3" in same
        assert settle(compose(same, base=None), None) == config
        assert portable(same, config) == same

    @given(st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1).filter(lambda text: "${" not in text))
    def test_an_assigned_text_is_read_back(self, text: str) -> None:
        override = OverridesParser.create().parse_override(assign("dataset.root", text))
        assert override.value() == text

    @pytest.mark.parametrize(
        "text", ["7", "007", "1e5", "TRUE", "null", "NaN", "inf", "-inf", "1_0", "a\\", "\\'", "' '"]
    )
    def test_a_text_that_looks_like_something_else_stays_a_text(self, text: str) -> None:
        override = OverridesParser.create().parse_override(assign("run_id", text))
        assert override.value() == text


@pytest.mark.usefixtures("tree")
class TestHydra:
    def test_threads(self) -> None:
        seeds: list[int] = []
        threads = [
            threading.Thread(target=lambda n=n: seeds.append(compose([f"seed={n}"], base=BASE).seed)) for n in range(8)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(seeds) == list(range(8))

    def test_a_program_with_its_own_hydra_keeps_it(self, tree: Path) -> None:
        with hydra.initialize_config_dir(str(tree), version_base=None):
            before = GlobalHydra.instance().hydra
            compose([], base=BASE)
            assert GlobalHydra.instance().hydra is before
        assert not GlobalHydra.instance().is_initialized()

    def test_what_was_typed_is_not_in_the_next_configuration(self) -> None:
        first = compose([], base=BASE)
        assert compose(["seed=5", "dataset.size=3"], base=BASE) != first
        assert compose([], base=BASE) == first

    def test_a_file_that_has_changed_is_read_again(self, tree: Path) -> None:
        root = tree / "config.yaml"
        before = compose([], base=BASE).seed
        text = root.read_text()
        assert f"seed: {before}\n" in text
        root.write_text(text.replace(f"seed: {before}\n", "seed: 12345\n"))
        assert compose([], base=BASE).seed == 12345


def test_keys_that_were_the_strategys_are_refused_with_their_new_names(tree: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        compose(["strategy.fraction=0.5", "strategy.round_timeout=3.0", "strategy.min_nodes=2"], base=None)
    assert list(caught.value.problems) == [
        "strategy.fraction=0.5: there is no key strategy.fraction; did you mean federation.fraction?",
        "strategy.round_timeout=3.0: there is no key strategy.round_timeout; did you mean federation.round_timeout?",
        "strategy.min_nodes=2: there is no key strategy.min_nodes; did you mean federation.min_nodes?",
    ]
