"""The files of `conf/experiment/`: each composes and names no place; cells of the paper's tables have its values."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import yaml

from fedrec.config.compose import compose, experiments
from fedrec.core.errors import ConfigError
from fedrec.core.registry import CONF, FAMILIES
from fedrec.language.models import register
from fedrec.testing.language import tiny

BASE = Path("/somewhere")
DATASETS = {"ml1m": "ml_1m", "industrial": "amazon"}
PLACES = {"amazon": ["dataset.root=data"], "table": ["dataset.interactions=a.csv", "dataset.item_table=b.csv"]}
"""What a data set needs that no experiment may name."""
VARIANTS = {"full": ("full", "full"), "p_lora": ("fedpeft", "lora"), "p_rqvae": ("fedpeft", "rqvae")}
LEARNING_RATES = {"fedmf": 0.01}


def written(name: str) -> tuple[str, Any]:
    """The file of an experiment: its text, and what it says."""
    text = (CONF / "experiment" / f"{name}.yaml").read_text()
    return text, yaml.safe_load(text)


CELLS = [name for name in experiments() if "_paper" in written(name)[1].get("defaults", [])]
"""The experiments that are cells of the paper's tables: those that build on `_paper`."""


def composed(name: str, *overrides: str) -> Any:
    chosen = [entry for entry in written(name)[1].get("defaults", []) if isinstance(entry, dict)]
    dataset = next((entry["override /dataset"] for entry in chosen if "override /dataset" in entry), None)
    needs = [] if "dataset=synthetic" in overrides else PLACES.get(str(dataset), [])
    if name.startswith("language_model"):
        needs = [*needs, f"backbone.model={register(tiny('bert', Path(os.environ['FEDREC_HOME']) / 'm', 384).folder)}"]
    if name == "title_generator":
        made = tiny("llama", Path(os.environ["FEDREC_HOME"]) / "w", head=True)
        needs = [*needs, f"backbone.model={register(made.folder)}", "base_table.dim=16", "backbone.length=64"]
        needs += ["backbone.item_tokens=8", "backbone.before=''"]
    return compose([f"experiment={name}", *needs, *overrides], base=BASE)


def parts(name: str) -> tuple[str, str, str, str]:
    """Backbone, data, variant and, if it is named, rank."""
    backbone, data, variant = name.split("_", 2)
    variant, _, rank = variant.partition("_k")
    return backbone, data, variant, rank


@pytest.mark.parametrize("name", CELLS)
def test_a_cell_is_the_one_that_it_is_named_after(name: str) -> None:
    config = composed(name)
    backbone, data, variant, rank = parts(name)
    assert (config.backbone.name, config.dataset.name) == (backbone, DATASETS[data])
    assert (config.strategy.name, config.embedding.name) == VARIANTS[variant]
    if variant == "p_lora":
        assert (config.embedding.variant, config.embedding.rank) == ("P", int(rank or 4))
    if variant == "p_rqvae":
        assert (config.embedding.variant, config.embedding.levels, config.embedding.codes) == ("P", 4, 256)
    if data == "industrial":
        assert config.dataset.category == "Industrial_and_Scientific_5"
    if variant != "full":
        assert 0 < config.strategy.warmup_rounds < 20


@pytest.mark.parametrize("name", CELLS)
def test_a_cell_has_the_papers_hyper_parameters(name: str) -> None:
    config = composed(name)
    assert (config.strategy.rounds, config.federation.fraction) == (1000, 0.1)
    assert (config.base_table.start, config.base_table.dim) == ("text", 32)
    assert (config.encoder.name, config.encoder.model) == (
        "sentence_transformer",
        "sentence-transformers/sentence-t5-base",
    )
    assert (config.reduction.name, config.reduction.hidden) == ("autoencoder", (512, 256, 128))
    assert (config.optim.name, config.optim.local_epochs) == ("paper", 2)
    assert (config.optim.loss, config.optim.lr) == ("backbone", "backbone")
    advice = FAMILIES["backbone"].get(config.backbone.name).advice
    assert advice.lr == LEARNING_RATES.get(config.backbone.name, 0.001)
    before = compose([], base=BASE)
    assert (config.codec, config.privacy, config.simulation, config.seed) == (
        before.codec,
        before.privacy,
        before.simulation,
        before.seed,
    )


@pytest.mark.parametrize("name", experiments())
def test_an_experiment_is_a_difference_that_names_no_place(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FEDREC_HOME", str(tmp_path))
    text, values = written(name)
    assert text.startswith("# @package _global_\n")
    assert not {"root", "interactions", "item_table"} & (values.get("dataset") or {}).keys()
    composed(name)


def test_what_is_typed_wins_over_an_experiment() -> None:
    given = ["optim=fast", "encoder=tfidf", "reduction=pca", "dataset=synthetic", "strategy.rounds=30"]
    config = composed("fedmf_ml1m_p_lora", *given)
    assert (config.optim.name, config.encoder.name, config.reduction.name) == ("fast", "tfidf", "pca")
    assert (config.dataset.name, config.strategy.rounds) == ("synthetic", 30)
    assert (config.embedding.name, config.embedding.rank) == ("lora", 4)


def test_a_part_that_experiments_share_is_none_itself() -> None:
    assert (CONF / "experiment" / "_paper.yaml").exists()
    with pytest.raises(ConfigError, match=r"experiment=_paper: there is no such experiment"):
        compose(["experiment=_paper"], base=BASE)
