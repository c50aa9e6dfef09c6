"""Semantic codes (P-RQ-VAE, C-RQ-VAE): an item's vector is the sum of one row from each of l small codebooks.

Source: FedPEFT (arXiv 2512.13734), after RQ-VAE (Lee et al., CVPR 2022): `c_i = sum_j C_j[c_j]`. Which rows an item
reads, its code, is learned on the server from the item vectors (`peft_embeddings.quantiser`), sent once and never
changed; items that are alike share rows. The codebooks are trained by the federation, as wide as item vectors.

The semantic start takes the codebooks that rebuild the item vectors best from the codes, in least squares. In variant P
it keeps a frozen copy C' of them and trains `e_i + sum_j (C_j[c_j] - C'_j[c_j])`. A sum has the same gradient wherever
it starts, and SGD and Adam see nothing but gradients: in P the semantic start trains as zero does, and costs one more
tensor that is sent once. It is there for whoever wants trained codebooks that mean something by themselves.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import numpy as np
import torch
from annotated_types import Ge, Gt, Le
from torch import Tensor
from typing_extensions import override

from fedrec.core.bounds import LARGEST_RATE, MOST_ITEMS, HiddenWidths
from fedrec.core.registry import embeddings
from fedrec.core.space import Space, Whole
from fedrec.core.tensors import DTYPES, Spec, TableSpec, Tensors, TensorSpec
from peft_embeddings.compressed import CompressedConfig, CompressedEmbedding, Start

_CODER = "coder."


@dataclass(frozen=True)
class RqvaeConfig(CompressedConfig):
    """Configuration of `rqvae`.

    Attributes:
        levels: Codebooks, the rows that an item reads; the paper's best is 4.
        codes: Rows of each codebook; the paper's best is 256.
        hidden: Widths of the hidden layers of the RQ-VAE's encoder; the decoder has them in reverse.
        steps: Steps in which the RQ-VAE is trained on the server (0: its start, residual k-means).
        batch_size: Item vectors in a step.
        lr: Peak learning rate of its Adam.
        commitment: Weight of its commitment loss; 0.25 in the paper.
    """

    starts: ClassVar[Mapping[str, tuple[Start, ...]]] = {"P": ("zero", "semantic"), "C": ("semantic", "random")}

    name: Literal["rqvae"]
    levels: Annotated[int, Ge(1), Le(64)]
    codes: Annotated[int, Ge(1), Le(2**20)]
    hidden: HiddenWidths
    steps: Annotated[int, Ge(0), Le(10_000_000)]
    batch_size: Annotated[int, Ge(1), Le(MOST_ITEMS)]
    lr: Annotated[float, Gt(0), Le(LARGEST_RATE)]
    commitment: Annotated[float, Ge(0), Le(LARGEST_RATE)]


@embeddings.register("rqvae")
class RqvaeEmbedding(CompressedEmbedding):
    """`c_i = sum_j C_j[c_j]`; the codebooks are one table [levels * codes, dim], one below the other."""

    config_class = RqvaeConfig
    space: ClassVar[Space] = {"levels": Whole(1, 8), "codes": Whole(16, 1024, log=True)}
    config: RqvaeConfig

    @property
    @override
    def tables(self) -> Mapping[str, TableSpec]:
        return {"codebooks": TableSpec((self.config.levels * self.config.codes, self.dim))}

    @property
    @override
    def frozen(self) -> Spec:
        largest = self.config.codes - 1
        dtype = next(name for name in ("uint8", "int16", "int32") if torch.iinfo(DTYPES[name]).max >= largest)
        spec = {"codes": TensorSpec((self.n_items, self.config.levels), dtype)}
        return spec | ({"initial": self.tables["codebooks"]} if self._subtracted else {})

    @property
    @override
    def kept(self) -> Spec:
        from peft_embeddings.quantiser.rqvae import Coder

        spec = Coder.spec(self.config.levels, self.config.codes, self.dim, self.config.hidden)
        return {_CODER + name: entry for name, entry in spec.items()}

    @property
    def _subtracted(self) -> bool:
        """Whether the first output is not zero by itself, and so is subtracted."""
        return self.uses_base and self.config.resolved_start == "semantic"

    @override
    def init(self, base: Tensor, rng: torch.Generator) -> Tensors:
        from peft_embeddings.quantiser.residual import additive_codebooks
        from peft_embeddings.quantiser.rqvae import Training, train_quantiser

        config, spec = self.config, self.tables["codebooks"]
        training = Training(config.hidden, config.steps, config.batch_size, config.lr, config.commitment)
        coder = train_quantiser(base, config.levels, config.codes, training, rng)
        codes = coder.codes(base)
        made = {"codes": codes.to(DTYPES[self.frozen["codes"].dtype]), "codebooks": spec.zeros()}
        made |= {_CODER + name: tensor for name, tensor in coder.tensors().items()}
        if config.resolved_start == "random":
            std = self.random_length(base) / math.sqrt(config.levels * self.dim)
            made["codebooks"] = torch.randn(spec.shape, generator=rng) * std
        elif config.resolved_start == "semantic":
            made["codebooks"] = additive_codebooks(base / config.scaling, codes, config.codes).reshape(spec.shape)
        if self._subtracted:
            made["initial"] = made["codebooks"].clone()
        return made

    @override
    def grow(self, tensors: Tensors, vectors: Tensor) -> Tensors:
        from peft_embeddings.quantiser.rqvae import Coder

        kept = {name.removeprefix(_CODER): tensors[name] for name in self.kept}
        codes = Coder.of(kept).codes(vectors).to(tensors["codes"].dtype)
        return {**super().grow(tensors, vectors), "codes": torch.cat([tensors["codes"], codes])}

    @override
    def rows(self, items: Tensor, frozen: Tensors) -> Mapping[str, Tensor]:
        first = torch.arange(self.config.levels, device=items.device) * self.config.codes
        rows = frozen["codes"][items].long() + first
        return {"codebooks": rows} | ({"initial": rows} if self._subtracted else {})

    @override
    def frozen_problem(self, frozen: Tensors) -> str | None:
        least, most = (int(code) for code in torch.aminmax(frozen["codes"]))
        if 0 <= least <= most < self.config.codes:
            return None
        return f"codes from {least} to {most}, a codebook has {self.config.codes} rows"

    @override
    def compressed(self, rows: Tensors, dense: Tensors, frozen: Tensors) -> Tensor:
        read = rows["codebooks"] - rows["initial"] if self._subtracted else rows["codebooks"]
        return read.sum(-2)

    @override
    def report(self, frozen: Tensors) -> Mapping[str, float]:
        """How well the codes are used: an item that shares its whole code has the same c_i as another.

        The perplexity of a level is the number of rows that, used equally often, would be as hard to guess.
        """
        codes = frozen["codes"].numpy()
        times = np.unique(codes, axis=0, return_counts=True)[1]
        facts: dict[str, float] = {
            "distinct_codes": len(times),
            "items_sharing_a_code": int(times[times > 1].sum()),
            "codes_used": sum(len(np.unique(level)) for level in codes.T) / (self.config.levels * self.config.codes),
        }
        for number, level in enumerate(codes.T, start=1):
            share = np.unique(level, return_counts=True)[1] / len(level)
            facts[f"perplexity_{number}"] = float(np.exp(-(share * np.log(share)).sum()))
        return facts
