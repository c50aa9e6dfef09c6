"""A clock for the parts of a round: wraps public functions of the running code; a second counts for the innermost one.

It imports nothing of the benchmarks, so that a copy of this file can travel inside a Flower app and be installed in the
processes of the simulation (`install`); each of them then writes what it has counted to a file of its own.
"""

from __future__ import annotations

import importlib
import json
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any

Target = tuple[str, str, str]
"""Part of a round, module, and dotted name within it."""

ENGINE: Sequence[Target] = (
    ("draw", "fedrec.data.negatives", "NegativeSampler.unknown"),
    ("draw", "fedrec.data.negatives", "UnknownItems.draw"),
    ("arrange", "client_app.training.segments", "Segments.of"),
    ("arrange", "client_app.training.segments", "Segments.fill"),
    ("copy", "client_app.training.copies", "RowCopies.__init__"),
    ("copy", "client_app.training.copies", "RowCopies.read"),
    ("forward", "peft_embeddings.model", "Model.embed"),
    ("forward", "peft_embeddings.model", "Model.fixed_rows"),
    ("forward", "fedrec.backbones.fedmf", "FedMF.score"),
    ("forward", "fedrec.optim.paper", "PaperRecipe.loss"),
    ("backward", "torch.autograd", "grad"),
    ("optimiser", "client_app.training.copies", "RowCopies.step"),
    ("optimiser", "fedrec.optim.local", "LocalState.step"),
    ("fold", "fedrec.stages.chain", "Stages.add"),
)
"""Parts of the engine's work on one cohort. A name that the code no longer has is reported as not found."""

ROUND: Sequence[Target] = (
    ("sample", "federation.cohorts.fixed", "FixedCohort.choose"),
    ("sample", "federation.directory", "Directory.shares"),
    ("encode", "fedrec.wire.packet", "PacketFormat.encode"),
    ("decode", "fedrec.wire.packet", "PacketFormat.decode"),
    ("send", "exchanges.records", "pack"),
    ("send", "exchanges.records", "unpack"),
    ("read", "client_app.homes.users", "LocalUsers.training"),
    ("train", "client_app.training.cohort", "CohortEngine.train"),
    ("store", "client_app.stores.store", "PrivateStore.load"),
    ("store", "client_app.stores.store", "PrivateStore.save"),
    ("aggregate", "federation.aggregation", "UpdateFold.add"),
    ("aggregate", "fedrec.stages.sums", "Sum.mean"),
    ("aggregate", "fedrec.optim.paper", "PaperRecipe.server_update"),
    ("aggregate", "fedrec.optim.fast", "FastRecipe.server_update"),
    ("evaluate", "client_app.answers.node", "Node.evaluate"),
    ("write", "server_app.watching", "Recorder.on_round"),
    ("write", "server_app.watching", "Recorder.on_checkpoint"),
)
"""Parts of a round on both sides; what is left of its wall time is waiting, for the runtime or for the other side."""


class Clock:
    """Seconds and calls by part; a part's seconds do not contain those of parts that it called."""

    def __init__(self) -> None:
        self.seconds: Counter[str] = Counter()
        self.calls: Counter[str] = Counter()
        self.not_found: list[str] = []
        self._open: list[list[Any]] = []
        self._undo: list[Callable[[], None]] = []

    def wrap(self, targets: Sequence[Target]) -> None:
        """Time the targets from now on, until `unwrap`."""
        for part, module, name in targets:
            try:
                owner: Any = importlib.import_module(module)
                *path, last = name.split(".")
                for step in path:
                    owner = getattr(owner, step)
                original = owner.__dict__[last]
            except (ImportError, AttributeError, KeyError):
                self.not_found.append(f"{part}: {module}.{name}")
                continue
            self._replace(owner, last, original, part)

    def _replace(self, owner: Any, name: str, original: Any, part: str) -> None:
        still = original.__func__ if isinstance(original, staticmethod) else original

        @wraps(still)
        def measured(*args: Any, **kwargs: Any) -> Any:
            self._enter(part)
            try:
                return still(*args, **kwargs)
            finally:
                self._leave()

        places = [(owner, name, original)]
        if not isinstance(owner, type):  # `from module import function` has made copies of the name
            import sys

            places += [
                (module, key, value)
                for module in list(sys.modules.values())
                for key, value in list(getattr(module, "__dict__", {}).items())
                if value is original and module is not owner
            ]
        for where, key, before in places:
            setattr(where, key, staticmethod(measured) if isinstance(original, staticmethod) else measured)
            self._undo.append(lambda where=where, key=key, before=before: setattr(where, key, before))

    def unwrap(self) -> None:
        """Leave the code as it was."""
        for undo in reversed(self._undo):
            undo()
        self._undo.clear()

    def _enter(self, part: str) -> None:
        now = time.perf_counter()
        if self._open:
            self.seconds[self._open[-1][0]] += now - self._open[-1][1]
        self._open.append([part, now])
        self.calls[part] += 1

    def _leave(self) -> None:
        now = time.perf_counter()
        part, since = self._open.pop()
        self.seconds[part] += now - since
        if self._open:
            self._open[-1][1] = now


@contextmanager
def clocked(targets: Sequence[Target]) -> Iterator[Clock]:
    """A clock over the targets while in `with`."""
    clock = Clock()
    clock.wrap(targets)
    try:
        yield clock
    finally:
        clock.unwrap()


def install(folder: str, role: str, trigger: Target) -> None:
    """Time a round's parts in this process for good; write the sums to `folder` each time `trigger` was called."""
    clock = Clock()
    clock.wrap(ROUND)
    path = Path(folder) / f"{role}-{os.getpid()}.json"
    _, module, name = trigger
    owner: Any = importlib.import_module(module)
    *steps, last = name.split(".")
    for step in steps:
        owner = getattr(owner, step)
    inner = getattr(owner, last)

    @wraps(inner)
    def then_write(*args: Any, **kwargs: Any) -> Any:
        try:
            return inner(*args, **kwargs)
        finally:
            path.write_text(json.dumps({"role": role, "seconds": clock.seconds, "calls": clock.calls}))

    setattr(owner, last, then_write)
