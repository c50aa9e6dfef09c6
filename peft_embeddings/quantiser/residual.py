"""Residual quantisation: a vector as the sum of one row from each of l codebooks, each for what those before left over.

Source: Juang and Gray (ICASSP 1982), as RQ-VAE uses it (Lee et al., CVPR 2022). Codebooks are a tensor [l, size, dim].
"""

from __future__ import annotations

import torch
from torch import Tensor

from peft_embeddings.quantiser.kmeans import kmeans, nearest

_SAMPLE_PER_CODE = 64
"""k-means looks at no more points for each centre: more change it little, and memory stays bounded."""


def encode(vectors: Tensor, codebooks: Tensor) -> Tensor:
    """Codes int64 [n, l] of vectors [n, dim]: level after level the nearest row to what is left over."""
    left = vectors
    codes = []
    for codebook in codebooks:
        codes.append(nearest(left, codebook))
        left = left - codebook[codes[-1]]
    return torch.stack(codes, dim=1)


def decode(codes: Tensor, codebooks: Tensor) -> Tensor:
    """The sums [n, dim] of the rows that codes [n, l] name."""
    return codebooks[torch.arange(len(codebooks)), codes].sum(1)


def residual_kmeans(vectors: Tensor, levels: int, size: int, rng: torch.Generator) -> Tensor:
    """Codebooks [levels, size, dim]: each the k-means centres of what the ones before leave over."""
    order = torch.randperm(len(vectors), generator=rng)
    left = vectors[order[: _SAMPLE_PER_CODE * size]]
    codebooks = []
    for _ in range(levels):
        codebooks.append(kmeans(left, size, rng))
        left = left - codebooks[-1][nearest(left, codebooks[-1])]
    return torch.stack(codebooks)


def additive_codebooks(vectors: Tensor, codes: Tensor, size: int, sweeps: int = 30) -> Tensor:
    """Codebooks [l, size, dim] whose sums are nearest to vectors [n, dim], in least squares, for codes that are given.

    Backfitting (Friedman and Stuetzle, 1981): in turn, each row is moved by the mean of what its items lack. Every
    move lowers the error. Rows that no item reads stay zero.
    """
    left = vectors.double()
    codebooks = left.new_zeros(codes.shape[1], size, vectors.shape[1])
    for _ in range(sweeps):
        for codebook, of_level in zip(codebooks, codes.T, strict=True):
            counts = torch.bincount(of_level, minlength=size).clamp(min=1)
            move = torch.zeros_like(codebook).index_add_(0, of_level, left) / counts[:, None]
            codebook += move
            left = left - move[of_level]
    return codebooks.to(vectors.dtype)
