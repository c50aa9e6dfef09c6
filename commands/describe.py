"""`fedrec describe`: what a run would hold and move, without running it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import cast

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from federation.sizes import DEVICES, OnTheWay, PhaseSizes, Sizes, Totals, sizes
from fedrec.config.schema import RunConfig
from fedrec.core import registry
from fedrec.core.rng import counter_bits
from fedrec.data.prepare import load, load_items
from fedrec.datasets.base import DatasetConfig
from fedrec.networks.simulated import SimulatedNetwork
from fedrec.wire.item_list import item_list_packet, pack_item_list
from server_app.account import planned, settled
from server_app.setup import labels_wanted, make_setup

_DIGEST = "0" * 32
"""In the place of a digest of data that is not read; all are of this length."""
_DEVICES = 10_000
"""Drawn to say how long a round takes."""


def describe(config: RunConfig, items: int | None) -> Sizes:
    """The sizes of a run of this configuration.

    Args:
        config: The composed configuration.
        items: Rows of the catalogue; None: as many as the configured data set has, which is then read.

    Raises DataError if the data set cannot be read.
    """
    item_list = users = None
    if items is None:
        read = load_items if config.runtime == "deployment" else load
        dataset = read(cast(DatasetConfig, config.dataset))
        catalogue, users = dataset.catalogue, dataset.interactions.users or None
        items = len(catalogue)
        item_list = len(item_list_packet(pack_item_list(catalogue.item_ids, catalogue.titles)))
    config = settled(config, users or _imagined(config))
    labels = _DIGEST if labels_wanted(config) else ""
    found = sizes(config, make_setup(config, items, _DIGEST, _DIGEST, None, labels), item_list, users)
    return dataclasses.replace(found, privacy=planned(config), times=_times(config, found.phases))


def _imagined(config: RunConfig) -> int:
    """Users of a run of whose data nothing was read. The account does not depend on how many there are.

    The numbers of a secure sum do, where shares of noise are sized for its users.
    """
    if config.aggregation.name != "secagg" or getattr(config.privacy, "survivors", None) is not None:
        return 1
    return round(DEVICES / config.federation.fraction)


def _times(config: RunConfig, phases: Sequence[PhaseSizes]) -> dict[str, OnTheWay] | None:
    """How long the packets of a round of each phase take, by many devices that are drawn as a run draws its own."""
    network = registry.networks.get(config.network.name)(config.network, config.seed)
    if not isinstance(network, SimulatedNetwork):
        return None
    keys = counter_bits(config.seed, np.arange(_DEVICES))
    idle = np.zeros(_DEVICES)
    found = {}
    for phase in phases:
        median, slow = np.quantile(network.seconds(keys, *_each(phase), idle), [0.5, 0.99])
        found[phase.name] = OnTheWay(float(median), float(slow))
    return found


def _each(phase: PhaseSizes) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The bytes down and up of a round, of each of many devices."""
    return np.full(_DEVICES, phase.down), np.full(_DEVICES, phase.up)


