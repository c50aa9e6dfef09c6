"""Nothing that was started stays: not a grandchild in a session of its own, not after a kill -9."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import commands
from commands.processes import Offspring, running

ENV = dict(os.environ)
ROOT = str(Path(commands.__file__).resolve().parent.parent)

# A child that starts a grandchild in a session of its own, which ignores SIGTERM, as some of Ray's processes do.
_STUBBORN = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"
_PARENT = f"""
import subprocess, sys, time
subprocess.Popen([sys.executable, "-c", {_STUBBORN!r}], start_new_session=True)
time.sleep(600)
"""


def alive(pids: set[int]) -> set[int]:
    return pids & {process.pid for process in running()}


def eventually(condition: Callable[[], bool], seconds: float = 20.0) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def test_a_stubborn_grandchild_in_its_own_session_is_found_and_ended(tmp_path: Path) -> None:
    offspring = Offspring(tmp_path)
    offspring.start([sys.executable, "-c", _PARENT], ENV, tmp_path, stdout=subprocess.PIPE)
    assert eventually(lambda: len(offspring.look()) == 2)
    pids = offspring.look()
    assert offspring.end(patience=0.5) == set()
    assert not alive(pids)


def test_a_grandchild_that_lost_its_parent_is_still_known(tmp_path: Path) -> None:
    offspring = Offspring(tmp_path)
    parent = offspring.start([sys.executable, "-c", _PARENT], ENV, tmp_path)
    assert eventually(lambda: len(offspring.look()) == 2)
    (grandchild,) = offspring.look() - {parent.pid}
    parent.kill()
    parent.wait()
    assert offspring.look() == {grandchild}
    assert offspring.end(patience=0.5) == set()
    assert not alive({grandchild})


def test_our_own_group_is_never_touched(tmp_path: Path) -> None:
    neighbour = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    try:
        offspring = Offspring(tmp_path)
        offspring.start([sys.executable, "-c", "pass"], ENV, tmp_path)
        assert offspring.end() == set()
        assert neighbour.poll() is None
    finally:
        neighbour.kill()
        neighbour.wait()


def test_a_command_killed_outright_leaves_nothing(tmp_path: Path) -> None:
    base = tmp_path / "base"
    base.mkdir()
    script = f"""
import os, sys, time
from pathlib import Path
from commands.processes import Offspring
offspring = Offspring(Path(sys.argv[1]))
offspring.start([sys.executable, "-c", {_PARENT!r}], dict(os.environ), Path(sys.argv[1]))
while len(offspring.look()) < 2:
    time.sleep(0.05)
print(*offspring.look(), flush=True)
time.sleep(600)
"""
    command = subprocess.Popen(
        [sys.executable, "-c", script, str(base)], stdout=subprocess.PIPE, text=True, env={**ENV, "PYTHONPATH": ROOT}
    )
    try:
        assert command.stdout is not None
        pids = {int(word) for word in command.stdout.readline().split()}
        assert len(alive(pids)) == 2
    finally:
        command.send_signal(signal.SIGKILL)
        command.communicate()
    assert eventually(lambda: not alive(pids) and not base.exists())
