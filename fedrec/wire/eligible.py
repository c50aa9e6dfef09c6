"""The public list of items that may be recommended, as it travels."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fedrec.core.errors import PacketError
from fedrec.core.tensors import Spec, Tensors, TensorSpec, matches

ELIGIBLE = "eligible"


def eligible_spec(n_items: int) -> Spec:
    """The public list of items that may be recommended, as it travels: one bit an item."""
    return {ELIGIBLE: TensorSpec(((n_items + 7) // 8,), "uint8")}


def pack_eligible(eligible: NDArray[np.integer[Any]], n_items: int) -> Tensors:
    """Item rows as one bit an item."""
    bits = np.zeros(n_items, dtype=np.bool_)
    bits[eligible] = True
    return {ELIGIBLE: torch.from_numpy(np.packbits(bits))}


def unpack_eligible(packed: Tensors, n_items: int) -> NDArray[np.int64]:
    """The inverse of `pack_eligible`: item rows, ascending.

    Raises PacketError (`malformed`) if the tensors are no such list of that many items.
    """
    if packed.keys() != {ELIGIBLE} or not matches(eligible_spec(n_items)[ELIGIBLE], packed[ELIGIBLE]):
        raise PacketError("malformed", f"the list of eligible items is none of one bit for each of {n_items} items")
    return np.flatnonzero(np.unpackbits(packed[ELIGIBLE].numpy(), count=n_items)).astype(np.int64)
