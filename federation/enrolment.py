"""What a node answers that was invited to a run: its users' opaque keys, or why it cannot take part."""

from __future__ import annotations

import re
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from exchanges.members import GROUP_BYTES, KEY_BYTES
from exchanges.records import GRADE, GROUPS, KEYS, REASON, SLACK, Content, shown
from federation import said
from fedrec.core.bounds import GRADES
from fedrec.core.errors import PacketError
from fedrec.wire.code import code_digest

LASTING = (
    "misconfigured",
    "other_code",
    "oversized",
    "refused_by_site",
    "too_many_users",
    "too_many_new_users",
)
"""Reasons that asking again does not mend: such a node is asked again when it has been away."""

_MOST_USERS = 2**24
"""Users of a node. Their keys and groups are two arrays of a message, and have 160 MiB."""

LONGEST = (KEY_BYTES + GROUP_BYTES) * _MOST_USERS + SLACK
"""Bytes of the longest answer: of a node with as many users as a node may have."""

_WHY = {"malformed": "enrol_failed", "policy": "refused_by_site"}


class Joined(NamedTuple):
    """What a node has told of itself.

    Attributes:
        keys: uint64 [users], its users' keys.
        groups: int64 [users], the place of each one's group among the run's.
        grade: What it says of its device; empty: nothing.
    """

    keys: NDArray[np.uint64]
    groups: NDArray[np.int64]
    grade: str = ""


def joined(content: Content, n_groups: int) -> Joined:
    """The node's users, in a run with so many groups.

    Raises:
        PacketError: `misconfigured`, `refused_by_site` or `enrol_failed` (the node says why it cannot take part),
            `other_code` (than this server's), `oversized` (more users than a node may have), `malformed`.
    """
    if (problem := said.problem(content)) is not None:
        name = _WHY.get(str(content.fields.get(REASON)), "misconfigured")
        raise PacketError(name, f"it cannot take part: {problem.text}")
    code, keys = content.text("code"), content.array(KEYS)
    if code != code_digest():
        raise PacketError(
            "other_code",
            f"it runs other code ({shown(code)}) than this server ({code_digest()}): install the same fedrec on both; "
            "a simulation started in a folder that holds other packages of the same names imports those",
        )
    if keys.dtype != np.uint64 or keys.ndim != 1:
        raise PacketError("malformed", f"user keys are a list of uint64, not {keys.dtype} {keys.shape}")
    if keys.size > _MOST_USERS:
        raise PacketError("oversized", f"{keys.size} users; a node has at most {_MOST_USERS}")
    grade = content.text(GRADE) if GRADE in content.fields else ""
    if not re.fullmatch(GRADES, grade):
        raise PacketError("malformed", f"a device's grade is a short name, not {shown(grade)!r}")
    return Joined(keys.astype(np.uint64), _groups(content, keys.size, n_groups), grade)


def _groups(content: Content, users: int, n_groups: int) -> NDArray[np.int64]:
    if n_groups == 1:
        return np.zeros(users, dtype=np.int64)
    groups: NDArray[Any] = content.array(GROUPS)
    if groups.dtype != np.uint16 or groups.shape != (users,) or (groups >= n_groups).any():
        raise PacketError(
            "malformed",
            f"groups are a list of uint16 below {n_groups}, one for each of {users} users, not {groups.dtype} "
            f"{groups.shape}",
        )
    return groups.astype(np.int64)
