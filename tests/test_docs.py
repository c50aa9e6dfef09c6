"""The documents are true: figures come from kept runs, examples run, names and links exist. Commands: `tests/docs`."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from commands.flower_app import PACKAGES
from fedrec.config.compose import compose
from fedrec.core.registry import FAMILIES
from fedrec.data.report import MEANING

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:  # benchmarks are not installed
    sys.path.append(str(ROOT))
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
README, CONTRIBUTING, DATA, CONFIGURATION, RUNS = (
    (ROOT / name).read_text(encoding="utf-8")
    for name in ("README.md", "CONTRIBUTING.md", "docs/data.md", "docs/configuration.md", "docs/runs.md")
)


def script(name: str) -> ModuleType:
    """A module of `benchmarks`, which are not installed."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "benchmarks" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


results_table = script("results_table")

SMALL = [
    "dataset.n_users=40",
    "dataset.n_items=60",
    "dataset.interactions_per_user=8",
    "dataset.topics=5",
    "base_table.dim=8",
    "strategy.rounds=2",
    "strategy.warmup_rounds=1",
    "evaluation.every=1",
    "evaluation.ks=[10]",
]


def blocks(text: str, language: str) -> list[str]:
    """The fenced blocks of a language."""
    return re.findall(rf"^ *```{language}\n(.*?)^ *```$", text, flags=re.DOTALL | re.MULTILINE)


def first_cells(text: str) -> set[str]:
    """Every name in backquotes in the first column of a document's tables."""
    return {
        name for row in re.findall(r"^\| (.*?) \|", text, flags=re.MULTILINE) for name in re.findall(r"`(.*?)`", row)
    }


# ---- figures ---------------------------------------------------------------------------------------------------------


def test_the_results_are_those_of_the_kept_runs() -> None:
    assert results_table.main(["--check"]) == 0, "run `python -m benchmarks.results_table`"


def test_the_best_baseline_is_that_of_any_run_on_the_same_data() -> None:
    def kept(name: str, data: str, ndcg: float, **baselines: float) -> dict[str, Any]:
        found = {kind: {"ndcg@10": value} for kind, value in baselines.items()}
        summary = {"test": {"ndcg@10": ndcg}, "baselines": found, "bytes_per_user": {"total": 1234.5}}
        return {"name": name, "overrides": [f"dataset.root={data}", "seed=1"], "summary": summary}

    one, *others = results_table._LEADING
    results = [kept(one, "a", 0.25), kept("b", "a", 0.1, random=0.01, popularity=0.03)]
    results += [kept("c", "b", 0.3, content_last=0.2), *(kept(name, "b", 0.125) for name in others)]
    lines = results_table.leading(results).splitlines()
    assert lines[2].endswith("| **0.250** | 0.030, popularity | 1,234 |")
    assert lines[3].endswith("| **0.125** | 0.200, text, last item | 1,234 |")


def test_the_readme_is_short() -> None:
    assert len(README.split()) <= 1200


@pytest.mark.runtime
def test_the_bytes_of_every_method_are_those_that_describe_works_out() -> None:
    bytes_page = script("bytes_page")
    assert bytes_page.main(["--check"]) == 0, "run `python -m benchmarks.bytes_page`"
    lines = bytes_page.PAGE.read_text(encoding="utf-8").splitlines()
    named = {embedding for embedding in FAMILIES["embedding"].names() if any(f"`{embedding}" in line for line in lines)}
    assert named == set(FAMILIES["embedding"].names())


def test_kept_runs_are_as_the_table_needs_them_and_name_no_place() -> None:
    untrained = results_table.load(results_table.RESULTS / "untrained")
    assert len(untrained) == len({results_table._data(result) for result in untrained})
    for result in untrained:
        assert result["summary"]["baseline"] == "co_occurrence"
        compose(result["overrides"], base=ROOT)
    for result in results_table.load():
        assert result.keys() - {"curve", "search"} == {"name", "overrides", "summary"}
        assert {"rounds", "test", "baselines", "bytes_per_user"} <= result["summary"].keys()
        assert "/" not in result["summary"].get("run", "")
        assert not [text for text in result["overrides"] if re.search(r"=['\"]?/", text)]
        compose(result["overrides"], base=ROOT)


def test_a_run_is_kept_without_its_places_and_becomes_a_line(tmp_path: Path) -> None:
    metrics = {"hr@10": 0.5, "ndcg@10": 0.25}
    summary = {
        "run": str(tmp_path),
        "rounds": 7,
        "test": metrics,
        "baselines": {"random": {"hr@10": 0.01, "ndcg@10": 0.0049}},
        "bytes_per_user": {"up": 1234.5, "down": 1000000.0, "one_time": 3.0, "total": 1001237.5},
    }
    overrides = ["seed=1", "dataset.root=/some/where/ml-100k", "runs_dir=/some", "run_id=x", "evaluation.ks=[5,10]"]
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    (tmp_path / "manifest.json").write_text(json.dumps({"overrides": overrides}))
    kept = results_table.kept("A run", tmp_path)
    assert kept["overrides"] == ["seed=1", "dataset.root=where/ml-100k", "evaluation.ks=[5,10]"]
    assert kept["summary"] == {**summary, "run": tmp_path.name}
    text = results_table.block([kept])
    assert "| A run | 7 | **0.250** | 0.500 | 0.005, random | 1,234 | 1,000,000 | 3 | 1,001,238 |\n" in text
    assert 'fedrec train seed=1 dataset.root=where/ml-100k "evaluation.ks=[5,10]"  # A run\n' in text
    (tmp_path / "tune.json").write_text(json.dumps({"bytes_per_user": 2000.4}))
    assert "| 3 | 1,001,238 + 2,000 |\n" in results_table.block([results_table.kept("A run", tmp_path)])


