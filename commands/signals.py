"""Signals that would kill the command are raised as exceptions instead, so that it can clean up."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_WATCHED = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]


@contextmanager
def signals_as_exceptions() -> Iterator[None]:
    """Let a SIGTERM or SIGHUP unwind the stack as a Ctrl-C does, once: a second one must not cut the ending short.

    Inside another of these, and outside the main thread, it does nothing.
    """
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGTERM) is _stop:
        yield
        return
    before = {each: signal.signal(each, _stop) for each in _WATCHED}
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


def _stop(signum: int, frame: FrameType | None) -> None:
    for each in _WATCHED:
        signal.signal(each, signal.SIG_IGN)
    if signum == signal.SIGINT:
        raise KeyboardInterrupt
    raise SystemExit(128 + signum)
