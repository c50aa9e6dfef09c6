"""Where a command finds what it recommends from. Light: that nothing is there is told before torch is imported."""

from __future__ import annotations

from difflib import get_close_matches
from pathlib import Path

from fedrec.core.disk import reading
from fedrec.core.errors import FedrecError

_CLOSE = 3


class RecommendError(FedrecError):
    """There is nothing to recommend from, or the user or items are not known."""


def require_one(run: str | None, state_dir: str | None) -> None:
    """Raise RecommendError unless one of the two is given, and is a folder; StoreError if that cannot be told."""
    if (run is None) == (state_dir is None):
        raise RecommendError(
            "give either the folder of a simulated run (fedrec recommend runs/<id> ...) or the state-dir of this "
            "machine's SuperNode (fedrec recommend --state-dir DIR ...)"
        )
    if run is not None:
        require_run_folder(Path(run))
    if state_dir is not None:
        require_state_dir(Path(state_dir))


def require_one_way(
    user: str | None, history: str | None, everybody: bool, out: str | None, group: str | None = None
) -> None:
    """Raise RecommendError unless a command says in one way whom to recommend to, and for everybody into which file."""
    if everybody != (out is not None):
        raise RecommendError("--all and --out FILE go together: give both, or neither")
    if everybody and group is not None:
        raise RecommendError("--all takes the model of each user's own group: leave out --group")
    if [user is not None, history is not None, everybody].count(True) != 1:
        raise RecommendError(
            "give either a user of the data (--user ID), somebody's items (--history ITEM,ITEM,...), or --all with "
            "--out FILE"
        )


def require_run_folder(folder: Path) -> None:
    """Raise RecommendError, with those that are called nearly like it, unless there is such a folder."""
    with reading(str(folder), "give another run"):
        there = folder.is_dir()
    if not there:
        near = get_close_matches(folder.name, _names(folder.parent), n=_CLOSE)
        paths = " or ".join(str(folder.parent / name) for name in near)
        hint = f"did you mean {paths}?" if near else "give the path of a run folder, runs/<id>"
        raise RecommendError(f"{folder}: there is no such run; {hint}")


def require_state_dir(folder: Path) -> None:
    """Raise RecommendError unless there is such a folder."""
    with reading(f"--state-dir {folder}", "give the state-dir of the SuperNode"):
        there = folder.is_dir()
    if not there:
        raise RecommendError(f"--state-dir {folder}: there is no such folder; give the state-dir of the SuperNode")


def _names(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()] if folder.is_dir() else []
