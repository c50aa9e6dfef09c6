"""What crosses the boundaries of a split model: hidden states, or their gradients, of some histories.

All packets of so many histories have the same length, whatever their texts: there is room for the longest one. How many
hidden states a history has is told beside them, for the server's attention has to know it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fedrec.backbones.split import Split
from fedrec.core.errors import PacketError
from fedrec.core.tensors import Tensors, TensorSpec
from fedrec.wire.packet import Kind, Packet, PacketFormat
from fedrec.wire.protocol import frozen_format

_STATES, _NUMBERS, _WEIGHTS = "states", "hidden", "weights"


def crossing_format(split: Split, histories: int, users: int = 0) -> PacketFormat:
    """Of the hidden states of so many histories, or their gradients; with the weights of so many users."""
    spec = {
        _STATES: TensorSpec((histories,), "int32"),
        _NUMBERS: TensorSpec((histories, split.length, split.width)),
        **({_WEIGHTS: TensorSpec((users,), "float64")} if users else {}),
    }
    return PacketFormat(Kind.CROSSING, spec, frozen_format({}).codec, 0)


def crossing(split: Split, hidden: Sequence[Tensor], weights: Tensor | None = None) -> Tensors:
    """The tensors of such a packet, of one [states, width] for each history."""
    numbers = torch.zeros(len(hidden), split.length, split.width)
    for row, tensor in enumerate(hidden):
        numbers[row, : len(tensor)] = tensor.detach()
    states = torch.tensor([len(tensor) for tensor in hidden], dtype=torch.int32)
    return {_STATES: states, _NUMBERS: numbers, **({} if weights is None else {_WEIGHTS: weights})}


def crossed(packet: Packet, like: Sequence[int] | None = None, least: int = 0) -> list[Tensor]:
    """The inverse of `crossing`: [states, width] of each history.

    Args:
        packet: One of `crossing_format`, decoded.
        like: How many states each history has; None: that is not known here.
        least: States that every history has. Only who is not ranked may have none.

    Raises PacketError (`malformed`, `non_finite`) if these cannot be hidden states, or not of those histories.
    """
    states, numbers = packet.tensors[_STATES].tolist(), packet.tensors[_NUMBERS]
    most = numbers.shape[1]
    if not all(least <= count <= most for count in states):
        came = f"histories of {min(states)} to {max(states)} hidden states came"
        raise PacketError("malformed", f"{came}, expected {least} to {most}")
    if like is not None and states != list(like):
        raise PacketError("malformed", "there are not as many hidden states as the histories here have")
    if not bool(numbers.isfinite().all()):
        raise PacketError("non_finite", "hidden states or gradients of them are NaN or infinite")
    return [row[:count] for row, count in zip(numbers, states, strict=True)]


def weights_of(packet: Packet) -> Tensor:
    """The users' weights, float64 [users], of a packet that has them."""
    return packet.tensors[_WEIGHTS]
