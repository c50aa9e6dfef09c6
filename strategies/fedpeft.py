"""`fedpeft`: warm-up of the full table, then the table is frozen and only a compressed correction travels.

Source: FedPEFT (arXiv 2512.13734, AAAI 2026): (1) the server pre-trains the table from item text, (2) a few warm-up
rounds train it federatedly, (3) it is frozen, the compressed part starts at exactly zero, and only it is trained.

An embedding of variant C has no table to warm up or to freeze: then all rounds train the compressed part.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from annotated_types import Ge, Le
from typing_extensions import override

from federation.base import FederatedStrategy, Phase, StrategyConfig
from fedrec.config.schema import RunConfig
from fedrec.core.bounds import MOST_ROUNDS
from fedrec.core.registry import MemberConfig, embeddings, strategies
from peft_embeddings.base import ItemEmbedding
from peft_embeddings.compressed import CompressedConfig
from peft_embeddings.full import FullConfig

log = logging.getLogger("fedrec")


@dataclass(frozen=True)
class FedPeftConfig(StrategyConfig):
    """Configuration of `fedpeft`.

    Attributes:
        warmup_rounds: Rounds, of all `rounds`, in which the full table is trained (the paper: fewer than 20). Without
            effect if the embedding's variant is C.
        merge_every: After every so many rounds of the compressed part it is folded into the frozen table, and starts
            anew (0: never). The embedding must be one that merges: `lora` of variant P.
    """

    name: Literal["fedpeft"]
    warmup_rounds: Annotated[int, Ge(0), Le(MOST_ROUNDS)]
    merge_every: Annotated[int, Ge(0), Le(MOST_ROUNDS)]


@strategies.register("fedpeft")
class FedPeftStrategy(FederatedStrategy):
    """Warm-up of the full table, then compressed updates over the frozen one."""

    config_class = FedPeftConfig

    def __init__(self, config: RunConfig, *others: Any) -> None:
        if _stands_alone(config.embedding):
            strategy: Any = config.strategy
            log.info(
                "embedding.variant=C: there is no table to warm up, so all %d rounds train the compressed part "
                "(strategy.warmup_rounds=%d has no effect)",
                strategy.rounds,
                strategy.warmup_rounds,
            )
        super().__init__(config, *others)

    @classmethod
    @override
    def phases(cls, config: RunConfig) -> Sequence[Phase]:
        strategy: Any = config.strategy
        before = 0 if _stands_alone(config.embedding) else strategy.warmup_rounds
        warmup = Phase("warmup", before, FullConfig("full"))
        peft = Phase("peft", strategy.rounds - before, config.embedding, strategy.merge_every)
        return [phase for phase in (warmup, peft) if phase.rounds]

    @classmethod
    @override
    def problems(cls, config: RunConfig) -> list[str]:
        strategy: Any = config.strategy
        found = []
        if config.embedding.name == "full":
            found.append(
                "strategy=fedpeft sends a compressed part, embedding=full has none: take strategy=full, or lora"
            )
        elif strategy.merge_every and not _merges(config.embedding):
            found.append(
                f"strategy.merge_every={strategy.merge_every} folds a correction into the base table, and "
                f"embedding={config.embedding.name} has none that merges: take embedding=lora embedding.variant=P, or "
                "strategy.merge_every=0"
            )
        if strategy.warmup_rounds >= strategy.rounds and not _stands_alone(config.embedding):
            found.append(
                f"strategy.warmup_rounds={strategy.warmup_rounds} must be below strategy.rounds={strategy.rounds}, or "
                "no round is left to train the compressed part"
            )
        return found


def _stands_alone(embedding: MemberConfig) -> bool:
    return isinstance(embedding, CompressedConfig) and embedding.variant == "C"


def _merges(embedding: MemberConfig) -> bool:
    smallest: ItemEmbedding = embeddings.get(embedding.name)(embedding, 1, 1)
    return smallest.restart(torch.Generator()) is not None
