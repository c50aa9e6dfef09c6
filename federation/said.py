"""What a node says of itself in a reply: what it has found lost or damaged, and why it could not do its work."""

from __future__ import annotations

from typing import NamedTuple

from exchanges.records import LOSS_NAMES, LOSSES, PROBLEM, REASON, Content, shown

_SHOWN = 2000
_COUNTED = {"policy": "refused_by_site"}


class Problem(NamedTuple):
    """Why a node did not do what it was asked for: the name it is counted under, and its words for a log."""

    name: str
    text: str


def losses(content: Content) -> list[str]:
    """The names of what the node has found lost or damaged, each once; whatever else it says is no loss."""
    said = content.fields.get(LOSSES)
    words = set(said.split()) if isinstance(said, str) and len(said) <= _SHOWN else set()
    return [name for name in LOSS_NAMES if name in words]


def problem(content: Content) -> Problem | None:
    """Why the node did not do its work; None if it did."""
    if PROBLEM not in content.fields:
        return None
    return Problem(_COUNTED.get(str(content.fields.get(REASON)), "failed"), shown(content.fields[PROBLEM], _SHOWN))
