"""FedPerGNN (Wu et al., Nature Communications 2022): a graph network over the user's own interactions, nobody else's.

The paper leaves the network open (GCN, GGNN, GAT); here it is LightGCN (He et al., SIGIR 2020), which has no weights of
its own, so that only item tensors travel. One layer is, with the items N(u) of user u and the users N(i) of item i,

    p_u <- sum over i in N(u) of e_i / sqrt(|N(u)| |N(i)|),    e_i <- sum over v in N(i) of p_v / sqrt(|N(v)| |N(i)|)

and the result is the mean over the layers 0 (what is trained) to K.

**What one user's graph can give.** A device knows its own edges only: u and N(u). The first line is exact, as soon as
the degrees |N(i)| are known: the server has them counted under local differential privacy
(`fedrec.wire.item_counts`). Of the second line it knows the one summand v = u. On that star the layers have a closed
form: with s_u = sum of e_i / sqrt(|N(u)| |N(i)|) and a_u = sum of 1 / (|N(u)| |N(i)|), both over i in N(u),

    layers 0, 1, 2, 3, 4, ... of u:    p_u, s_u, a_u p_u, a_u s_u, a_u^2 p_u, ...

so that more than one layer only weighs the same two vectors anew. **What it cannot give** is the item side: the users
around a candidate are unknown, its vector is e_i as it stands, in training and in ranking alike (adding u's own edge to
the items of the history alone would tell training which items they are).

**The graph expansion** (`expand_every` above 0) gives layer 2 its other summands, v != u: it is then a_u p_u + q_u with

    q_u = sum over i in N(u) of 1 / (sqrt(|N(u)|) |N(i)|) * sum over v in N(i), v != u, of p_v / sqrt(|N(v)|).

Every so many rounds users disclose p_v / sqrt(|N(v)|), clipped and noised, and are told sums of what those with the
same items disclosed, by a server that knows neither (`fedrec.wire.expansion`, which also says what that does not
protect).
q_u is kept on the device and does not move while p_u trains. Two things differ from the formula. |N(i)| is not the
counted degree but the number of those who took part with item i: the degrees are noised, a sum over many divided by too
small a degree would drown all else, and a device that was never chosen does not hold them. And a user with more than
`expand_items` items takes part with so many of them, drawn at random, and weighs what it is told up accordingly. Items
that fewer than `expand_sharers` users took part with add nothing. Of layers above 2 a device knows what comes back to u
from itself alone: layer k is a_u times layer k - 2. What the others add to these would need an exchange for each.

Score of item i: the dot product of the propagated vector of u and e_i.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Le
from torch import Tensor
from typing_extensions import override

from fedrec.backbones.base import Advice, History
from fedrec.backbones.fedmf import FedMF
from fedrec.core.bounds import LARGEST_START, MOST_ITEMS, MOST_LAYERS
from fedrec.core.registry import MemberConfig, backbones
from fedrec.core.tensors import Spec, Tensors, TensorSpec
from fedrec.wire.expansion import Expansion
from fedrec.wire.item_counts import ItemCounting

_EXPANSION = "expand_"


@dataclass(frozen=True)
class FedPerGNNConfig(MemberConfig):
    """Configuration of `fedpergnn`.

    Attributes:
        init_std: Standard deviation of a user vector's normal start.
        layers: Layers K of the propagation.
        degree_items: Items that a user contributes to the counted degrees at most.
        degree_epsilon: Local differential privacy of that contribution, once a run (null: no noise, simulation only).
        expand_every: Rounds between two exchanges of the graph expansion, after the round whose number it divides and
            never after the last (0: none at all). It needs 2 layers at least.
        expand_items: Items that a user takes part with at most.
        expand_sharers: Users who must take part with an item before it adds to anybody's graph.
        expand_clip: L1 norm to which what a user discloses is cut.
        expand_epsilon: Local differential privacy of that vector in each exchange (null: no noise, simulation only; k
            exchanges cost k times as much).
    """

    name: Literal["fedpergnn"]
    init_std: Annotated[float, Gt(0), Le(LARGEST_START)]
    layers: Annotated[int, Ge(1), Le(MOST_LAYERS)]
    degree_items: Annotated[int, Ge(1), Le(1_000_000)]
    degree_epsilon: Annotated[float, Gt(0), Le(100)] | None
    # With defaults: neither a run's messages nor the folder of a run of old need say that there is no expansion.
    expand_every: Annotated[int, Ge(0), Le(MOST_ITEMS)] = 0
    expand_items: Annotated[int, Ge(1), Le(10_000)] = 50
    expand_sharers: Annotated[int, Ge(2), Le(MOST_ITEMS)] = 5
    expand_clip: Annotated[float, Gt(0), Le(1e6)] = 0.1
    expand_epsilon: Annotated[float, Gt(0), Le(100)] | None = 4.0

    def __post_init__(self) -> None:
        """Refuse an expansion that nothing would read."""
        if self.expand_every and self.layers < 2:
            raise ValueError(
                f"backbone.expand_every={self.expand_every} with backbone.layers={self.layers}: what users tell each "
                "other is part of layer 2; give backbone.layers=2, or backbone.expand_every=0"
            )

    @override
    def told(self) -> dict[str, Any]:
        told = super().told()
        return {key: value for key, value in told.items() if self.expand_every or not key.startswith(_EXPANSION)}


@backbones.register("fedpergnn")
class FedPerGNN(FedMF):
    """FedMF, whose user vector is propagated over the user's own graph before it scores."""

    config_class = FedPerGNNConfig  # type: ignore[assignment]
    config: FedPerGNNConfig  # type: ignore[assignment]
    reads_history = True
    advice = Advice(loss="bpr", lr=0.001)

    @property
    @override
    def item_counting(self) -> ItemCounting:
        return ItemCounting(self.config.degree_items, self.config.degree_epsilon)

    @property
    @override
    def expansion(self) -> Expansion | None:
        own = self.config
        if not own.expand_every:
            return None
        return Expansion(own.expand_every, own.expand_items, own.expand_sharers, own.expand_clip, own.expand_epsilon)

    @property
    @override
    def around(self) -> Spec:
        return {"around": TensorSpec((self.dim,))} if self.config.expand_every else {}

    @override
    def frozen(self, n_items: int) -> Spec:
        return {"degree": TensorSpec((n_items,))}

    @override
    def init_frozen(self, counts: Tensor) -> Tensors:
        return {"degree": counts.clamp(min=1.0).float()}

    @override
    def disclosed(self, private: Tensors, sizes: Tensor) -> Tensor:
        return private["user"] * sizes.clamp(min=1).unsqueeze(-1).rsqrt()

    @override
    def surrounded(self, told: Tensor, sizes: Tensor, taken: Tensor) -> Tensors:
        weight = sizes.clamp(min=1).sqrt() / taken.clamp(min=1)  # 1 / sqrt(|N(u)|), and |N(u)| / taken for the rest
        return {"around": told * weight.unsqueeze(-1)}

    @override
    def user(self, shared: Tensors, private: Tensors, frozen: Tensors, history: History) -> Tensors:
        degree = frozen["degree"]
        size = history.length.clamp(min=1).unsqueeze(-1)  # a user without items is alone in its graph
        items = history.sum(degree.rsqrt()) * size.rsqrt()
        echo = history.total(degree.reciprocal()).unsqueeze(-1) / size
        pair = private["user"], items
        total = pair[0]
        for layer in range(1, self.config.layers + 1):
            total = total + echo ** (layer // 2) * pair[layer % 2]
            if layer % 2 == 0 and "around" in private:  # not where nothing was exchanged: a user trained alone
                total = total + echo ** (layer // 2 - 1) * private["around"]
        return {"user": total / (self.config.layers + 1)}
