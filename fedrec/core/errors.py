"""The errors that fedrec raises on purpose.

Every message says what is wrong, where, what came, what was expected and how to mend it.
"""

from __future__ import annotations

from collections.abc import Sequence


class FedrecError(Exception):
    """Base of every error that a user of fedrec can mend; commands print it without a stack trace."""


class ConfigError(FedrecError):
    """The configuration is not valid; carries *all* its problems, one line each."""

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = tuple(problems)
        count = "1 problem" if len(self.problems) == 1 else f"{len(self.problems)} problems"
        lines = "\n".join(f"  - {problem}" for problem in self.problems)
        super().__init__(f"the configuration has {count}:\n{lines}")


class DataError(FedrecError):
    """A data set is missing, malformed, or too small to train on."""


class PacketError(FedrecError):
    """Bytes from the network are not the packet that was expected; `reason` is the name it is counted under."""

    def __init__(self, reason: str, message: str) -> None:
        self.reason = reason
        super().__init__(message)


class FederationError(FedrecError):
    """The federation cannot go on: too few nodes, too many failures, or a node that runs other code."""


class RoundError(FederationError):
    """Too few took part in a round, or too many failed; the model is the one before it, and it may be repeated."""


class BudgetError(FedrecError):
    """A round would give away more about its users than the run's budget of privacy allows."""


class StoreError(FedrecError):
    """The users' store or a run folder cannot be read or written."""


class PolicyError(FedrecError):
    """A site's own policy does not allow what a server asks for."""
