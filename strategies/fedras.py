"""`fedras`: the whole item table is trained, and each user's update of it travels as a few actions.

Source: FedRAS (arXiv 2507.08842, KDD 2025). Its abstract is public and no more: a client clusters the gradients of its
item embeddings into a limited number of model-updating actions, and sends these and which item takes which. What is
clustered, how it is coded, and what travels down is our reading (docs/fedras.md). The coding itself is the uplink
`actions`, which any strategy can take.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from typing_extensions import override

from federation.base import StrategyConfig
from fedrec.config.schema import RunConfig
from fedrec.core.registry import strategies
from strategies.full import FullStrategy

CODED = ("actions", "sampled")
"""Uplinks that send a coded update: `sampled` is the one for backbones whose rows are no few multiples."""


@dataclass(frozen=True)
class FedRasConfig(StrategyConfig):
    """Configuration of `fedras`."""

    name: Literal["fedras"]


@strategies.register("fedras")
class FedRasStrategy(FullStrategy):
    """As `full`, with updates that are coded."""

    config_class = FedRasConfig

    @classmethod
    @override
    def problems(cls, config: RunConfig) -> list[str]:
        found = []
        if config.embedding.name != "full":
            found.append(
                f"strategy=fedras moves the rows of the item table itself, but embedding={config.embedding.name} was "
                "chosen: leave the embedding out, or take strategy=fedpeft uplink=actions"
            )
        if config.uplink.name not in CODED:
            found.append(
                f"strategy=fedras sends updates as actions, but uplink={config.uplink.name} was chosen: take "
                "uplink=actions, or uplink=sampled for a backbone whose rows do not cluster"
            )
        return found
