"""The codec as a stage: each user's update is rounded as the packet of its own device would round it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from typing_extensions import override

from fedrec.codecs.rounding import RoundingCodec, tensor_seed
from fedrec.core.rng import counter_bits
from fedrec.core.tensors import TensorSpec
from fedrec.stages.base import Stage
from fedrec.stages.contributions import Contributions, Rows
from fedrec.stages.draws import Draws


class Rounding(Stage):
    """Rounds at random, or to the nearest number that a packet can hold.

    Numbers that were rounded once and multiplied by one factor for all of a user are such numbers still, for a packet
    carries its scale: so a clip or a weight may come later.
    """

    reads = "rows"

    def __init__(self, codec: RoundingCodec) -> None:
        self.codec = codec

    @override
    def on_devices(self, given: Contributions, draws: Draws) -> Contributions:
        return self._rounded(given, counter_bits(draws.again("codec"), given.keys))

    def nearest(self, given: Contributions) -> Contributions:
        """To the nearest number instead: without error, but for the last bits, of what was rounded before."""
        return self._rounded(given, None)

    def others(self, given: Contributions, draws: Draws) -> Contributions:
        """Rounded in all that is no table: of an uplink that sends tables in a way of its own."""
        seeds = counter_bits(draws.again("codec"), given.keys)
        whole = {
            name: tensor if name in given.tables else self._round_whole(tensor, _of_tensor(seeds, name))
            for name, tensor in given.whole.items()
        }
        return given.changed(whole=whole)

    def _rounded(self, given: Contributions, seeds: NDArray[np.uint64] | None) -> Contributions:
        if not given.rows:
            return self._as_packets(given, seeds)
        for name, blocks in given.rows.items():
            self._round_rows(given.spec[name], blocks, _of_tensor(seeds, name), len(given))
        whole = {name: self._round_whole(tensor, _of_tensor(seeds, name)) for name, tensor in given.whole.items()}
        return given.changed(whole=whole)

    def _as_packets(self, given: Contributions, seeds: NDArray[np.uint64] | None) -> Contributions:
        """Packed and unpacked, user by user: slow, and what a device does."""
        decoded = []
        for user in range(len(given)):
            delta = {name: tensor[user] for name, tensor in given.whole.items()}
            packed = self.codec.encode(delta, given.spec, None if seeds is None else int(seeds[user]))
            decoded.append(self.codec.decode(memoryview(packed), given.spec))
        whole = {
            name: torch.stack([delta[name] for delta in decoded]).to(tensor) for name, tensor in given.whole.items()
        }
        return given.changed(whole=whole)

    def _round_rows(
        self, spec: TensorSpec, blocks: Sequence[Rows], seeds: NDArray[np.uint64] | None, users: int
    ) -> None:
        """Round what users changed in rows of a table as each user's own packet of the table would; in place."""
        largest = torch.zeros(users, dtype=blocks[0].values.dtype, device=blocks[0].values.device)
        if not self.codec.by_row(spec):
            for block in blocks:
                largest.scatter_reduce_(0, block.owner, block.values.flatten(1).abs().amax(1), "amax")
        for block in blocks:
            width = block.values.shape[2]
            column = torch.arange(width, dtype=torch.int32, device=block.rows.device)
            places = block.rows.to(torch.int32)[..., None] * width + column
            if self.codec.by_row(spec):
                scale = block.values.abs().amax(2, keepdim=True)
            else:
                scale = largest[block.owner, None, None]
            of_blocks = None if seeds is None else seeds[block.owner.cpu().numpy()]
            block.values.copy_(self.codec.rounded(block.values, scale, of_blocks, places))

    def _round_whole(self, tensor: Tensor, seeds: NDArray[np.uint64] | None) -> Tensor:
        """The same for tensors [users, ...] that are no tables."""
        flat = tensor.reshape(len(tensor), -1)
        places = torch.arange(flat.shape[1], device=flat.device)[None, :]
        return self.codec.rounded(flat, flat.abs().amax(1, keepdim=True), seeds, places).reshape(tensor.shape)


def _of_tensor(seeds: NDArray[np.uint64] | None, name: str) -> NDArray[np.uint64] | None:
    return None if seeds is None else tensor_seed(seeds, name)
