"""The one place that turns whatever a file, a disk or an archive throws while it is read into a DataError."""

from __future__ import annotations

import bz2
import codecs
import gzip
import lzma
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from fedrec.core.errors import DataError
from fedrec.data.form import TextForm

CUT_OR_FLIPPED: tuple[type[Exception], ...] = (EOFError, zlib.error, lzma.LZMAError)
"""What a damaged stream throws beside an OSError without a number (gzip and bz2)."""
DAMAGED: tuple[type[Exception], ...] = (
    *CUT_OR_FLIPPED,
    zipfile.BadZipFile,
    zipfile.LargeZipFile,
    struct.error,
    NotImplementedError,  # a method of compression that nobody has, or a flipped bit where it is named
    RuntimeError,  # encrypted
    ValueError,  # negative offsets, names that are no text
    TypeError,
    LookupError,
    OverflowError,
    MemoryError,
)
"""What libraries throw over a container whose directory or members are damaged."""

_OPENERS: Mapping[str, tuple[str, Callable[..., Any]]] = {
    ".gz": ("gzip", gzip.open),
    ".bz2": ("bzip2", bz2.open),
    ".xz": ("xz", lzma.open),
}
_ONE_BYTE = ("iso8859-1", "iso8859-15", "cp1252")
_CHUNK = 2**20
_MARKS = {
    b"\x1f\x8b": "a gzip file (.gz)",
    b"BZh": "a bzip2 file (.bz2)",
    b"\xfd7zXZ": "an xz file (.xz)",
    b"PAR1": "a Parquet file (.parquet)",
    b"PK\x03\x04": "a zip archive or a sheet",
}
_RENAME = "give it the right name, unpack it, or export it as .csv"
_CUT = "it is damaged or truncated, fetch it again"


@contextmanager
def reading(
    place: object, kind: str, mend: str = "fetch it again", damage: tuple[type[Exception], ...] = DAMAGED
) -> Iterator[None]:
    """Whatever goes wrong inside, in reading `place` as a sound `kind` ("zip archive"), is a DataError with its mend.

    What the disk or the system refuses is told from damage. `damage` are the exceptions that mean the latter.
    """
    try:
        yield
    except OSError as error:
        if error.errno is not None:
            raise DataError(f"cannot read {place}: {error.strerror}; check the path, its owner and the disk") from error
        raise DataError(_damaged(place, kind, mend, error)) from error
    except damage as error:
        raise DataError(_damaged(place, kind, mend, error)) from error


def _damaged(place: object, kind: str, mend: str, error: Exception) -> str:
    told = " ".join(str(error).split()) or type(error).__name__
    return f"{place} is not a sound {kind} ({told}): {mend}"


@contextmanager
def open_text(path: Path, form: TextForm) -> Iterator[IO[str]]:
    """Open a text file, packed or not; what is not text in its encoding, and a damaged file, is a DataError.

    The lines are as in the file, with their ends.
    """
    opener = _OPENERS.get(path.suffix.lower(), ("text", open))[1]
    with _decoding(path, form), opener(path, "rt", encoding=_without_mark(form.encoding), newline="") as stream:
        yield stream


@contextmanager
def _decoding(path: Path, form: TextForm) -> Iterator[None]:
    """What is not text in its encoding, and a damaged file, is a DataError."""
    kind = _OPENERS.get(path.suffix.lower(), ("text", open))[0]
    with reading(path, f"{kind} file", _CUT, CUT_OR_FLIPPED):
        try:
            yield
        except UnicodeError as error:
            if (other := _other_form(path)) is not None:
                raise DataError(f"{path} is no text, it begins as {other} does: {_RENAME}") from error
            what = str(error)
            if isinstance(error, UnicodeDecodeError):
                what = f"{error.reason}, byte {error.object[error.start]:#04x}"
            raise DataError(
                f"{path} is not {form.encoding} text ({what}): name its encoding, as in "
                f"{form.setting('encoding', _likely(path))}, or convert the file"
            ) from error


@contextmanager
def open_bytes(path: Path, form: TextForm) -> Iterator[IO[bytes]]:
    """The same as bytes, without a byte order mark; what is not text is for who decodes them to find out."""
    with _decoding(path, form), _OPENERS.get(path.suffix.lower(), ("text", open))[1](path, "rb") as stream:
        if stream.read(len(codecs.BOM_UTF8)) != codecs.BOM_UTF8 or codecs.lookup(form.encoding).name != "utf-8":
            stream.seek(0)
        yield stream


def check_encoding(path: Path, form: TextForm) -> None:
    """Raise DataError if text in UTF-8 is to be read in an encoding of one byte a letter, which never fails.

    Other letters than ASCII's that all happen to be sound UTF-8 are no accident, and would be spoilt without a word.
    """
    if codecs.lookup(form.encoding).name not in _ONE_BYTE:
        return
    kind, opener = _OPENERS.get(path.suffix.lower(), ("text", open))
    decoder = codecs.getincrementaldecoder("utf-8")()
    ascii_only = True
    with reading(path, f"{kind} file", _CUT, CUT_OR_FLIPPED), opener(path, "rb") as stream:
        try:
            while chunk := stream.read(_CHUNK):
                ascii_only = ascii_only and chunk.isascii()
                decoder.decode(chunk)
            decoder.decode(b"", final=True)
        except UnicodeDecodeError:
            return
    if not ascii_only:
        other = "" if form.prefix != "dataset." else ". The item table may have another: dataset.item_encoding"
        raise DataError(
            f"{path} is UTF-8 text, whose letters {form.encoding} would spoil; read it with "
            f"{form.setting('encoding', 'utf-8')}{other}"
        )


def _without_mark(encoding: str) -> str:
    """The encoding that passes over a byte order mark: it is no part of the first column's name, nor of any line."""
    return "utf-8-sig" if codecs.lookup(encoding).name == "utf-8" else encoding


def _other_form(path: Path) -> str | None:
    """What a file is by its first bytes, if that is no text."""
    with path.open("rb") as file:
        start = file.read(8)
    return next((form for mark, form in _MARKS.items() if start.startswith(mark)), None)


def _likely(path: Path) -> str:
    """The encoding that a file's first bytes speak for, if it is not the one that was tried."""
    with path.open("rb") as file:
        start = file.read(2)
    return "utf-16" if start in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) else "latin-1"
