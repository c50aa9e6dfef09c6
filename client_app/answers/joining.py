"""A node joins a run: what is damaged or missing at its place is found then, and what would delete a run is refused."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from client_app.homes.site import Site
from client_app.homes.site_data import ended, is_new
from client_app.stores.losses import RUN_UNKNOWN
from fedrec.core.errors import PolicyError

if TYPE_CHECKING:
    from client_app.answers.node import Node

log = logging.getLogger("fedrec")


def join(node: Node, resumes: Sequence[int]) -> NDArray[np.uint64]:
    """Take part in the run: the users' opaque keys, uint64 [users].

    Args:
        node: The node.
        resumes: The rounds after which the run was resumed so far: what was trained since, and is not part of it, is
            forgotten.

    Raises PolicyError if the run has ended here, ConfigError if the backbone needs what this machine does not have.
    """
    node.backbone.require_here()
    site = node.place if isinstance(node.place, Site) else None
    if site is not None:
        if max(resumes, default=0) and is_new(site, node.setup.run_key):
            log.warning("the run was resumed, after round %d, and this site has nothing of it", max(resumes))
            node.losses[RUN_UNKNOWN] += 1
        _require_not_ended(node, site, resumes)
    if site is not None or resumes:
        node.private_store.resume(resumes)
        if resumes and node.setup.aggregation_of_run.masked:
            node.stage_store.resume(resumes, again=not (node.policy and node.policy.pins))
    return node.users.keys


def _require_not_ended(node: Node, site: Site, resumes: Sequence[int]) -> None:
    """Raise PolicyError if a run that has ended is said to be resumed: its users' tensors would be deleted."""
    last, policy = ended(site, node.setup.run_key), node.policy
    if not last or not policy or policy.resume_ended:
        return
    # A server that has lost only the last ranking goes on from the last round: that deletes nothing.
    if min(node.private_store.to_follow(resumes), default=last) < last:
        raise PolicyError(
            f"this run has ended here, with the test after round {last}: it is not resumed after round {resumes[-1]}, "
            "for that would delete what its users trained since; if the server lost its end, say resume_ended = true "
            "in the policy of this site"
        )
