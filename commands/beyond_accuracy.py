"""`fedrec evaluate`: what the lists of a finished run's users are like, beside how often they are right.

Worked out where all histories are: on the machine of a simulation from the run's folder, on a site of its own users for
the site's own eyes. Nothing of it crosses a network, in no run: of a lone user it would tell what it is recommended.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console

from client_app.answers.recommending import recommend
from commands.kept_run import of_run
from commands.list_figures import KEY, lists_table
from commands.places import RecommendError
from commands.recommend import source_of
from commands.recommendable import Recommendable
from fedrec.config.schema import RunConfig
from fedrec.core.disk import reading, writing
from fedrec.core.errors import FedrecError
from fedrec.core.strict_json import finite, json_page
from fedrec.core.whole_files import write_text
from fedrec.evaluation.beyond_accuracy import ListMetrics
from server_app.run_folder import BASE_TABLE, SUMMARY

log = logging.getLogger("fedrec")

_USERS_AT_ONCE = 4096

MOST_SCORES = 10**9
"""Users times items whose lists are looked at when a run ends: half a minute or so of one core."""


def evaluate(run: str | None, state_dir: str | None, ks: Sequence[int] = ()) -> dict[str, Any]:
    """What `fedrec evaluate` tells, as plain data for JSON.

    Args:
        run: Folder of a simulated run; or else
        state_dir: that of a site's SuperNode: of its own users alone.
        ks: Lengths of lists; none: those at which the run is ranked.

    Raises RecommendError, or a StoreError for files that cannot be used.
    """
    torch.set_num_threads(1)
    source = source_of(run, state_dir)
    return {
        "from": source.name,
        "round": source.round,
        **list_metrics(source, ks, base_table(None if run is None else Path(run))),
    }


def evaluated(config: RunConfig, summary: dict[str, Any], stage: Callable[[str], None]) -> dict[str, Any]:
    """The summary of a run, with these metrics too if the configuration asks and the run has ended; so in its folder.

    The run has its result whatever happens here: what cannot be worked out is said in the log, and left out. `stage` is
    told what is done. Where all users' lists would be more than `MOST_SCORES`, those of a part of them are looked at.
    """
    if not config.evaluation.beyond_accuracy or config.runtime != "simulation" or "test" not in summary:
        return summary
    folder = Path(summary["run"])
    stage("what the lists are like")
    try:
        torch.set_num_threads(1)
        found = list_metrics(of_run(folder), config.evaluation.ks, base_table(folder), MOST_SCORES)
        more: dict[str, Any] = finite({**summary, KEY: found})
        with writing(f"the run folder {folder}", f"fedrec evaluate {folder} shows the same"):
            write_text(folder / SUMMARY, json_page(more))
    except (FedrecError, MemoryError, OSError, RuntimeError) as error:
        log.warning("nothing is said of coverage, popularity and variety: %s", error)
        return summary
    return more


def list_metrics(
    source: Recommendable,
    ks: Sequence[int],
    vectors: NDArray[np.float32] | None,
    most_scores: int | None = None,
) -> dict[str, float | int]:
    """The metrics of the lists that the ranked users get on the history that they are tested with, and their number.

    Args:
        source: The model and the users. Each user is served by the model of its group.
        ks: Lengths of lists; none: those at which the run is ranked.
        vectors: As in `ListMetrics`.
        most_scores: Of more users times items a part of the users is drawn, always the same (None: there is no limit).

    Raises RecommendError if nobody is ranked here, StoreError if the model has diverged.
    """
    node = source.node
    ks = tuple(ks) or node.setup.ks
    everyone, _ = node.users.held_out(np.arange(len(node.users)), "test")
    counts = np.bincount(everyone.items, minlength=node.setup.n_items)
    found = ListMetrics(ks, node.sampler.eligible, counts, max(1, len(everyone)), vectors)
    ranked = node.users.evaluated("test")
    ranked = ranked[np.isin(node.groups[ranked], list(source.models))]
    if most_scores is not None and len(ranked) > (most := max(1, most_scores // max(1, len(node.sampler.eligible)))):
        ranked = np.sort(np.random.default_rng(0).choice(ranked, most, replace=False))
    served = 0
    for group in np.unique(node.groups[ranked]).tolist():
        slots = ranked[node.groups[ranked] == group]
        for start in range(0, len(slots), _USERS_AT_ONCE):
            users, _ = node.users.held_out(slots[start : start + _USERS_AT_ONCE], "test")
            lists = recommend(node, source.model_of(group), users, max(ks), of="test")
            found.add(lists.rows.numpy())
            served += int(lists.sane.sum())
    if not served:
        raise RecommendError(f"{source.name}: none of its {len(node.users):,} users is ranked, so there are no lists")
    return {"users": served, **found.result()}


def show_evaluation(found: Mapping[str, Any], console: Console) -> None:
    """Print what `evaluate` has found as a table."""
    console.print(lists_table(found))
    console.print(f"lists of {found['users']:,} users, from the model of round {found['round']}", highlight=False)


def base_table(folder: Path | None) -> NDArray[np.float32] | None:
    """The item vectors that the texts of a run's data gave, [items, dim]; None where there are none."""
    path = None if folder is None else folder / BASE_TABLE
    if path is None or not path.is_file():
        return None
    with reading(str(path), "restore the run folder from a copy"):
        return np.asarray(np.load(path, allow_pickle=False, mmap_mode="r"), dtype=np.float32)
