"""The public label of each item, as it travels to devices whose users are grouped by the labels of what they like."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedrec.core.errors import PacketError
from fedrec.core.tensors import Spec, Tensors, TensorSpec, matches
from fedrec.wire.protocol import frozen_format

LABELS = "labels"


def labels_spec(n_items: int) -> Spec:
    """The labels as they travel: one byte an item."""
    return {LABELS: TensorSpec((n_items,), "uint8")}


def labels_size(n_items: int, labels: int) -> int:
    """Bytes of the packet of so many items' labels, if there are so many labels; 0 for none."""
    return frozen_format(labels_spec(n_items)).size() if labels else 0


def pack_labels(labels: Tensor) -> Tensors:
    """Labels [items], whole numbers below 256, as they travel."""
    return {LABELS: labels.to(torch.uint8)}


def labels_packet(packed: Tensors) -> bytes:
    """The packed labels as they cross."""
    return frozen_format(labels_spec(len(packed[LABELS]))).encode(0, 0, packed)


def unpack_labels(packed: Tensors, n_items: int, labels: int) -> NDArray[np.uint8]:
    """The inverse of `pack_labels`: the label of each item, uint8 [items].

    Raises PacketError (`malformed`) if the tensors are not the labels of that many items, each below `labels`.
    """
    if packed.keys() != {LABELS} or not matches(labels_spec(n_items)[LABELS], packed[LABELS]):
        raise PacketError("malformed", f"the labels of items are none of one byte for each of {n_items} items")
    found: NDArray[np.uint8] = packed[LABELS].numpy()
    if (largest := int(found.max(initial=0))) >= labels:
        raise PacketError("malformed", f"an item has the label {largest}, and there are {labels} labels")
    return found
