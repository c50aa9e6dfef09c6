"""A ranking on a node: the held-out items of its users, what they begin with, and the sums that leave."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from client_app.answers.evaluation import LEAD, LEAD_SQUARES, RankingProtocol, rank_users
from client_app.answers.granting import require_memory, require_users
from client_app.answers.node import Node, Received
from client_app.homes.site import Site
from client_app.homes.site_data import mark_ended
from client_app.training.engine import all_finite
from fedrec.core.errors import PacketError
from fedrec.core.rng import derive
from fedrec.core.tensors import Tensors
from fedrec.data.split import HeldOut
from fedrec.wire.lead import Lead


class Only(NamedTuple):
    """Some users alone, and what else they are ranked with.

    Attributes:
        slots: int64 [users], ascending.
        private: [users, ...], beside their private tensors.
    """

    slots: NDArray[np.int64]
    private: Tensors


def evaluate(
    node: Node,
    received: Received,
    after: int,
    of: HeldOut,
    rival: NDArray[np.float64] | None = None,
    only: Only | None = None,
) -> tuple[bytes, Lead | None]:
    """Rank the held-out items of a split for all users of the model's group.

    Returns the encoded sums of the metrics, and how far the model is ahead of `rival`, if that is given.

    Args:
        node: Where they live.
        received: The model after the round `after`; it may have been sent to be trained in the round that follows.
        after: The round whose private tensors the users are ranked with.
        of: The split.
        rival: float64 [users], each user's result under a baseline, by slot.
        only: Of these users; None: of all.
    """
    if of == "validation" and not node.setup.validation:
        raise PacketError("malformed", "this run holds nothing out for validation: users train on those items")
    model = received.model
    evaluated = node.users.evaluated(of)
    slots = evaluated[node.groups[evaluated] == received.group]
    if only is not None:
        slots = slots[np.isin(slots, only.slots)]
    cohort, positives = node.users.held_out(slots, of)
    if node.policy:
        require_memory(node, node.policy, cohort, trains=False)
    private, found = node.starts(cohort.keys, before=after + 1)
    private = node.engine.solve(model, cohort, private, derive(node.secret, "solve", of, after))
    if only is not None:
        places = torch.from_numpy(np.searchsorted(only.slots, slots))
        private |= {name: tensor[places] for name, tensor in only.private.items()}
    # A user whose own tensors have diverged is left out and counted; the others are ranked all the same.
    sane = np.flatnonzero(all_finite(private, len(cohort)).numpy())
    diverged = len(cohort) - len(sane)
    cohort, positives, found = cohort.select(sane), positives[sane], found[sane]
    private = {name: tensor[torch.from_numpy(sane)] for name, tensor in private.items()}
    setup = node.setup
    protocol = RankingProtocol(setup.ks, node.sampler, setup.sampled_negatives, derive(setup.seed, "sampled", of))
    if node.policy:
        require_users("a ranking", len(cohort), node.policy.min_users_in_ranking)
    if isinstance(node.place, Site) and of == "test":
        # The model may be of an earlier round than the last one, whose tensors a resumed run would delete.
        mark_ended(node.place, node.setup.run_key, max(after, node.private_store.newest()))
        if setup.aggregation_of_run.masked:
            node.stage_store.close()
    against = None if rival is None else torch.from_numpy(rival[slots[sane]])
    sums = rank_users(model.cpu(), cohort, positives, private, protocol, against)
    counts = (len(cohort), int((~found).sum()), diverged)
    scalars = [*map(float, counts), *(sums.get(name, 0.0) for name in setup.metric_names())]
    lead = None if rival is None else Lead(len(cohort), sums.get(LEAD, 0.0), sums.get(LEAD_SQUARES, 0.0))
    return setup.metrics_format().encode(received.phase, after, {}, scalars), lead
