"""What all compressed embeddings share: the variants P and C, and where each may start.

Source: FedPEFT (arXiv 2512.13734). With e_i the frozen full vector of an item and c_i its compressed one, `P-*` is
`e_i + s c_i`, and `C-*` is `s c_i` alone; the factor s is 1 in the paper.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, TypeAlias

import torch
from annotated_types import Gt, Le
from torch import Tensor
from typing_extensions import override

from fedrec.core.bounds import LARGEST_START
from fedrec.core.errors import ConfigError
from fedrec.core.registry import MemberConfig
from fedrec.core.tensors import Tensors
from peft_embeddings.base import ItemEmbedding

Start: TypeAlias = Literal["zero", "random", "semantic"]


@dataclass(frozen=True)
class CompressedConfig(MemberConfig):
    """What the configuration of every compressed embedding has.

    Attributes:
        variant: `P`: the compressed part corrects the frozen base table; `C`: it stands alone, no base table is sent.
        start: The first compressed vectors. `zero`: at first there is nothing but the base. `random`: normal numbers,
            vectors of about the length of the base's. `semantic`: made from the base, as near to it as the member
            comes; in P it is subtracted again, so that the first vectors are the base in any case. `auto`: the
            first of those that `starts` names.
        scaling: The factor `s` before the compressed vectors. A server that steps adaptively moves every trained
            number about as far, however small its gradient is: the factor is what makes the steps of one embedding
            longer or shorter than those of another.
    """

    starts: ClassVar[Mapping[str, tuple[Start, ...]]] = {"P": ("zero",), "C": ("random",)}
    """For each variant the starts that the member has; the first is what `auto` means."""

    variant: Literal["P", "C"]
    start: Literal["auto", "zero", "random", "semantic"]
    scaling: Annotated[float, Gt(0), Le(LARGEST_START)]

    def __post_init__(self) -> None:
        """Refuse a start that the variant does not have."""
        legal = self.starts[self.variant]
        if self.start not in ("auto", *legal):
            raise ValueError(
                f"with embedding.variant={self.variant}, {self.name} cannot start {self.start}: give "
                f"embedding.start={' or '.join(legal)} (auto: {legal[0]})"
            )

    @property
    def resolved_start(self) -> Start:
        """The start that is meant."""
        return self.starts[self.variant][0] if self.start == "auto" else self.start


class CompressedEmbedding(ItemEmbedding):
    """`e_i + s c_i` (variant P) or `s c_i` (variant C), for a member that says what `c_i` is."""

    config: CompressedConfig

    def __init__(self, config: Any, n_items: int, dim: int) -> None:
        super().__init__(config, n_items, dim)
        self.uses_base = self.config.variant == "P"

    @abstractmethod
    def compressed(self, rows: Tensors, dense: Tensors, frozen: Tensors) -> Tensor:
        """The vectors c_i [..., items, dim] from what `embed` is given."""

    @override
    def embed(self, rows: Tensors, dense: Tensors, frozen: Tensors, base_rows: Tensor | None) -> Tensor:
        part = self.compressed(rows, dense, frozen)
        if base_rows is None:
            return part * self.config.scaling
        return torch.add(base_rows, part, alpha=self.config.scaling)

    def random_length(self, base: Tensor) -> float:
        """Root mean square length of c_i in a random start: with the factor, that of the rows of the base table.

        Raises ConfigError if it is zero: a random start would then be one that training cannot leave.
        """
        length = float(base.square().sum(1, dtype=torch.float64).mean().sqrt())
        if length == 0:
            raise ConfigError(
                [
                    "embedding.start=random takes its length from the base table, which is zero: set base_table.norm "
                    "above 0"
                ]
            )
        return length / self.config.scaling
