"""`fedpeft` with an embedding that stands alone: nothing to warm up, nothing to freeze."""

from __future__ import annotations

import pytest

from fedrec.config.compose import compose
from fedrec.core.errors import ConfigError
from fedrec.core.registry import embeddings
from peft_embeddings.compressed import CompressedConfig
from strategies.fedpeft import FedPeftStrategy

COMPRESSED = [name for name in embeddings.names() if issubclass(embeddings.get(name).config_class, CompressedConfig)]


def plan(*overrides: str) -> list[tuple[str, int, str]]:
    phases = FedPeftStrategy.phases(compose(overrides, base=None))
    return [(phase.name, phase.rounds, phase.embedding.name) for phase in phases]


@pytest.mark.parametrize("name", COMPRESSED)
def test_a_correction_has_a_warm_up_and_what_stands_alone_has_none(name: str) -> None:
    assert plan(f"embedding={name}") == [("warmup", 20, "full"), ("peft", 80, name)]
    assert plan(f"embedding={name}", "embedding.variant=C") == [("peft", 100, name)]


def test_fewer_rounds_than_the_warm_up_are_a_problem_only_where_there_is_one() -> None:
    assert plan("embedding.variant=C", "strategy.rounds=5") == [("peft", 5, "lora")]
    with pytest.raises(ConfigError, match=r"strategy\.warmup_rounds=20 must be below strategy\.rounds=5"):
        plan("strategy.rounds=5")


@pytest.mark.parametrize("embedding", [["embedding=hash"], ["embedding=rqvae"], ["embedding.variant=C"]])
def test_only_what_merges_can_be_merged(embedding: list[str]) -> None:
    with pytest.raises(ConfigError, match=r"strategy\.merge_every=5 folds .* take embedding=lora embedding\.variant=P"):
        compose([*embedding, "strategy.merge_every=5"], base=None)
    compose([*embedding, "strategy.merge_every=0"], base=None)


def test_the_compressed_part_alone_is_merged() -> None:
    config = compose(["strategy.merge_every=5"], base=None)
    assert [phase.merge_every for phase in FedPeftStrategy.phases(config)] == [0, 5]
    assert [phase.merge_every for phase in FedPeftStrategy.phases(compose([], base=None))] == [0, 0]
