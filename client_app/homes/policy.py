"""A site's own say: what it grants to whatever server, in a file that its owner alone may write.

The file is `policy.toml` in the state-dir, or what the key `policy` of the node configuration names. It is read before
any message is looked at, and nothing in a message can change it. What it does not say has the defaults below, which
hold for honest runs of real size. `docs/deployment.md` has a table of the keys.
"""

from __future__ import annotations

import json
import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import Annotated, Any, ClassVar

from annotated_types import Ge, Gt, Le, Lt

from client_app.homes.site import Site
from fedrec.core.bounds import MOST_CUT_OFFS, MOST_LAYERS, MOST_NEGATIVES, MOST_STEPS
from fedrec.core.errors import ConfigError
from fedrec.secure.graph import LEAST

DISCLOSING = ("read", "judge")
"""Exchanges that tell the server what users have read: only a site that names them answers them."""
EXCHANGES = ("enroll", "count_items", "train", "evaluate", "announce", "share", "unmask", *DISCLOSING)
_GRANTED = tuple(name for name in EXCHANGES if name not in DISCLOSING)
_WRITABLE = 0o022
_DIGEST = re.compile("[0-9a-f]{64}")


@dataclass(frozen=True)
class Policy:
    """What a site grants.

    Attributes:
        min_users_in_update: Least users in an update. A phone has one; an update of one tells what that user has.
        min_users_in_ranking: Least users in the sums of a ranking.
        max_items: Largest catalogue.
        max_negatives: Most negatives of a user or positive, and of a sampled ranking.
        max_steps: Most local steps in a round, and most of solving.
        max_layers: Most layers of a backbone.
        max_cut_offs: Most cut-offs of a ranking.
        max_memory_mb: Memory that the work of a message may take, in MiB.
        max_seconds: Time that it may take.
        max_epsilon: Largest epsilon of one report.
        epsilon_budget: Largest sum of the epsilons of all that differ, over all runs (`spent.json` in the state-dir).
        training_epsilon: Largest epsilon of what a user gives away by training, over all runs, at `training_delta`
            (`spent_training.json` in the state-dir); then the site trains in no run whose noise it cannot count. None:
            no limit.
        training_delta: See `training_epsilon`.
        runs: Keys of the runs in which the site takes part; none: in any.
        exchanges: What it answers; by default all but `DISCLOSING`.
        apps: SHA-256 of the app bundles whose code may run here, in lower-case hexadecimal; none: any. Where the
            SuperNode was started by `fedrec supernode`, it is asked before a bundle is unpacked (`commands.launcher`).
        only_masked: Whether an update leaves only as a part of a secure sum, of which the server learns but the whole.
            With `pins` it is so whatever this says.
        min_cohort: Least nodes in such a sum, and least of them left in it when its masks are taken off, as the server
            tells it.
        pins: The identities of the other sites that may be in it, as `identity.pub` of their state-dirs has them; none:
            whoever the server says. With pins the site is in no round a second time whose training it has answered;
            `docs/privacy.md` says what else holds then of a server that does not follow the protocol.
        corrupt: With pins, the least share of nodes which a run must take to be corrupt.
        resume_ended: Whether a run whose test was answered may be resumed: what users trained after the round from
            which it goes on is then deleted.
    """

    __pydantic_config__: ClassVar[Mapping[str, Any]] = {"extra": "forbid", "strict": True, "allow_inf_nan": False}

    min_users_in_update: Annotated[int, Ge(1), Le(2**24)] = 1
    min_users_in_ranking: Annotated[int, Ge(1), Le(2**24)] = 1
    max_items: Annotated[int, Ge(1), Le(2**31 - 1)] = 2**24
    max_negatives: Annotated[int, Ge(1), Le(MOST_NEGATIVES)] = 2_000
    max_steps: Annotated[int, Ge(1), Le(MOST_STEPS)] = 500
    max_layers: Annotated[int, Ge(1), Le(MOST_LAYERS)] = 8
    max_cut_offs: Annotated[int, Ge(1), Le(MOST_CUT_OFFS)] = 20
    max_memory_mb: Annotated[int, Ge(64), Le(2**30)] = 4096
    max_seconds: Annotated[float, Gt(0), Le(1e6)] = 1800.0
    max_epsilon: Annotated[float, Gt(0), Le(1e6)] = 10.0
    epsilon_budget: Annotated[float, Gt(0), Le(1e9)] = 200.0
    training_epsilon: Annotated[float, Gt(0), Le(1e6)] | None = None
    training_delta: Annotated[float, Gt(0), Lt(1)] = 1e-5
    runs: tuple[str, ...] = ()
    exchanges: tuple[str, ...] = _GRANTED
    apps: tuple[str, ...] = ()
    only_masked: bool = False
    min_cohort: Annotated[int, Ge(LEAST), Le(2**24)] = LEAST
    pins: tuple[str, ...] = ()
    corrupt: Annotated[float, Ge(0), Lt(0.5)] = 0.1
    resume_ended: bool = False


def policy_path(site: Site) -> Path:
    """Where a site's policy is looked for."""
    return site.policy or site.state_dir / "policy.toml"


def policy_of(site: Site) -> Policy:
    """The policy of a site, read anew. Raises ConfigError if its file is not what it should be, or not the owner's."""
    path = policy_path(site)
    try:
        with path.open("rb") as file:
            stat = os.fstat(file.fileno())
            values = tomllib.load(file)
    except (FileNotFoundError, NotADirectoryError):
        if site.policy is None:
            return Policy()
        raise ConfigError([f"policy='{path}': there is no such file on this machine"]) from None
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError([f"the policy {path} cannot be read ({error}): expected TOML, as max_steps = 100"]) from error
    if stat.st_mode & _WRITABLE or stat.st_uid not in (0, os.geteuid()):
        raise ConfigError(
            [
                f"the policy {path} may be written by others (mode {stat.st_mode & 0o777:o}, user {stat.st_uid}): let "
                f"it belong to root or to the user of this process, and chmod 644 {path}"
            ]
        )
    return _checked(str(path), values)


def _checked(path: str, values: dict[str, Any]) -> Policy:
    from pydantic import TypeAdapter, ValidationError

    try:
        policy = TypeAdapter(Policy).validate_json(json.dumps(values, default=str))
    except ValidationError as error:
        problems = [f"{'.'.join(map(str, part['loc']))}: {part['msg']}" for part in error.errors()]
        raise ConfigError([f"the policy {path}: {problem}" for problem in problems]) from error
    legal = {*EXCHANGES, *(entry.name.removeprefix("query.") for entry in entry_points(group="fedrec.exchange"))}
    if unknown := [name for name in policy.exchanges if name not in legal]:
        raise ConfigError([f"the policy {path}: exchanges are among {', '.join(sorted(legal))}, not {unknown[:3]}"])
    if wrong := [text for text in policy.apps if not _DIGEST.fullmatch(text)]:
        raise ConfigError(
            [f"the policy {path}: apps are SHA-256 digests as `fedrec bundle` prints them, not {wrong[0][:80]!r}"]
        )
    if wrong := [text for text in policy.pins if not _DIGEST.fullmatch(text)]:
        raise ConfigError(
            [f"the policy {path}: pins are identities as other sites' identity.pub has them, not {wrong[0][:80]!r}"]
        )
    return policy