def show_sizes(found: Sizes, console: Console) -> None:
    """Print a table of tensors for each phase, and one of bytes."""
    for phase in found.phases:
        console.print(_tensors(phase))
    console.print(_bytes(found))
    for phase in found.phases:
        if phase.least_up < phase.up:
            known = (
                "all of its rows" if phase.changed is None else f"{phase.changed:,} rows, by its window and negatives"
            )
            console.print(
                f"{phase.name}: a device lists the rows of tables that its user has changed. The bytes up, and those "
                f"of the totals, are the most that it may send, for {known}; it sends fewer where fewer rows change, "
                f"and {phase.least_up:,} where none do."
            )
        if (masks := phase.masks) is not None:
            console.print(
                f"{phase.name}: a secure sum of {masks.devices:,} devices, each with {masks.degree} neighbours of whom "
                f"{masks.threshold} have to stay; a number of an update has {masks.bits} bits on its way. Keys, shares "
                f"and the list of who is in it are {masks.down:,} bytes of those down."
            )
        if phase.crossing:
            console.print(
                f"{phase.name}: the middle of the model is the server's. Hidden states and gradients of them are "
                f"{phase.crossing:,} bytes of those up and down, and as long for a short text as for the longest. What "
                "the client reads before the middle is sent twice, for each message meets a new process."
            )
        if phase.merge_every:
            what = "a step of the tables that devices hold" if phase.steps else "a merge into the base table"
            most = " at most" * phase.steps
            console.print(
                f"{phase.name}: {what} every {phase.merge_every:,} rounds. A user downloads{most} {phase.merge:,} "
                f"bytes for each that it missed, at most {phase.whole:,} in all; the column merges has what is to be "
                "expected of that."
            )
    for name, time in (found.times or {}).items():
        console.print(
            f"{name}: the packets of a round are on the way for {time.median:.3g} s to and from a device in the "
            f"middle, and for {time.slow:.3g} s or more where one of a hundred is as slow, latency included. A round "
            "takes as long as its slowest user, and the work comes on top."
        )
    for exchange in found.exchanges:
        differ = exchange.least_up != exchange.most_up
        ups = f"{exchange.least_up:,} to {exchange.most_up:,} bytes up, {exchange.up:,.1f} on average" if differ else ""
        console.print(
            f"Every {exchange.every:,} rounds, but not after the last, every user's device, chosen or not, moves "
            f"{ups or f'{exchange.up:,} bytes up'}, and {exchange.down:,} bytes down, of what users tell each other or "
            "the server beside training. The totals have them."
        )
    if found.privacy is not None and "caveat" in found.privacy:
        console.print(found.privacy["caveat"])
    if found.privacy is not None and found.privacy["epsilon"] is not None:
        console.print(
            "After the last round epsilon={epsilon:.3f} at delta={delta:g} ({unit}), with a noise multiplier of "
            "{noise_multiplier:.4g} in {releases:,} rounds. Not in it: settings chosen on validation data, the metrics "
            "of rankings, and a server that is not what it says.".format(**found.privacy)
        )
    console.print(
        f"{found.items:,} items. Apart, a ranking moves {found.metrics:,} bytes of metrics up, and the model down to "
        "who does not train in the same message."
    )
    if found.item_list is not None and "item list" not in found.joining:
        console.print(
            f"In a deployment a device also downloads the list of the items, ids and titles, once: {found.item_list:,} "
            "bytes. Simulated nodes read prepared data and need none."
        )


def _tensors(phase: PhaseSizes) -> Table:
    table = Table(title=f"{phase.name}: {phase.rounds:,} rounds, embedding={phase.embedding}", title_justify="left")
    for column in ("tensor", "shape", "bytes", "held by", "crosses"):
        table.add_column(column, justify="right" if column == "bytes" else "left", no_wrap=True)
    for row in phase.tensors:
        shape = " x ".join(f"{size:,}" for size in row.shape)
        dtype = "" if row.dtype == "float32" else f" {row.dtype}"
        table.add_row(row.tensor, shape + dtype, f"{row.bytes:,}", row.held_by, row.crosses)
    return table


def _bytes(found: Sizes) -> Table:
    table = Table(title="Bytes of one user's device, packets with their headers", title_justify="left")
    merges = any(phase.merge_every for phase in found.phases)
    for column in ("", "up", "down", "one-time", *(["merges"] if merges else [])):
        table.add_column(column, justify="right" if column else "left")
    joining = ", ".join(f"{name} {count:,}" for name, count in found.joining.items())
    table.add_row(f"joining ({joining})", "", "", f"{sum(found.joining.values()):,}")
    for phase in found.phases:
        once = f"{phase.once:,}" if phase.once else ""
        table.add_row(f"{phase.name}, each round chosen", f"{phase.up:,}", f"{phase.down:,}", once)
    for totals in dict.fromkeys((found.run, found.per_1000_rounds)):
        name = f"{totals.rounds:,} rounds, chosen in {100 * found.fraction:g} %"
        table.add_row(name, *_cells(totals, merges), style="bold" if totals is found.run else None)
    return table


def _cells(totals: Totals, merges: bool) -> list[str]:
    cells = [f"{round(totals.up):,}", f"{round(totals.down):,}", f"{totals.one_time:,}"]
    return [*cells, f"{round(totals.merges):,}"] if merges else cells
