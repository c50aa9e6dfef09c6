"""A hashed table: every item reads h rows of one small table, chosen by universal hash functions.

Source: FedPEFT (arXiv 2512.13734), after hash embeddings (Svenstrup, Hansen and Winther, NeurIPS 2017). The functions
are Carter and Wegman's (1979), `((a x + b) mod p) mod buckets` with a prime p above every item id: for two different
items the probability of the same bucket is at most 1 / buckets. Without the inner `mod p` a function would depend on
`x mod buckets` alone, so that no number of functions could tell items apart which are `buckets` apart. Such a function
takes equal steps over ids that follow each other, so that a draw may do better than chance, or worse: it is measured.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
from annotated_types import Ge, Le
from torch import Tensor
from typing_extensions import override

from fedrec.core.tensors import Spec, TableSpec, Tensors, TensorSpec
from peft_embeddings.compressed import CompressedConfig, CompressedEmbedding

PRIME = 2**31 - 1
"""Above every item id (a catalogue has at most that many items), and small enough that `a x + b` fits 64 bits."""

_ITEMS_AT_ONCE = 65_536


def draw_functions(count: int, rng: torch.Generator) -> Tensor:
    """`count` independent functions as int64 [count, 2]: a in [1, p), b in [0, p)."""
    a = torch.randint(1, PRIME, (count,), generator=rng)
    b = torch.randint(0, PRIME, (count,), generator=rng)
    return torch.stack([a, b], dim=1)


def buckets_of(items: Tensor, functions: Tensor, buckets: int) -> Tensor:
    """The bucket of every item under every function: item ids [...] to int64 [..., h]."""
    a, b = functions.unbind(1)
    return (items.unsqueeze(-1) * a + b) % PRIME % buckets


def expected_codes(n_items: int, buckets: int, functions: int) -> float:
    """Expected number of distinct h-tuples of buckets among n items under truly random functions.

    Of the M = buckets ** h tuples each is missed by all items with probability (1 - 1/M) ** n, so the expectation is
    M (1 - (1 - 1/M) ** n).
    """
    tuples = float(buckets) ** functions
    return -tuples * math.expm1(n_items * math.log1p(-1 / tuples)) if tuples > 1 else 1.0


@dataclass(frozen=True)
class HashedConfig(CompressedConfig):
    """What the configuration of both hashed embeddings has.

    Attributes:
        buckets: Rows of the table; 512 in the paper.
        functions: Hash functions, the h rows that an item reads; 2 in the paper.
    """

    buckets: Annotated[int, Ge(1), Le(PRIME)]
    functions: Annotated[int, Ge(1), Le(64)]


class HashedEmbedding(CompressedEmbedding):
    """One table [buckets, dim]; a member says how the h rows of an item become its vector."""

    config: HashedConfig

    ordered: bool
    """Whether the order of an item's buckets matters to its vector."""

    @property
    @override
    def tables(self) -> Mapping[str, TableSpec]:
        return {"rows": TableSpec((self.config.buckets, self.dim))}

    @property
    @override
    def frozen(self) -> Spec:
        return {"functions": TensorSpec((self.config.functions, 2), "int64")}

    @abstractmethod
    def random_std(self, length: float) -> float:
        """Standard deviation of normal rows that makes vectors of root mean square length `length`."""

    @override
    def init(self, base: Tensor, rng: torch.Generator) -> Tensors:
        functions = draw_functions(self.config.functions, rng)
        table = self.tables["rows"].zeros()
        if self.config.resolved_start == "random":
            table = torch.randn(table.shape, generator=rng) * self.random_std(self.random_length(base))
        return {"rows": table, "functions": functions}

    @override
    def rows(self, items: Tensor, frozen: Tensors) -> Mapping[str, Tensor]:
        return {"rows": buckets_of(items, frozen["functions"], self.config.buckets)}

    @override
    def report(self, frozen: Tensors) -> Mapping[str, float]:
        """Collisions: an item's code is its h buckets, and items of the same code have the same compressed vector."""
        parts = torch.split(torch.arange(self.n_items), _ITEMS_AT_ONCE)
        codes = torch.cat([self.rows(part, frozen)["rows"] for part in parts])
        vectors = codes if self.ordered else codes.sort(dim=1).values
        return {
            "distinct_codes": len(np.unique(codes.numpy(), axis=0)),
            "distinct_codes_expected": expected_codes(self.n_items, self.config.buckets, self.config.functions),
            "distinct_vectors": len(np.unique(vectors.numpy(), axis=0)),
            "buckets_used": len(np.unique(codes.numpy())) / self.config.buckets,
        }
