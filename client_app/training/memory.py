"""Keep freed memory for the next tensors instead of handing it back to the system each time."""

from __future__ import annotations

import ctypes
from contextlib import suppress
from functools import lru_cache

_TRIM_THRESHOLD = -1  # the names of the C library's mallopt(3) for these are M_TRIM_THRESHOLD and M_MMAP_THRESHOLD
_MMAP_THRESHOLD = -3
_KEEP = 2**30


@lru_cache(maxsize=1)
def keep_freed_memory() -> None:
    """Ask the C library to keep up to 1 GiB of freed memory for this process; where it cannot be asked, do nothing.

    A step allocates the same few megabytes again and again. By default each of them is mapped and unmapped by the
    system, which clears every page: a third of the time of a cohort's training.
    """
    with suppress(OSError, AttributeError):
        library = ctypes.CDLL("libc.so.6")
        library.mallopt(_TRIM_THRESHOLD, _KEEP)
        library.mallopt(_MMAP_THRESHOLD, _KEEP)
