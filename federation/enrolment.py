"""What a node answers that was invited to a run: its users' opaque keys, or why it cannot take part."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from exchanges.members import KEY_BYTES
from exchanges.records import KEYS, REASON, SLACK, Content, shown
from federation import said
from fedrec.core.errors import PacketError
from fedrec.wire.code import code_digest

LASTING = ("misconfigured", "other_code", "oversized", "refused_by_site")
"""Reasons that asking again does not mend: such a node is asked again when it has been away."""

_MOST_USERS = 2**24
"""Users of a node. Their keys are one array of a message, and have 128 MiB."""

LONGEST = KEY_BYTES * _MOST_USERS + SLACK
"""Bytes of the longest answer: of a node with as many users as a node may have."""

_WHY = {"malformed": "enrol_failed", "policy": "refused_by_site"}


def user_keys(content: Content) -> NDArray[np.uint64]:
    """The keys of the node's users, uint64 [users].

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
    return keys.astype(np.uint64)
