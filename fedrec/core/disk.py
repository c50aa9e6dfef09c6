"""What a disk or a damaged file throws, said in the project's words: the one place that every reader and writer uses.

The errors are of many kinds (the operating system's, safetensors', those of the parsers), and none of them says what
the file was for or what to do. `writing` and `reading` turn all of them into a StoreError that does.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from fedrec.core.errors import StoreError

FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
"""The disk, a quota or the largest file that may be written."""
DENIED = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})
_FAILING = frozenset({errno.EIO, errno.ENODEV, errno.ENXIO, errno.ESTALE, errno.EMFILE, errno.ENFILE, errno.ENOMEM})

DAMAGE = (ValueError, KeyError, TypeError, AttributeError, IndexError, EOFError, RecursionError, SafetensorError)
"""What reading a file of ours raises if its content is not what was written; a UnicodeDecodeError is a ValueError."""

_OS_ERROR = re.compile(r"\(os error (\d+)\)")


def number(error: BaseException) -> int | None:
    """The operating system's number of an error; None if it is none of its."""
    if isinstance(error, OSError):
        return error.errno
    found = _OS_ERROR.search(str(error)) if isinstance(error, SafetensorError) else None
    return int(found[1]) if found else None


def is_of_the_disk(error: BaseException) -> bool:
    """Whether an error is one that the machine's owner can mend: no room, no permission, or a disk that fails."""
    return number(error) in FULL | DENIED | _FAILING


def reason(error: BaseException) -> str:
    """Why, in a few words and without the path, which the message names already."""
    found = number(error)
    return os.strerror(found) if found is not None else " ".join(str(error).split()) or type(error).__name__


def mend(error: BaseException, elsewhere: str) -> str:
    """What to do about it: at the place, or `elsewhere` (a clause such as `set cache_dir to another folder`)."""
    found = number(error)
    if found in FULL:
        return f"make room on that disk, or {elsewhere}"
    if found in DENIED:
        return f"{_owner(error)}change its permissions, or {elsewhere}"
    return f"check the disk, or {elsewhere}"


def _owner(error: BaseException) -> str:
    """Whose the file is, if it is another account's: who may not even look sees the nearest folder above it."""
    name = getattr(error, "filename", None)
    if not isinstance(name, str):
        return ""
    for path in (Path(name), *Path(name).parents):
        try:
            owner = path.lstat().st_uid
        except OSError:
            continue
        mine = os.geteuid() if hasattr(os, "geteuid") else owner
        return (
            "" if owner == mine else f"{path} belongs to {_account(owner)}, and this process runs as {_account(mine)}; "
        )
    return ""


def _account(uid: int) -> str:
    try:
        import pwd  # POSIX alone has it

        return pwd.getpwuid(uid).pw_name
    except (ImportError, KeyError):
        return f"the account {uid}"


@contextmanager
def writing(what: str, elsewhere: str) -> Iterator[None]:
    """Whatever the disk refuses meanwhile is a StoreError.

    Args:
        what: The file or folder with what it is for, as the message names it: `the run folder /runs/r`.
        elsewhere: What to do if that place cannot be mended: `set runs_dir to another folder`.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise StoreError(f"{what} cannot be written ({reason(error)}): {mend(error, elsewhere)}") from error


@contextmanager
def reading(what: str, restore: str) -> Iterator[None]:
    """Whatever reading a file of ours throws meanwhile is a StoreError: it is missing, denied, or damaged.

    Args:
        what: The file with what it is for, as the message names it.
        restore: What to do if it is missing or damaged: `restore it from a copy, or start a new run`.
    """
    try:
        yield
    except FileNotFoundError as error:
        raise StoreError(f"{what} is missing: {restore}") from error
    except OSError as error:
        raise StoreError(f"{what} cannot be read ({reason(error)}): {mend(error, restore)}") from error
    except DAMAGE as error:
        if number(error) is not None:
            raise StoreError(f"{what} cannot be read ({reason(error)}): {mend(error, restore)}") from error
        said = f"no {error}" if isinstance(error, KeyError) else reason(error)
        raise StoreError(f"{what} is damaged ({said}): {restore}") from error
