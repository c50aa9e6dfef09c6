"""`fedpeft` with an embedding that stands alone: nothing to warm up, nothing to freeze."""

from __future__ import annotations

import pytest

from fedrec.config.compose import compose
from fedrec.errors import ConfigError
from fedrec.registry import embeddings
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
