"""What a site's users have given away by training, in all runs: their own ledger, and the limit that the site sets.

An update that is noised before it leaves the device, or whose noise is complete when no mask is left on the sum, is a
release about its user. They are counted for each user by their kind, before they are made, in `spent_training.json` in
the state-dir; what was counted is never taken back, also if nothing leaves in the end. All is counted in one unit, one
user's data for any other's, of which the noise of a sum, which is measured by a user who is there or not, hides half.

The site believes nobody about the size of the noise that it adds itself, which is that of the setup. Of a secure sum it
believes how many others add theirs, as it does in the sum itself.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from client_app.homes.budget import spending
from client_app.homes.policy import Policy
from fedrec.core.errors import PolicyError, StoreError
from fedrec.core.strict_json import json_line, parsed_object
from fedrec.core.whole_files import write_bytes
from fedrec.privacy.divergences import epsilon
from fedrec.stages.base import Release
from fedrec.wire.protocol import Setup

LEDGER = "spent_training.json"
_KEY = re.compile("[0-9a-f]{16}")

Spent = dict[str, Counter[Release]]
"""How many releases of each kind were made about each user, by its key in hexadecimal."""


def spend_training(state_dir: Path, policy: Policy, setup: Setup, round: int, keys: NDArray[np.uint64]) -> None:
    """Write down that updates of users are about to leave; nothing is written where they are not noised.

    Args:
        state_dir: The site's.
        policy: What it grants.
        setup: Of the run.
        round: In which they train.
        keys: uint64 [users], who.

    Raises:
        PolicyError: The site has a limit, and a user would overstep it, or the run does not noise what leaves.
        StoreError: What was spent cannot be read: nobody trains then.
    """
    limit, releases = policy.training_epsilon, _releases(setup, round)
    if limit is not None and (problem := _problem(setup, releases)):
        raise PolicyError(f"training_epsilon={limit:g}: {problem}")
    if not releases:
        return
    path = state_dir / LEDGER
    with spending(state_dir):
        spent = _read(path)
        for key in keys.tolist():
            spent.setdefault(f"{key:016x}", Counter()).update(releases)
        if limit is not None:
            most = max(_epsilons(spent, [f"{key:016x}" for key in keys.tolist()], policy.training_delta), default=0.0)
            if not most <= limit:
                raise PolicyError(
                    f"training_epsilon={limit:g}: round {round} would make it {most:.4g} (at delta "
                    f"{policy.training_delta:g}) for one of the {len(keys)} users who should train"
                )
        write_bytes(path, _written(spent), private=True, synced=True)


def trained(state_dir: Path, delta: float) -> tuple[int, int, float]:
    """How many users have given away anything, the most releases of one, and the largest epsilon of one at `delta`.

    Raises StoreError if the ledger is damaged.
    """
    spent = _read(state_dir / LEDGER)
    most = max((of_user.total() for of_user in spent.values()), default=0)
    return len(spent), most, max(_epsilons(spent, list(spent), delta), default=0.0)


def _releases(setup: Setup, round: int) -> list[Release]:
    """What a user's update in this round gives away, one user for another; nothing if devices do not noise it."""
    stages = setup.stages
    if not stages.noised_on_devices:
        return []
    found = stages.events(round)
    if not stages.noised_by_shares:
        return found
    return [_replacing(release) for release in found] if setup.aggregation_of_run.masked else []


def _replacing(release: Release) -> Release:
    """The same release between federations in which one user has other data, not none: that changes twice as much."""
    grid = None if release.grid is None else 2 * release.grid
    return dataclasses.replace(release, noise_multiplier=release.noise_multiplier / 2, grid=grid)


def _problem(setup: Setup, releases: Sequence[Release]) -> str | None:
    """Why a site with a limit does not take part, whatever was spent."""
    if not releases:
        return (
            "this run takes updates of users that are not noised before they leave, or whose sum is not masked: only "
            "privacy=local_gaussian, local_laplace, or distributed_gaussian with aggregation=secagg has noise that a "
            "site can count"
        )
    if setup.weight_cap != 1 and not setup.stages.noised_by_shares:
        return f"federation.weight_cap={setup.weight_cap} tells how long a user's history is; expected 1"
    return None


def _epsilons(spent: Spent, keys: Sequence[str], delta: float) -> list[float]:
    """Of these users; many of a site have taken part equally often."""
    known: dict[frozenset[tuple[Release, int]], float] = {}
    found = []
    for key in keys:
        kinds = frozenset(spent[key].items())
        if kinds not in known:
            try:
                known[kinds] = epsilon(spent[key], delta)
            except ArithmeticError:  # so little noise that no number is large enough
                known[kinds] = math.inf
        found.append(known[kinds])
    return found


def _written(spent: Spent) -> bytes:
    kinds = list(dict.fromkeys(release for of_user in spent.values() for release in of_user))
    number = {release: place for place, release in enumerate(kinds)}
    users = {key: {str(number[release]): count for release, count in of_user.items()} for key, of_user in spent.items()}
    return json_line({"kinds": [dataclasses.asdict(kind) for kind in kinds], "users": users}).encode()


def _read(path: Path) -> Spent:
    try:
        values = parsed_object(path.read_text(encoding="utf-8"))
        kinds = [_kind(value) for value in values["kinds"]]
        return {_key(key): _counts(kinds, of_user) for key, of_user in values["users"].items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, ArithmeticError, AttributeError, TypeError, KeyError, IndexError) as error:
        raise StoreError(
            f"{path}, in which is what this site's users have given away by training, is damaged "
            f"({type(error).__name__}): put it back from a copy; nobody here trains with noise until then"
        ) from error


def _kind(values: Mapping[str, Any]) -> Release:
    grid = None if values["grid"] is None else float(values["grid"])
    made = Release(str(values["mechanism"]), float(values["noise_multiplier"]), bool(values["in_secret"]), grid)
    if not 0 < made.noise_multiplier < math.inf or (grid is not None and not 0 < grid < math.inf):
        raise ValueError("a release without noise")
    with suppress(ArithmeticError):  # too little noise for any number
        epsilon({made: 1}, 0.5)  # of a mechanism that is known
    return made


def _key(key: str) -> str:
    if not _KEY.fullmatch(key):
        raise ValueError("no key of a user")
    return key


def _counts(kinds: Sequence[Release], of_user: Mapping[str, Any]) -> Counter[Release]:
    if any(type(count) is not int or count < 1 for count in of_user.values()):
        raise ValueError("no count of releases")
    return Counter({kinds[int(place)]: count for place, count in of_user.items()})
