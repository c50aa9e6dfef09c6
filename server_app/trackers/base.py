"""The contract of a tracker: a program, beside fedrec's own files, in which runs are followed and compared."""

from __future__ import annotations

import importlib.util
import logging
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from fedrec.config.describe import flat, of_this_machine, to_dict
from fedrec.config.schema import RunConfig
from fedrec.core.disk import reason
from fedrec.core.errors import ConfigError
from fedrec.core.registry import MemberConfig, trackers
from fedrec.evaluation.curves import read_records

log = logging.getLogger("fedrec")

_PARTS = ("test", "bytes_per_user", "groups", "simulated_seconds", "seconds")
"""What of a summary is told at the end."""


@dataclass(frozen=True)
class Tracked:
    """The run that is followed.

    Attributes:
        name: Of its folder.
        folder: Its folder; what a tracker has to remember, or writes by itself, goes there.
        settings: The configuration by dotted keys, without what names a place on this machine.
        after: The round after which it goes on; 0 from the beginning.
    """

    name: str
    folder: Path
    settings: Mapping[str, Any]
    after: int = 0

    @staticmethod
    def of(config: RunConfig, folder: Path, after: int) -> Tracked:
        """The run of a configuration, in its folder."""
        places = of_this_machine(config)
        settings = {key: value for key, value in flat(to_dict(config)).items() if key not in places}
        return Tracked(str(config.run_id), folder, settings, after)


class Tracker(ABC):
    """A member of the family `tracker`: told of a run's figures, and of nothing else, once it has begun.

    What it raises never ends a run: the run goes on without it, which is said once.
    """

    config_class: ClassVar[type[MemberConfig]]

    package: ClassVar[str] = ""
    """What has to be installed for it, beside fedrec."""

    @abstractmethod
    def __init__(self, config: Any) -> None:
        """With its own configuration; nothing is begun."""

    @classmethod
    def require_installed(cls, name: str) -> None:
        """Raise ConfigError if what it needs is not here; a run that it has followed can be read all the same."""
        if cls.package and importlib.util.find_spec(cls.package) is None:
            told = f"needs the package {cls.package}, which is not installed here: `pip install {cls.package}`"
            raise ConfigError([f"tracker={name}: {told}"])

    @abstractmethod
    def begin(self, run: Tracked) -> bool:
        """A run begins, or goes on; whether the rounds until `run.after` were told before."""

    @abstractmethod
    def tell(self, round: int, figures: Mapping[str, float]) -> None:
        """The figures after a round, by name: `validation/ndcg@10`."""

    @abstractmethod
    def end(self, figures: Mapping[str, float], *, finished: bool) -> None:
        """The run has ended: the figures of its summary, which are none if it has not `finished`."""


class Tracking:
    """Tells a tracker of one run, as long as the tracker bears it."""

    def __init__(self, config: RunConfig, folder: Path, after: int) -> None:
        """Of the run of a configuration, in its folder, which goes on after a round."""
        self._name = config.tracker.name
        member: type[Tracker] = trackers.get(self._name)
        member.require_installed(self._name)
        self._tracker: Tracker | None = member(config.tracker)
        self._last: Mapping[str, Any] | None = None
        with self._borne():
            if not self._tracker.begin(Tracked.of(config, folder, after)):
                for record in read_records(folder)[:after]:
                    self.tell(record)

    @contextmanager
    def _borne(self) -> Iterator[None]:
        """Whatever a tracker raises is said, and ends the tracking alone."""
        try:
            yield
        except Exception as error:  # its library raises whatever its network and its disk raise
            self._tracker = None
            why = f"{type(error).__name__}: {reason(error)}"
            log.warning("tracker=%s: it is told nothing more of this run, which goes on (%s)", self._name, why)

    def tell(self, record: Mapping[str, Any]) -> None:
        """A round has ended: its line of `metrics.jsonl`."""
        if self._tracker is not None:
            with self._borne():
                self._tracker.tell(int(record["round"]), figures(record, without=("round", "rounds")))

    def summarize(self, summary: Mapping[str, Any]) -> None:
        """The run has come to its end: its `summary.json`, of which the tracker is told when it is closed."""
        self._last = summary

    def close(self) -> None:
        """Nothing more comes, whether the run has come to its end or not."""
        if self._tracker is not None:
            with self._borne():
                last = self._last or {}
                told = figures({name: last[name] for name in _PARTS if name in last})
                self._tracker.end(told, finished=self._last is not None)


@contextmanager
def tracked(config: RunConfig, folder: Path, after: int) -> Iterator[Tracking]:
    """Meanwhile the run's tracker, if it has one, is told of it."""
    tracking = Tracking(config, folder, after)
    try:
        yield tracking
    finally:
        tracking.close()


def figures(values: Mapping[str, Any], without: tuple[str, ...] = (), at: str = "") -> dict[str, float]:
    """All numbers of nested values, by names with a slash between their parts; what is no number is passed over."""
    found: dict[str, float] = {}
    for name, value in values.items():
        if name in without:
            continue
        if isinstance(value, Mapping):
            found |= figures(value, at=f"{at}{name}/")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            found[at + name] = float(value)
    return found
