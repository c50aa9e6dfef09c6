"""What older runs have left on a site's disk, and the site needs no more when it joins another."""

from __future__ import annotations

import logging
import time
from pathlib import Path

from client_app.stores.frozen import FrozenStore
from client_app.stores.last_model import RUNS_KEPT, frozen_of_models, kept_models, run_of
from client_app.stores.losses import Losses
from client_app.stores.stages import forget_other_runs
from client_app.stores.store import PrivateStore
from fedrec.core.errors import StoreError

log = logging.getLogger("fedrec")

_UNUSED_DAYS = 30


def forget_old_runs(state_dir: Path, joined: str, losses: Losses) -> None:
    """Delete private tensors of all but the newest runs, and what is frozen and was not used for a long time.

    And, of all other runs, the secrets of a secure sum that has not come to its end.

    The kept models stay usable: with the private tensors of their runs, and with all that is frozen under them.

    Args:
        state_dir: Of the site.
        joined: Key of the run that it is about to take part in.
        losses: Where it is counted if the store is found damaged meanwhile.
    """
    forget_other_runs(state_dir, joined)  # first: whatever else fails, no secret may stay
    try:
        # Before the tensors, for it makes room: on a full disk SQLite could not delete anything.
        frozen = FrozenStore(state_dir).drop_unused(
            frozen_of_models(state_dir), time.time() - _UNUSED_DAYS * 24 * 60 * 60
        )
        runs = 0
        if (state_dir / "users.sqlite").exists():
            # No tensor is read or written here, so the specification of none is needed.
            runs = PrivateStore(state_dir, joined, {}, losses=losses).forget_others(
                {run_of(path) for path in kept_models(state_dir)}, RUNS_KEPT
            )
    except (OSError, StoreError) as error:
        log.warning("what older runs have left in %s could not be deleted: %s", state_dir, error)
        return
    if runs or frozen:
        log.info("deleted the private tensors of %d older runs and %d files that were not used", runs, frozen)