# ---- names, links ----------------------------------------------------------------------------------------------------


def test_the_two_commands_of_the_readme() -> None:
    lines = "".join(blocks(README, "sh")).splitlines()
    assert "python3 -m venv .venv && .venv/bin/pip install -c constraints.txt . && .venv/bin/fedrec train" in lines
    # The checks run the first line of the README that holds '.[test]'.
    assert next(line for line in README.splitlines() if "'.[test]'" in line) == (
        ".venv/bin/pip install -c constraints.txt '.[test]' && .venv/bin/pytest -n 2"
    )


def test_nobody_is_told_to_install_the_project_from_an_index() -> None:
    """It is in none: there, its name is somebody else's or nobody's."""
    packages = ("fedrec", "peft_embeddings", "strategies", "client_app", "server_app", "commands")
    said = [*DOCUMENTS, *(path for package in packages for path in (ROOT / package).rglob("*.py"))]
    told = [
        path.name for path in said if re.search(r"pip install [^`\n]*['\" ]fedrec\b", path.read_text(encoding="utf-8"))
    ]
    assert told == []


@pytest.mark.parametrize("family", FAMILIES)
def test_every_member_is_named(family: str) -> None:
    row = re.search(rf"^\| `{family}` \| (.*?) \|", CONFIGURATION, flags=re.MULTILINE)
    assert row is not None
    assert set(re.findall(r"`(\w+)`", row[1])) == set(FAMILIES[family].names())
    assert re.search(
        rf"^\| `{family}` \| `{FAMILIES[family].package.replace('.', '/')}/` \|", CONTRIBUTING, re.MULTILINE
    )


