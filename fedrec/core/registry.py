"""The families of plug-ins: what can be chosen by name in the configuration, and the class behind each name.

A member is one file plus one yaml of the same name: `conf/embedding/lora.yaml` beside `peft_embeddings/lora.py`.
There is no list to edit: the yaml files are the names, and only the file that is asked for is imported, so that a
client loads no encoder to train an embedding. Another installed package adds a member with an entry point in the group
`fedrec.<family>` whose value is the class.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib
from collections.abc import Callable, Mapping
from functools import lru_cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from fedrec.core.errors import ConfigError, FedrecError

CONF = Path(__file__).resolve().parents[2] / "conf"
"""The Hydra tree that travels with the packages."""

C = TypeVar("C", bound=type)


@dataclasses.dataclass(frozen=True)
class MemberConfig:
    """Base of every member's configuration: a frozen dataclass, checked strictly, that refuses unknown keys."""

    __pydantic_config__: ClassVar[Mapping[str, Any]] = {"extra": "forbid", "strict": True}

    name: str

    def told(self) -> dict[str, Any]:
        """The configuration as a client is told it. What is switched off need not be part of it."""
        return dataclasses.asdict(self)


def nearest(word: str, legal: list[str]) -> str:
    """A hint for a misspelt word: the nearest legal ones, or all of them if none is near."""
    close = difflib.get_close_matches(word, legal, n=3, cutoff=0.5)
    if close:
        return f"did you mean {' or '.join(close)}?"
    return f"legal are {', '.join(sorted(legal))}"


class Family:
    """One family: its name (the group in `conf/`) and the package in which its members live."""

    def __init__(self, name: str, package: str) -> None:
        self.name = name
        self.package = package
        self._classes: dict[str, type] = {}

    def names(self) -> list[str]:
        """All members: the yaml files of the group, and what other installed packages bring."""
        own = {path.stem for path in (CONF / self.name).glob("*.yaml")}
        brought = self._brought()
        if double := own & brought.keys():
            raise FedrecError(f"another package brings {self.name} {sorted(double)}, which fedrec has: rename its")
        return sorted(own | brought.keys())

    def register(self, name: str) -> Callable[[C], C]:
        """Class decorator: this class is the member `name`. A second class of that name is refused."""

        def add(cls: C) -> C:
            before = self._classes.get(name)
            if before is not None and before.__qualname__ != cls.__qualname__:
                both = f"{before.__qualname__} and {cls.__qualname__}"
                raise FedrecError(f"{self.name} {name!r} is registered twice: {both}")
            if not dataclasses.is_dataclass(getattr(cls, "config_class", None)):
                raise FedrecError(f"{self.name} {name!r}: {cls.__qualname__} needs `config_class`, a frozen dataclass")
            self._classes[name] = cls
            return cls

        return add

    def get(self, name: str) -> type[Any]:
        """The class of the member `name`; a name that is not legal is a ConfigError with the nearest ones."""
        if name not in self._classes:
            if name not in self.names():
                raise ConfigError([f"{self.name}={name}: there is no such {self.name}; {nearest(name, self.names())}"])
            if name in (brought := self._brought()):
                self._classes[name] = brought[name].load()
            else:
                importlib.import_module(f"{self.package}.{name}")
        if name not in self._classes:
            raise FedrecError(f"{self.package}/{name}.py does not register {self.name} {name!r}")
        return self._classes[name]

    def _brought(self) -> dict[str, EntryPoint]:
        return {point.name: point for point in _entry_points(f"fedrec.{self.name}")}


@lru_cache
def _entry_points(group: str) -> tuple[EntryPoint, ...]:
    return tuple(entry_points(group=group))


strategies = Family("strategy", "strategies")
embeddings = Family("embedding", "peft_embeddings")
backbones = Family("backbone", "fedrec.backbones")
optims = Family("optim", "fedrec.optim")
datasets = Family("dataset", "fedrec.datasets")
encoders = Family("encoder", "peft_embeddings.encoders")
reductions = Family("reduction", "peft_embeddings.reductions")
codecs = Family("codec", "fedrec.codecs")
privacies = Family("privacy", "fedrec.privacy")
cohorts = Family("cohort", "federation.cohorts")
groupings = Family("grouping", "fedrec.groupings")
networks = Family("network", "fedrec.networks")
uplinks = Family("uplink", "fedrec.uplinks")
downlinks = Family("downlink", "fedrec.downlinks")
aggregations = Family("aggregation", "fedrec.aggregations")
trackers = Family("tracker", "server_app.trackers")

FAMILIES: Mapping[str, Family] = {
    family.name: family
    for family in (
        strategies,
        embeddings,
        backbones,
        optims,
        datasets,
        encoders,
        reductions,
        codecs,
        privacies,
        cohorts,
        groupings,
        networks,
        uplinks,
        downlinks,
        aggregations,
        trackers,
    )
}
