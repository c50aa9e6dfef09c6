"""The processes that a command started, and those that they started: found, and ended, all of them.

Flower's SuperLink starts its executor in a session of its own, and Ray starts a dozen processes more, some of which
change their name and environment. What they keep is their process group, so groups are what is remembered here.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

_PROC = Path("/proc")


class Process(NamedTuple):
    """One running process: its id, its parent's, and its process group's."""

    pid: int
    parent: int
    group: int


def running() -> list[Process]:
    """All processes of this machine that have not ended (the dead that nobody waited for are not running)."""
    if (_PROC / "self" / "stat").exists():
        return list(_from_proc())
    return list(_from_ps())


def _from_proc() -> Iterable[Process]:
    for folder in _PROC.iterdir():
        if folder.name.isdigit():
            with suppress(OSError, ValueError, IndexError):
                # The name stands in brackets and may hold anything, also brackets and spaces.
                fields = (folder / "stat").read_text(errors="replace").rpartition(")")[2].split()
                if fields[0] not in "ZX":
                    yield Process(int(folder.name), int(fields[1]), int(fields[2]))


def _from_ps() -> Iterable[Process]:
    for line in _ps("pid=,ppid=,pgid=,stat="):
        pid, parent, group, state = line.split()[:4]
        if not state.startswith("Z"):
            yield Process(int(pid), int(parent), int(group))


def _ps(columns: str) -> list[str]:
    command = ["ps", "-axo", columns]
    return subprocess.run(
        command, capture_output=True, text=True, check=True, stdin=subprocess.DEVNULL
    ).stdout.splitlines()


def command_lines() -> dict[int, list[str]]:
    """The words of the command line of every process of this machine that may be seen, by its id."""
    if (_PROC / "self" / "cmdline").exists():
        found = {}
        for folder in _PROC.iterdir():
            if folder.name.isdigit():
                with suppress(OSError):
                    words = (folder / "cmdline").read_bytes().decode(errors="replace").split("\0")
                    found[int(folder.name)] = [word for word in words if word]
        return {pid: words for pid, words in found.items() if words}
    listing = _ps("pid=,command=")
    return {int(line.split()[0]): line.split()[1:] for line in listing if len(line.split()) > 1}


class Offspring:
    """The process groups of what was started; call `look` now and then, so that none escapes by losing its parent."""

    def __init__(self, base: Path) -> None:
        """`base`: the private folder that goes with the processes, should we be killed before we end them."""
        self._groups: set[int] = set()
        self._started: list[subprocess.Popen[str]] = []
        self._guard = subprocess.Popen(
            [sys.executable, "-I", str(Path(__file__).with_name("guard.py")), str(base)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            text=True,
        )

    def start(self, command: list[str], env: dict[str, str], cwd: Path, **streams: int) -> subprocess.Popen[str]:
        """Start a command in a session of its own, so that a Ctrl-C reaches us first and we end it in order.

        Args:
            command: Program and arguments.
            env: Its whole environment.
            cwd: Its working directory.
            streams: `stdout` and `stderr` as `subprocess.Popen` takes them.
        """
        process = subprocess.Popen(
            command,
            env=env,
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            text=True,
            encoding="utf-8",
            errors="replace",
            stdout=streams.get("stdout"),
            stderr=streams.get("stderr"),
        )
        self._started.append(process)
        self._remember({process.pid})  # the leader of a new session has its own id as its group
        return process

    def look(self) -> set[int]:
        """The ids of all that is still running, and remember their groups."""
        everything = running()
        found = {process.pid for process in everything if process.group in self._groups}
        while more := {process.pid for process in everything if process.parent in found and process.pid not in found}:
            found |= more
        self._remember({process.group for process in everything if process.pid in found})
        # A group all of whose members have ended is forgotten: its number may be another's tomorrow.
        self._groups &= {process.group for process in everything}
        return found

    def kill(self, process: subprocess.Popen[str]) -> None:
        """Kill one of the commands that were started, with all that is still in its group, and close its streams."""
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        for stream in (process.stdout, process.stderr):
            if stream is not None:
                stream.close()

    def end(self, patience: float = 3.0) -> set[int]:
        """End everything: ask, wait `patience` seconds, then kill. Returns the ids that would not go."""
        left = self.look()
        for signum, seconds in ((signal.SIGTERM, patience), (signal.SIGKILL, 10.0)):
            self._signal(signum)
            deadline = time.monotonic() + seconds
            while left and time.monotonic() < deadline:
                time.sleep(0.05)
                for process in self._started:
                    process.poll()  # reap our own children, or they would stay as the dead that nobody waited for
                left = self.look()
            if not left:
                break
        for process in self._started:
            process.poll()
            if process.stdout is not None:
                process.stdout.close()
        self._tell("done")
        with suppress(BrokenPipeError, subprocess.TimeoutExpired):
            self._guard.communicate(timeout=patience)
        return left

    def _remember(self, groups: set[int]) -> None:
        for group in groups - self._groups:
            self._tell(str(group))
        self._groups |= groups

    def _tell(self, line: str) -> None:
        if self._guard.stdin is not None and not self._guard.stdin.closed:
            with suppress(BrokenPipeError):
                print(line, file=self._guard.stdin, flush=True)

    def _signal(self, signum: int) -> None:
        own = os.getpgrp()
        for group in self._groups - {own}:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(group, signum)
