"""Secure aggregation: the server learns the sum over all who are in it, and nothing of its parts.

SecAgg+ (Bell et al., CCS 2020), after Bonawitz et al. (CCS 2017): each node adds to its part a mask in common with each
of its neighbours, which cancel out in the sum, and one of its own. The secrets of both are shared out among the
neighbours, so that the masks of who is lost, and the own masks of who is not, can be taken off the sum, and never both
of anybody. What is masked are whole numbers on a public grid (`fedrec.aggregations.grid`), so that the sum is, to the
bit, the one without masks. `docs/privacy.md` says what a server learns, and what one that lies can do.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from annotated_types import Ge, Le, Lt
from typing_extensions import override

from fedrec.aggregations.base import Masks
from fedrec.aggregations.grid import GridAggregation
from fedrec.core.errors import FederationError
from fedrec.core.registry import MemberConfig, aggregations
from fedrec.secure.graph import LEAST

if TYPE_CHECKING:
    from fedrec.config.schema import RunConfig


@dataclass(frozen=True)
class SecAggConfig(MemberConfig):
    """Configuration of `secagg`.

    Attributes:
        bits: As of `grid`.
        corrupt: Share of a round's nodes who may tell the server what they hold, rounded up to whole nodes.
        dropouts: Share of them who may be lost, at any stage (but see `server`), with the sum still taken.
        server: `curious`: it follows the protocol and looks at whatever it gets. `lying`: it may also tell nodes
            different things; then everybody is everybody's neighbour, of at most 256 nodes, more of them must come
            together, and a round in which one is lost between announcing itself and sharing its secrets has no sum. Of
            use only where sites pin each other's identities.
    """

    name: Literal["secagg"]
    bits: Annotated[int, Ge(4), Le(20)]
    corrupt: Annotated[float, Ge(0), Lt(0.5)]
    dropouts: Annotated[float, Ge(0), Lt(0.5)]
    server: Literal["curious", "lying"]


@aggregations.register("secagg")
class SecureAggregation(GridAggregation):
    """A grid and masks."""

    config_class: ClassVar[type[MemberConfig]] = SecAggConfig

    @property
    @override
    def masks(self) -> Masks:
        return Masks(self.config.corrupt, self.config.dropouts, self.config.server == "lying")

    @classmethod
    @override
    def problems(cls, config: RunConfig) -> list[str]:
        rules, found = config.federation, super().problems(config)
        name = "aggregation=secagg"
        if config.grouping.name != "one":
            found.append(
                f"{name}: grouping={config.grouping.name} has a sum for each group, and what is secure here is one sum "
                "over everybody; take grouping=one"
            )
        if config.network.name != "none":
            found.append(
                f"{name}: with network={config.network.name} a node tells beside its update who was late and how long "
                "its users took, or its packets have a length of their own; take network=none"
            )
        if rules.repeats:
            found.append(
                f"{name}: federation.repeats={rules.repeats}: the same updates in two sums over different nodes give "
                "away their difference, so a round is tried once; give federation.repeats=0"
            )
        if rules.node_limits(simulated=config.runtime == "simulation").share != 1.0:
            found.append(
                f"{name}: federation.max_node_share={rules.max_node_share}: nobody sees a node's part, and so nobody "
                "can make it weigh less; give federation.max_node_share=1.0"
            )
        if config.runtime == "simulation":
            try:
                cls(config.aggregation).masks.graph(config.simulation.nodes)
            except FederationError as error:
                found.append(f"{name}: simulation.nodes={config.simulation.nodes}: {error}")
        elif rules.min_nodes < LEAST:
            found.append(
                f"{name}: federation.min_nodes={rules.min_nodes}: a secure sum has {LEAST} participants or more; give "
                f"federation.min_nodes={LEAST}, or more"
            )
        return found
