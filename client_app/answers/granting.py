"""Whether a site's policy grants what a server asks for, before any of it is done; and limits while it is done."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from client_app.homes.policy import DISCLOSING, Policy
from client_app.homes.users import Cohort
from fedrec.core.errors import PolicyError
from fedrec.core.tensors import Spec

if TYPE_CHECKING:
    from client_app.answers.node import Node

_MIB = 2**20


def require_granted(node: Node, policy: Policy, exchange: str) -> None:
    """Raise PolicyError with all that a run's setup asks for and the site does not grant."""
    setup, problems = node.setup, []
    if exchange not in policy.exchanges:
        problems.append(f"this site answers no {exchange}")
    if policy.runs and setup.run_key not in policy.runs:
        problems.append(f"run {setup.run_key} is not among this site's runs")
    masks = setup.aggregation_of_run.masks
    if (policy.only_masked or policy.pins) and masks is None:
        problems.append("updates leave this site only in secure sums (only_masked, or pins), and the run has none")
    if policy.pins and masks is not None and not (masks.lying and masks.corrupt >= policy.corrupt):
        problems.append(
            "this site pins others' identities against a server that lies: the run has to have "
            f"aggregation.server=lying, and aggregation.corrupt={policy.corrupt:g} or more"
        )
    if policy.training_epsilon is not None and setup.grouping_of_run.labels:
        problems.append(
            f"training_epsilon={policy.training_epsilon:g}: the run groups users by the labels of their items, which "
            "tells of their histories and is not noised"
        )
    if node.backbone.split is not None:
        problems += _of_split(node, policy)
    recipe = node.recipe
    contexts = recipe.contexts.count if recipe.contexts else 1  # a step is taken in each
    asked = {
        "max_items": setup.n_items,
        "max_negatives": max(recipe.negatives, setup.sampled_negatives),
        "max_steps": max(contexts * len(recipe.local_steps()), len(recipe.solve_steps())),
        "max_layers": node.backbone.layers,
        "max_cut_offs": len(setup.ks),
    }
    problems += [
        f"{name.removeprefix('max_')}={number}, {name}={limit}"
        for name, number in asked.items()
        if number > (limit := getattr(policy, name))
    ]
    if problems:
        raise PolicyError(f"this site's policy does not grant it: {'; '.join(problems)}")


def _of_split(node: Node, policy: Policy) -> list[str]:
    """What a site does not grant to a run whose backbone is split, whichever exchange is asked for.

    All stages tell the server what users have read, gradients as well as hidden states, and nothing noises or masks it.
    """
    problems = []
    if lacking := [name for name in DISCLOSING if name not in policy.exchanges]:
        problems.append(f"the run's backbone is split, and this site answers no {' and no '.join(lacking)}")
    if policy.training_epsilon is not None:
        problems.append(f"training_epsilon={policy.training_epsilon:g}: nothing noises what a split backbone sends")
    if policy.only_masked or policy.pins:
        problems.append("nothing masks what a split backbone sends (only_masked, or pins)")
    return problems + node.split_clashes()


def require_memory(node: Node, policy: Policy, cohort: Cohort, *, trains: bool) -> None:
    """Raise PolicyError if the work on a cohort would take more memory than the site grants, by a careful estimate."""
    needed = demand(node, cohort, trains=trains)
    if needed > policy.max_memory_mb * _MIB:
        raise PolicyError(
            f"what is asked for takes about {needed / _MIB:,.0f} MiB, max_memory_mb={policy.max_memory_mb}: users x "
            "negatives x steps x dimensions are too many together"
        )


def require_users(what: str, users: int, least: int) -> None:
    """Raise PolicyError if there are fewer users in something than the site lets leave."""
    if users < least:
        raise PolicyError(f"{what} of {users} users: this site sends none of fewer than {least}")


def demand(node: Node, cohort: Cohort, *, trains: bool) -> int:
    """Bytes that the work on a cohort takes, about: the model, users' own tensors, negatives, and item vectors."""
    setup, recipe, users = node.setup, node.recipe, len(cohort)
    contexts = recipe.contexts if trains else None
    each = 1 if contexts is None else contexts.count
    lengths = cohort.lengths if contexts is None else each * np.minimum(cohort.lengths, contexts.longest)
    pairs, longest = int(lengths.sum()), int(lengths.max(initial=0))
    at_once = min(pairs, setup.pairs_at_once + longest)
    share = at_once / max(1, pairs)  # of the users who train at once, about
    steps: Sequence[Any] = recipe.local_steps() if trains else recipe.solve_steps()
    times = len(steps) if recipe.fresh_negatives else min(1, len(steps))
    rows = max(1.0, share * users) if recipe.shared_negatives else at_once
    drawn = rows * recipe.negatives
    model = max(_bytes(model.trainable) + _bytes(model.frozen) for model in node.models)
    own = each * _bytes(node.backbone.private) + _bytes(node.backbone.shared)
    vectors = 4 * setup.dim * (at_once + drawn) * 4
    sampled = setup.sampled_negatives * max(node.backbone.numbers_per_score, setup.dim) * 8
    scores = 4 * (each - 1) * drawn * 4  # of each of the contexts against the same negatives
    states = 0
    if contexts is not None and contexts.ahead_only:
        held = contexts.passes(node.backbone.own_loss) * node.backbone.numbers_per_history(contexts.longest)
        states = 4 * each * held * max(1, int(share * users))
    elif not trains and node.backbone.reads_history and not node.backbone.causal:
        states = 4 * node.backbone.numbers_per_history(longest)  # of one user after the other
    work = int(6 * model + 3 * users * own + times * drawn * 8 + vectors + scores + sampled + states)
    return node.backbone.resident + work


def _bytes(spec: Spec) -> int:
    return sum(entry.nbytes for entry in spec.values())


@contextmanager
def limited(policy: Policy) -> Iterator[None]:
    """Meanwhile the process gets no more memory and time than the site grants; what asks for more ends by name.

    A site's process is made for one message, in whose main thread it is answered: elsewhere no alarm can be set.
    """
    with _memory(policy), _time(policy):
        try:
            yield
        except MemoryError as error:
            raise PolicyError(f"the work took more memory than max_memory_mb={policy.max_memory_mb}") from error
        except RuntimeError as error:
            if "allocate memory" not in str(error):
                raise
            raise PolicyError(f"the work took more memory than max_memory_mb={policy.max_memory_mb}") from error


@contextmanager
def _memory(policy: Policy) -> Iterator[None]:
    import resource  # POSIX alone has it, and so only there is there a limit

    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    wanted = _held() + policy.max_memory_mb * _MIB
    bounds = [limit for limit in (wanted, soft, hard) if limit != resource.RLIM_INFINITY]
    resource.setrlimit(resource.RLIMIT_DATA, (min(bounds), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


def _held() -> int:
    """Bytes that the process holds of what RLIMIT_DATA limits."""
    for line in Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines():
        if line.startswith("VmData:"):
            return int(line.split()[1]) * 1024
    return 0


@contextmanager
def _time(policy: Policy) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def late(number: int, frame: object) -> None:
        raise PolicyError(f"the work took more time than max_seconds={policy.max_seconds:g}")

    before = signal.signal(signal.SIGALRM, late)
    left, every = signal.setitimer(signal.ITIMER_REAL, policy.max_seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, left, every)
        signal.signal(signal.SIGALRM, before)
