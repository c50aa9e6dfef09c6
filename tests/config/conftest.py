"""A small configuration tree with members of its own, so that these tests do not depend on anybody's defaults."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from annotated_types import Ge, Gt, Le

from fedrec.config.schema import RunConfig
from fedrec.core import registry
from fedrec.core.registry import FAMILIES, MemberConfig

CONFIG = """
defaults:
  - embedding: low
  - backbone: stand_in
  - optim: stand_in
  - dataset: made
  - encoder: stand_in
  - reduction: stand_in
  - codec: stand_in
  - privacy: stand_in
  - cohort: stand_in
  - grouping: stand_in
  - network: stand_in
  - tracker: stand_in
  - uplink: stand_in
  - downlink: stand_in
  - aggregation: stand_in
  - strategy: two_phase
  - _self_
seed: 0
base_table: {start: text, dim: 32, norm: 1.0}
federation:
  fraction: 0.1
  weight_cap: 200
  max_update_norm: 1000.0
  max_row_norm: auto
  over_sampling: 0.0
  max_failures: 0.5
  min_users: 1
  repeats: 1
  min_nodes: 1
  node_timeout: 600.0
  round_timeout: null
  silent_rounds: 2
  max_node_users: null
  max_node_growth: null
  max_node_share: null
evaluation: {every: 10, validation: true, ks: [5, 10], sampled_negatives: 0, baselines: true}
simulation: {nodes: 2, workers: 2, cpus_per_worker: 1, gpus_per_worker: 0.0}
central: {epochs: 30, batch: 4096, lr: 0.005, decay: 0.0, negatives: recipe, patience: 3}
local: {rounds: 10}
engine: cohort
pairs_at_once: 65536
checkpoint_every: 50
checkpoints_kept: 2
run_id: null
resume: null
runs_dir: null
cache_dir: null
"""

FILES = {
    "config": CONFIG,
    "strategy/two_phase": "name: two_phase\nrounds: 100\nwarmup_rounds: 20\n",
    "strategy/whole": (
        "defaults:\n  - override /embedding@_global_.embedding: table\n  - _self_\nname: whole\nrounds: 100\n"
    ),
    "embedding/low": "name: low\nrank: 4\ninit_std: 0.1\n",
    "embedding/table": "name: table\n",
    "dataset/made": "name: made\nroot: null\nsize: 10\n",
    "dataset/asked": "name: asked\nroot: ???\nsize: 10\n",
    "optim/stand_in": "name: stand_in\nlr: 0.01\nloss: bpr\n",
    "experiment/tiny": (
        "# @package _global_\ndefaults:\n  - override /strategy: whole\nseed: 7\nstrategy: {rounds: 3}\n"
    ),
    "experiment/wrong": "# @package _global_\nembedding: {rnk: 3}\n",
} | {
    f"{family}/stand_in": "name: stand_in\n"
    for family in [
        "backbone",
        "encoder",
        "reduction",
        "codec",
        "privacy",
        "cohort",
        "grouping",
        "network",
        "tracker",
        "uplink",
        "downlink",
        "aggregation",
    ]
}


@dataclass(frozen=True)
class StandIn(MemberConfig):
    name: Literal["stand_in"]


@dataclass(frozen=True)
class Optim(StandIn):
    lr: Annotated[float, Gt(0), Le(1)]
    loss: Literal["bpr", "bce"]


@dataclass(frozen=True)
class Low(MemberConfig):
    name: Literal["low"]
    rank: Annotated[int, Ge(1)]
    init_std: float


@dataclass(frozen=True)
class Table(MemberConfig):
    name: Literal["table"]


@dataclass(frozen=True)
class Data(MemberConfig):
    name: Literal["made", "asked"]
    root: Path | None
    size: Annotated[int, Ge(1)]


@dataclass(frozen=True)
class Whole(MemberConfig):
    name: str
    rounds: Annotated[int, Ge(1)]


@dataclass(frozen=True)
class TwoPhase(Whole):
    warmup_rounds: Annotated[int, Ge(0)]


def _strategy(config_class: type, embedding: str) -> type:
    def problems(cls: type, config: RunConfig) -> list[str]:
        wrong = config.embedding.name != embedding
        return [f"this strategy needs embedding={embedding}"] if wrong else []

    return type("Strategy", (), {"config_class": config_class, "problems": classmethod(problems)})


def _member(config_class: type) -> type:
    return type("Member", (), {"config_class": config_class})


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that stands in for `conf/`."""
    conf = tmp_path / "conf"
    for name, text in FILES.items():
        path = conf / f"{name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    classes: dict[str, dict[str, Any]] = {family: {"stand_in": _member(StandIn)} for family in FAMILIES}
    classes["optim"] = {"stand_in": _member(Optim)}
    classes["embedding"] = {"low": _member(Low), "table": _member(Table)}
    classes["dataset"] = {"made": _member(Data), "asked": _member(Data)}
    classes["strategy"] = {"two_phase": _strategy(TwoPhase, "low"), "whole": _strategy(Whole, "table")}
    monkeypatch.setattr(registry, "CONF", conf)
    for name, family in FAMILIES.items():
        monkeypatch.setattr(family, "_classes", classes[name])
    monkeypatch.delenv("FEDREC_HOME", raising=False)
    return conf
