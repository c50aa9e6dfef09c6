"""What users and replies are left out for, in words: why, and what can be done about it."""

from __future__ import annotations

from collections.abc import Mapping

USERS: Mapping[str, str] = {
    "too_large": "the norm of their update is above federation.max_update_norm: lower optim.lr, or raise the limit",
    "non_finite": "their update, loss or private tensors have NaN or infinity, their training diverges: lower optim.lr",
    "late": "they missed the simulated network.deadline: raise it, or let them move less",
    "no_negatives": "they know every item that may be recommended, so there is no negative to draw: nothing is lost",
}
"""By the reason for which a node leaves a user out."""

REPLIES: Mapping[str, str] = {
    "failed": "the node raised an error: see the log for it",
    "no_answer": "the node did not answer in time: raise federation.round_timeout, or see whether it is running",
    "late": "the answer came too late and was not used: raise federation.round_timeout",
    "rested": "the node has not answered for some time and is left out for a while: see whether it is running",
    "too_large": "the norm of the node's update is above what federation.max_update_norm allows its users",
    "row_too_large": "the node's update moves an item, or what everybody shares, farther than its users may: if it is "
    "honest, raise federation.max_row_norm",
    "wrong_loss": "the node's mean loss is none that training has: it is left out of the mean",
    "node_share": "the node has more of a round's users than federation.max_node_share lets count, and weighs less: if "
    "they are real, raise it",
    "too_many_users": "the node names more users than a node may: if they are real, raise federation.max_node_users",
    "too_many_new_users": "the node brings more new users than it may: if they are real, raise "
    "federation.max_node_growth",
    "other_code": "the node runs other code than the server: install the same fedrec on both",
    "other_version": "the node speaks another version of the protocol: install the same fedrec on both",
    "misconfigured": "the node's owner has something to mend in its configuration or file, which the log names",
    "store_damaged": "the node found its users' store damaged: they have started anew",
    "resend_refused": "the node says time and again that it has lost what it was sent: see whether its disk is full",
    "round_repeated": "too few took part in a round, and it was done again",
    "ranking_repeated": "too few took part in a ranking, and it was done again",
}
"""By the name under which a node's reply is counted; of a name that is not here, the log says more."""


def said(counts: Mapping[str, int], mends: Mapping[str, str]) -> str:
    """Counts in words: `28 too_large (...: lower optim.lr)`."""
    return "; ".join(
        f"{count:,} {name} ({mends.get(name, 'see the log')})" for name, count in sorted(counts.items()) if count
    )
