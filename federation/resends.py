"""How often a node that says it has lost something is sent it again: not without end, for saying so is cheap."""

from __future__ import annotations

_MOST = 3
_USEFUL = 10


class Resends:
    """A node is sent again what it lacks three times; ten answers of use later, it may have lost it once more."""

    def __init__(self) -> None:
        self._spent: dict[int, float] = {}

    def allow(self, node: int) -> bool:
        """The node lacks something that it was sent; whether it is sent it again."""
        if (spent := self._spent.get(node, 0.0)) > _MOST - 1:
            return False
        self._spent[node] = spent + 1
        return True

    def useful(self, node: int) -> None:
        """The node has answered what it was asked for, with nothing lacking."""
        if (spent := self._spent.get(node, 0.0)) > 0:
            self._spent[node] = max(0.0, spent - 1 / _USEFUL)

    def connected(self, nodes: set[int]) -> None:
        """All but these nodes are gone."""
        self._spent = {node: spent for node, spent in self._spent.items() if node in nodes}