def test_every_data_set_and_every_rule_of_preparation_is_described() -> None:
    described = first_cells(DATA)
    assert set(FAMILIES["dataset"].names()) <= described
    assert set(MEANING) <= described


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_links_and_named_files_exist(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    for target, anchor in re.findall(r"\]\((?!https?://)([^)#]*)#?([^)]*)\)", text):
        found = path.parent / target if target else path
        assert found.exists(), target
        assert not anchor or anchor in anchors(found.read_text(encoding="utf-8")), f"{target}#{anchor}"
    folders = "|".join((*PACKAGES, "commands", "tests", "benchmarks", "deploy"))
    for name in re.findall(rf"`((?:{folders})/[\w/.-]+)`", text):
        assert (ROOT / name).exists() or name in EXAMPLE, name


def anchors(text: str) -> set[str]:
    """What links to the places of a document are called: its headings, as GitHub names them, and its own marks."""
    headings = re.findall(r"^#+ (.*)$", re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE), re.MULTILINE)
    named = {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
    return named | set(re.findall(r'<a id="([^"]+)">', text))


# ---- the worked examples ---------------------------------------------------------------------------------------------

EXAMPLE = dict(re.findall(r"^`([\w/.]+)`:\n\n```\w+\n(.*?)^```$", CONTRIBUTING, flags=re.DOTALL | re.MULTILINE))


@pytest.fixture(scope="module")
def extended(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project with the files of the examples in it."""
    copy = tmp_path_factory.mktemp("extended")
    for package in (*PACKAGES, "commands", "tests"):
        shutil.copytree(ROOT / package, copy / package, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copyfile(ROOT / "pyproject.toml", copy / "pyproject.toml")
    assert EXAMPLE.keys() == {
        "peft_embeddings/scale.py",
        "conf/embedding/scale.yaml",
        "fedrec/backbones/last_five.py",
        "conf/backbone/last_five.yaml",
        "fedrec/privacy/noisy_sum.py",
        "conf/privacy/noisy_sum.yaml",
    }
    for name, content in EXAMPLE.items():
        (copy / name).write_text(content, encoding="utf-8")
    return copy


def python(copy: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHONPATH": str(copy), "FEDREC_HOME": str(copy / "home"), "PYTHONDONTWRITEBYTECODE": "1"}
    env.pop("PYTEST_ADDOPTS", None)
    return subprocess.run([sys.executable, *arguments], cwd=copy, env=env, capture_output=True, text=True, timeout=300)


def test_the_example_fulfils_the_contract_of_its_family(extended: Path) -> None:
    files = [
        "tests/peft_embeddings/test_embedding_contract.py",
        "tests/test_registry.py",
        "tests/client_app/test_engines.py::test_equals_the_oracle_in_float64",
        "tests/strategies/test_contract.py",
    ]
    done = python(extended, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "scale", *files)
    assert done.returncode == 0, done.stdout + done.stderr
    # Properties of the embedding, two of the registry, each recipe with each backbone, the strategies with it.
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed is not None
    assert int(passed[1]) >= 15


def test_the_second_example_fulfils_the_contract_of_its_family(extended: Path) -> None:
    files = [
        "tests/test_backbone_contract.py",
        "tests/test_registry.py",
        "tests/client_app/test_engines.py::test_equals_the_oracle_in_float64",
    ]
    done = python(extended, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "last_five and not hash", *files)
    assert done.returncode == 0, done.stdout + done.stderr
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed is not None
    assert int(passed[1]) >= 15


def test_the_second_example_gives_the_same_on_any_number_of_nodes_resumes_and_serves_somebody_new(
    extended: Path,
) -> None:
    """With no private tensors at all."""
    chosen = ["backbone=last_five", *SMALL[:5], "strategy.warmup_rounds=1", "strategy.rounds=4", "checkpoint_every=2"]
    summaries = []
    for nodes in (1, 2, 7):
        done = python(extended, "-m", "commands.cli", "train", *chosen, f"simulation.nodes={nodes}", "--json")
        assert done.returncode == 0, done.stderr
        summaries.append(json.loads(done.stdout))
    first, *others = summaries
    for other in others:
        assert other["bytes_per_user"] == first["bytes_per_user"]
        assert other["test"] == pytest.approx(first["test"], abs=1e-6)
    assert 0 < first["test"]["cold_users"] < first["test"]["users"]
    folder = Path(first["run"])
    for last in (folder / "summary.json", *(folder / "checkpoints").glob("round-000004*")):
        last.unlink()
    assert [path.name for path in (folder / "checkpoints").glob("*.json")] == ["round-000002.json"]
    done = python(extended, "-m", "commands.cli", "train", f"resume={folder.name}", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["test"] == first["test"]
    ids = json.loads((folder / "items.json").read_text(encoding="utf-8"))["ids"][:5]
    answers = []
    for history in (ids, ids[::-1], ids[1:]):
        done = python(
            extended, "-m", "commands.cli", "recommend", str(folder), "--history", ",".join(history), "--json"
        )
        assert done.returncode == 0, done.stderr
        answers.append(json.loads(done.stdout)["items"])
    assert len(answers[0]) == 10
    assert answers[0] == answers[1], "of five items a mean does not know the order"
    assert answers[0] != answers[2]


def test_the_stage_fulfils_the_contract_of_its_family_and_trains_as_the_oracle_has_it(extended: Path) -> None:
    files = ["tests/test_privacy_contract.py", "tests/test_registry.py", "tests/client_app/test_engines.py"]
    done = python(extended, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "noisy_sum", *files)
    assert done.returncode == 0, done.stdout + done.stderr
    # Properties of a mechanism, two of the registry, and every embedding in chunks of two sizes.
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed is not None
    assert int(passed[1]) >= 20
    command = re.search(r"^fedrec train (privacy=noisy_sum .*)$", CONTRIBUTING, flags=re.MULTILINE)
    assert command is not None
    words = command[1].split()
    small = [text for text in SMALL if not text.startswith(("dataset.n_users", "strategy.rounds"))]
    few = ["strategy.rounds=2" if text.startswith("strategy.rounds") else text for text in words]
    run = python(extended, "-m", "commands.cli", "train", *few, *small, "--json")
    assert run.returncode == 0, run.stderr
    summary = json.loads(run.stdout)
    lines = (Path(summary["run"]) / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["releases"] for line in lines] == [
        [{"mechanism": "gaussian", "noise_multiplier": 0.8, "in_secret": True}]
    ] * 2


def test_the_example_trains_and_the_page_of_runs_shows_what_a_metrics_line_holds(extended: Path) -> None:
    done = python(extended, "-m", "commands.cli", "train", "embedding=scale", *SMALL, "--json")
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    folder = Path(summary["run"])
    line = json.loads((folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()[-1])
    assert line["phase"] == "peft"
    header_and_scalars = 36 + 8
    sent = line["bytes"]["down"] / line["cohort"]
    assert sent == header_and_scalars + 4 * (60 + 8), "one number an item, and one a dimension"

    (shown,) = (json.loads(block) for block in blocks(RUNS, "json"))
    assert shape(shown) == shape(line)
    named = first_cells(RUNS)
    assert line.keys() <= named
    files = {f"{path.name}/" if path.is_dir() else path.name for path in folder.iterdir()}
    assert files <= named
    paragraph = RUNS[RUNS.index("`summary.json` holds") :].split("\n\n")[0]
    assert set(re.findall(r"`(\w+)`", paragraph)) == summary.keys()


def shape(value: Any) -> Any:
    """The keys of nested objects."""
    return {key: shape(inner) for key, inner in value.items()} if isinstance(value, dict) else None
