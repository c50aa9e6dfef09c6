"""`Full`: the whole item table is trained and travels in every round (the paper's uncompressed reference)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from typing_extensions import override

from federation.base import FederatedStrategy, Phase, StrategyConfig
from fedrec.config.schema import RunConfig
from fedrec.core.registry import strategies


@dataclass(frozen=True)
class FullStrategyConfig(StrategyConfig):
    """Configuration of `full`."""

    name: Literal["full"]


@strategies.register("full")
class FullStrategy(FederatedStrategy):
    """One phase, one whole table, started from the pre-trained one."""

    config_class: ClassVar[type[StrategyConfig]] = FullStrategyConfig

    @classmethod
    @override
    def phases(cls, config: RunConfig) -> Sequence[Phase]:
        rounds: int = config.strategy.rounds  # type: ignore[attr-defined]
        return [Phase("full", rounds, config.embedding)]

    @classmethod
    @override
    def problems(cls, config: RunConfig) -> list[str]:
        if config.embedding.name == "full":
            return []
        return [
            f"strategy=full trains the whole table, but embedding={config.embedding.name} was chosen: leave the "
            "embedding out, or take strategy=fedpeft (strategy.warmup_rounds=0 for no warm-up)"
        ]
