"""The contract of downlinks: what devices hold comes to be what the server has, step by step."""

from __future__ import annotations

import pytest
import torch

from fedrec.core.errors import PacketError
from fedrec.core.rng import generator
from fedrec.core.tensors import Spec, TableSpec, Tensors
from fedrec.downlinks.base import Downlink
from fedrec.wire.packet import Kind, PacketFormat

SPEC: Spec = {"table": TableSpec((90, 6)), "narrow": TableSpec((40, 1)), "empty": TableSpec((0, 4))}
STEPS = 40


def drawn(seed: int) -> Tensors:
    """Tables of which some rows are far longer than others, and some are zero."""
    tables: Tensors = {}
    for name, entry in SPEC.items():
        rng = generator(seed, name)
        tables[name] = torch.randn(entry.shape, generator=rng) * torch.randn(entry.shape[0], 1, generator=rng).exp()
        tables[name][::7] = 0
    return tables


class DownlinkContract:
    """To be derived from, with a fixture `downlink`."""

    def sent(self, downlink: Downlink, change: Tensors, seed: int = 0) -> tuple[bytes, Tensors]:
        """The packet of a step, and what is decoded of it."""
        form = PacketFormat(Kind.MERGED, SPEC, downlink.packet, 0)
        packet = form.encode(1, 2, downlink.coded(change, seed), seed=None)
        assert form.least() <= len(packet) <= form.size()
        return packet, form.decode(packet).tensors

    def test_steps_bring_what_devices_hold_to_what_the_server_has(self, downlink: Downlink) -> None:
        """What one step leaves out, the next ones bring: nothing is lost for good."""
        if not downlink.every:
            return
        wanted, held = drawn(0), {name: torch.zeros_like(table) for name, table in drawn(0).items()}
        for step in range(STEPS):
            change = {name: wanted[name] - held[name] for name in held}
            _, moved = self.sent(downlink, change, step)
            held = {name: held[name] + moved[name] for name in held}
        for name, table in wanted.items():
            assert (held[name] - table).norm() <= 0.02 * table.norm()

    def test_a_step_is_a_function_of_the_change_and_the_seed(self, downlink: Downlink) -> None:
        change = drawn(1)
        before = {name: table.clone() for name, table in change.items()}
        assert self.sent(downlink, change)[0] == self.sent(downlink, change)[0]
        assert all(torch.equal(change[name], table) for name, table in before.items()), "the change stays as it was"

    def test_where_nothing_changed_nothing_moves(self, downlink: Downlink) -> None:
        _, moved = self.sent(downlink, {name: entry.zeros() for name, entry in SPEC.items()})
        assert not any(table.any() for table in moved.values())

    def test_a_packet_that_is_cut_off_is_refused(self, downlink: Downlink) -> None:
        packet, _ = self.sent(downlink, drawn(2))
        with pytest.raises(PacketError):
            PacketFormat(Kind.MERGED, SPEC, downlink.packet, 0).decode(packet[:-1])
