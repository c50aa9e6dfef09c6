"""Named tensors and their specifications: the vocabulary of embeddings, backbones and packets."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

Tensors: TypeAlias = dict[str, Tensor]
"""Tensors by name. A leading user dimension may be added to any of them: one user and a cohort run the same code."""

DTYPES: Mapping[str, torch.dtype] = {
    "float32": torch.float32,
    "float64": torch.float64,
    "int16": torch.int16,
    "int32": torch.int32,
    "int64": torch.int64,
    "uint8": torch.uint8,
}


@dataclass(frozen=True)
class TensorSpec:
    """Shape and type of one tensor."""

    shape: tuple[int, ...]
    dtype: str = "float32"

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of the plain tensor in memory."""
        return self.size * DTYPES[self.dtype].itemsize

    def zeros(self, *leading: int) -> Tensor:
        """A zero tensor of this specification, with `leading` dimensions before its own."""
        return torch.zeros((*leading, *self.shape), dtype=DTYPES[self.dtype])


@dataclass(frozen=True)
class TableSpec(TensorSpec):
    """A tensor whose first dimension is addressed by row: a user reads, trains and moves only some of its rows."""

    @property
    def rows(self) -> int:
        """Number of rows."""
        return self.shape[0]


Spec: TypeAlias = Mapping[str, TensorSpec]
"""Specifications by name; the order of a packet's payload is the order of the sorted names."""


def spec_digest(spec: Spec, *context: str) -> bytes:
    """8 bytes that name a specification (names, shapes, types) and its `context` (codec and its settings)."""
    described = [[name, list(spec[name].shape), spec[name].dtype] for name in sorted(spec)]
    return hashlib.blake2b(json.dumps([described, *context]).encode(), digest_size=8).digest()


def content_digest(tensors: Mapping[str, Tensor]) -> str:
    """32 hexadecimal digits that name the exact content of tensors: two tables are the same bits if these are equal."""
    digest = hashlib.blake2b(digest_size=16)
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(json.dumps([name, list(tensor.shape), str(tensor.dtype)]).encode())
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()


def text_digest(text: str) -> str:
    """16 hexadecimal digits that name a text: as long for every text, and without its words."""
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def spec_of(tensors: Mapping[str, Tensor]) -> Spec:
    """The specification of given tensors."""
    names = {dtype: name for name, dtype in DTYPES.items()}
    return {name: TensorSpec(tuple(tensor.shape), names[tensor.dtype]) for name, tensor in tensors.items()}


def matches(spec: TensorSpec, tensor: Tensor) -> bool:
    """Whether the tensor has exactly the shape and type of the specification."""
    return tuple(tensor.shape) == spec.shape and tensor.dtype == DTYPES[spec.dtype]


def tables_of(spec: Spec) -> Spec:
    """The tables of a specification."""
    return {name: entry for name, entry in spec.items() if isinstance(entry, TableSpec)}


def without_tables(spec: Spec) -> Spec:
    """Everything else."""
    return {name: entry for name, entry in spec.items() if not isinstance(entry, TableSpec)}


def zeros(spec: Spec) -> Tensors:
    """Zero tensors for a whole specification."""
    return {name: entry.zeros() for name, entry in spec.items()}
