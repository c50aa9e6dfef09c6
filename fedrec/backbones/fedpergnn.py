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

Score of item i: the dot product of the propagated vector of u and e_i.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Le
from torch import Tensor
from typing_extensions import override

from fedrec.backbones.base import Advice, History
from fedrec.backbones.fedmf import FedMF
from fedrec.core.bounds import LARGEST_START, MOST_LAYERS
from fedrec.core.registry import MemberConfig, backbones
from fedrec.core.tensors import Spec, Tensors, TensorSpec
from fedrec.wire.item_counts import ItemCounting


@dataclass(frozen=True)
class FedPerGNNConfig(MemberConfig):
    """Configuration of `fedpergnn`.

    Attributes:
        init_std: Standard deviation of a user vector's normal start.
        layers: Layers K of the propagation.
        degree_items: Items that a user contributes to the counted degrees at most.
        degree_epsilon: Local differential privacy of that contribution, once a run (null: no noise, simulation only).
    """

    name: Literal["fedpergnn"]
    init_std: Annotated[float, Gt(0), Le(LARGEST_START)]
    layers: Annotated[int, Ge(1), Le(MOST_LAYERS)]
    degree_items: Annotated[int, Ge(1), Le(1_000_000)]
    degree_epsilon: Annotated[float, Gt(0), Le(100)] | None


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

    @override
    def frozen(self, n_items: int) -> Spec:
        return {"degree": TensorSpec((n_items,))}

    @override
    def init_frozen(self, counts: Tensor) -> Tensors:
        return {"degree": counts.clamp(min=1.0).float()}

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
        return {"user": total / (self.config.layers + 1)}
