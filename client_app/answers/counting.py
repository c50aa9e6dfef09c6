"""A node's side of counting items (see `fedrec.wire.item_counts`)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from client_app.homes.budget import spend
from client_app.homes.site import Site
from exchanges import members, records
from exchanges.declaration import Participant
from fedrec.core.errors import PacketError
from fedrec.core.rng import derive
from fedrec.wire.item_counts import COUNTS, report_sum

if TYPE_CHECKING:
    from client_app.answers.node import Node


def count_items(node: Node) -> bytes:
    """The encoded sum of what all users here report of the items that they train on.

    Raises PacketError (`malformed`) if the run has no items counted, or this is a site that is asked for reports
    without noise.
    """
    counting, n_items = node.backbone.item_counting, node.setup.n_items
    if counting is None:
        raise PacketError("malformed", f"backbone {node.backbone.config.name!r} has no items counted")
    if counting.epsilon is None and isinstance(node.place, Site):
        raise PacketError("malformed", "real users' items are not counted without noise: that is for simulations")
    cohort = node.users.training(np.arange(len(node.users)))
    if isinstance(node.place, Site) and node.policy and counting.epsilon is not None:
        rules = f"items counted with {counting}, {n_items} items, data {node.data_digest}"
        spend(node.place.state_dir, node.policy, rules, counting.epsilon)
    seed = derive(node.secret, "item counts")
    total = report_sum(counting, n_items, seed, cohort.keys, cohort.offsets, cohort.items)
    form = members.Counting(n_items).up(Participant(cohort.keys))[records.COUNTS]
    return form.encode(0, 0, {COUNTS: torch.from_numpy(total)}, [float(len(cohort))])
