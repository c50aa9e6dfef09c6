"""What a site's users have spent of their privacy by reports, in all runs: the epsilons of these, added up.

Each report of a user's items is differentially private by itself; what they tell together adds up. One that is the
same as one before costs nothing anew. Kept in `spent.json` in the state-dir.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock

from client_app.homes.policy import Policy
from fedrec.core.errors import PolicyError, StoreError
from fedrec.core.owned import own_file
from fedrec.core.whole_files import write_bytes


def spend(state_dir: Path, policy: Policy, what: str, epsilon: float) -> None:
    """Write down that something is about to be told; `what` names it, and the same is told once.

    Raises:
        PolicyError: Its epsilon is larger than the site grants, or the sum would be.
        StoreError: What was spent cannot be read: nothing is told then.
    """
    if epsilon > policy.max_epsilon:
        raise PolicyError(
            f"epsilon={epsilon:g}: this site tells nothing of its users above max_epsilon={policy.max_epsilon:g}"
        )
    path = state_dir / "spent.json"
    with spending(state_dir):
        spent = reported(state_dir)
        if what in spent:
            return
        if (total := sum(spent.values()) + epsilon) > policy.epsilon_budget:
            raise PolicyError(
                f"of epsilon_budget={policy.epsilon_budget:g} this site's users have spent {sum(spent.values()):g}, "
                f"and {what} would make it {total:g}"
            )
        write_bytes(path, json.dumps({**spent, what: epsilon}).encode(), private=True, synced=True)


@contextmanager
def spending(state_dir: Path) -> Iterator[None]:
    """Nobody else reads or writes meanwhile what the site's users have spent."""
    own_file(state_dir / "spent.lock")
    with FileLock(state_dir / "spent.lock"):
        yield


def reported(state_dir: Path) -> dict[str, float]:
    """The epsilon of each report that was made, by its name. Raises StoreError if what was spent cannot be read."""
    path = state_dir / "spent.json"
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        return {str(name): float(value) for name, value in values.items()}
    except FileNotFoundError:
        return {}
    except (ValueError, AttributeError, TypeError) as error:
        raise StoreError(
            f"{path}, in which is what this site's users have spent of their privacy, is damaged ({error}): put it "
            "back from a copy; nothing more is told of them until then"
        ) from error
