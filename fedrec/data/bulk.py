"""Many rows at once by pyarrow, to the same result as one by one: what is not plain is left to the slow way.

A block of text is parsed at once only where every way to read it agrees: it is sound text, without NUL characters and
lone carriage returns, quotes stand around whole fields, and every line has as many fields as there are columns. An id,
a date or a rating is then read by the very functions that read it in a single row, but once for all rows that have it.
Whatever one of them refuses makes the whole block go the slow way, which counts and names the lines.
"""

from __future__ import annotations

import codecs
import io
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from fedrec.data.collect import SHORT, Clock, Codes, Collector, Columns, id_text, rating_of

BLOCK = 2**25
"""Bytes of text that are parsed at once, and then up to the end of the line."""
CHUNK = 2**20
"""Bytes of a block that one of the parser's threads takes at once."""
LONGEST = 2**26
"""Bytes without a line end after which a file is no longer read in blocks."""

Arrays = Sequence[Any]
"""Columns as pyarrow has them."""

_ASCII_AND_MORE = ("utf-8", "iso8859-1", "iso8859-15", "cp1252")
_UNIT = b"\x1f"
"""Stands for a separator of several characters, which the parser does not take."""


def parses(encoding: str, separator: str, quote: str | None, escape: str | None) -> bool:
    """Whether text of this form is parsed in blocks, and pyarrow is there."""
    plain = codecs.lookup(encoding).name in _ASCII_AND_MORE and separator.isascii() and not escape
    if not plain or (quote is not None and (not quote.isascii() or len(separator) != 1)):
        return False
    try:
        import pyarrow.compute
        import pyarrow.csv
    except ImportError:
        return False
    return bool(pyarrow.csv and pyarrow.compute)


def blocks_of(stream: IO[bytes], size: int = BLOCK) -> Iterator[bytes]:
    """What is left of a stream in blocks that end with a line, but perhaps the last."""
    left = b""
    while chunk := stream.read(size):
        end = chunk.rfind(b"\n") + 1
        if not end and len(left) < LONGEST:
            left += chunk
            continue
        yield left + chunk[: end or None]
        left = chunk[end:] if end else b""
    if left:
        yield left


class Blocks(io.RawIOBase):
    """Blocks of bytes as one stream."""

    def __init__(self, blocks: Iterable[bytes]) -> None:
        self._blocks = iter(blocks)
        self._left = memoryview(b"")

    def readable(self) -> bool:
        """It can be."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Some of what comes next; 0 at the end."""
        while not self._left:
            block = next(self._blocks, None)
            if block is None:
                return 0
            self._left = memoryview(block)
        taken = min(len(buffer), len(self._left))
        buffer[:taken] = self._left[:taken]
        self._left = self._left[taken:]
        return taken


def as_text(blocks: Iterable[bytes], encoding: str) -> io.TextIOWrapper:
    """The text of blocks, line ends as they are."""
    return io.TextIOWrapper(io.BufferedReader(Blocks(blocks)), encoding=encoding, newline="")


def lines_in(block: bytes) -> int:
    """How many lines end in a block: with a line feed, a carriage return, or both."""
    return block.count(b"\n") + (block.count(b"\r") - block.count(b"\r\n") if b"\r" in block else 0)


def quotes_are_plain(block: bytes, separator: bytes, quote: bytes | None) -> bool:
    """Whether every quote of a block stands around a whole field of one line, and none within a field."""
    if quote is None or quote not in block:
        return True
    text = np.frombuffer(block, dtype=np.uint8)
    places = np.flatnonzero(text == quote[0])
    if len(places) % 2:
        return False
    opens, closes = places[0::2], places[1::2]
    ends = [separator[0], 10, 13]
    before = np.where(opens > 0, text[opens - 1], 10)
    after = np.where(closes + 1 < len(text), text[np.minimum(closes + 1, len(text) - 1)], 10)
    lines = np.cumsum((text == 10) | (text == 13))
    return bool(np.isin(before, ends).all() and np.isin(after, ends).all() and (lines[opens] == lines[closes]).all())


def parsed(
    block: bytes, encoding: str, separator: str, quote: str | None, width: int, picks: Sequence[int]
) -> Arrays | None:
    """The columns at the places `picks` of a block without a header line; None if it is not plain.

    The third of them, the times, comes as text, the others as dictionaries of the text that occurs in them.
    `quotes_are_plain` has to hold.
    """
    import pyarrow
    import pyarrow.csv

    if b"\0" in block or (b"\r" in block and block.count(b"\r") != block.count(b"\r\n")):
        return None
    if not block.isascii():
        try:
            block = block.decode(encoding).encode()
        except UnicodeDecodeError:
            return None
        if block.startswith(codecs.BOM_UTF8):  # pyarrow takes it for no part of the text, also in the middle of a file
            return None
    between = separator.encode()
    if len(between) > 1:
        if _UNIT in block:
            return None
        block, between = block.replace(between, _UNIT), _UNIT
    names = [str(place) for place in range(width)]
    kinds = dict.fromkeys(picks, pyarrow.dictionary(pyarrow.int32(), pyarrow.string()))
    kinds[picks[2]] = pyarrow.string()
    try:
        table = pyarrow.csv.read_csv(
            pyarrow.BufferReader(block),
            read_options=pyarrow.csv.ReadOptions(column_names=names, block_size=CHUNK),
            parse_options=pyarrow.csv.ParseOptions(
                delimiter=between.decode(), quote_char=quote or False, double_quote=False, newlines_in_values=False
            ),
            convert_options=pyarrow.csv.ConvertOptions(
                include_columns=[names[pick] for pick in kinds],
                column_types={names[pick]: kind for pick, kind in kinds.items()},
            ),
        )
    except pyarrow.ArrowInvalid:
        return None
    return [table.column(names[pick]) for pick in picks]


def has(column: Any, text: str) -> bool:
    """Whether a text stands anywhere in a column."""
    import pyarrow.compute as compute

    encoded = _encoded(column)
    return bool(compute.any(compute.equal(encoded.dictionary, text)).as_py())


def add(collector: Collector, arrays: Arrays) -> bool:
    """Add rows from their columns (user, item, time, rating); False, and nothing has changed, if one is not plain."""
    user, item, time, rating = arrays
    clock = Clock()
    clock.dates = collector.clock.dates
    users, items = _distinct(user, id_text), _distinct(item, id_text)
    moments = _moments(time, clock) if collector.timed else np.zeros(0, dtype=np.int64)
    ratings = _numbers(rating) if collector.rated else np.zeros(0)
    if users is None or items is None or moments is None or ratings is None:
        return False
    collector.clock.dates = clock.dates
    collector.put(Columns(_codes(*users, collector.users), _codes(*items, collector.items), moments, ratings))
    return True


def _distinct(column: Any, read: Callable[[Any], Any]) -> tuple[list[Any], NDArray[np.int32]] | None:
    """The distinct values of a column, read, in the order in which they come, and the place among them of each row.

    None if there is an empty one, or one that `read` refuses.
    """
    encoded = _encoded(column)
    if encoded.indices.null_count or encoded.dictionary.null_count:
        return None
    try:
        values = [read(value) for value in encoded.dictionary.to_pylist()]
    except (ValueError, TypeError):
        return None
    return values, encoded.indices.to_numpy(zero_copy_only=False)


def _encoded(column: Any) -> Any:
    """A column as one array of a dictionary's places, in the order in which the values come."""
    from pyarrow import types

    if not types.is_dictionary(column.type):
        column = column.dictionary_encode()
    return column.unify_dictionaries().combine_chunks() if hasattr(column, "unify_dictionaries") else column


def _codes(ids: list[str], places: NDArray[np.int32], known: Codes) -> NDArray[np.int32]:
    numbers: NDArray[np.int32] = np.array([known[label] for label in ids], dtype=np.int32)[places]
    return numbers


def _moments(column: Any, clock: Clock) -> NDArray[np.int64] | NDArray[np.float64] | None:
    """Times as `Clock` reads them, int64 or float64 [rows]; None if one is not read."""
    import pyarrow.compute as compute
    from pyarrow import int64, types

    if column.null_count:
        return None
    kind = column.type
    if types.is_string(kind) or types.is_large_string(kind):
        digits = compute.all(compute.ascii_is_decimal(column)).as_py()
        if clock.dates is not True and digits and (compute.max(compute.binary_length(column)).as_py() or 0) < SHORT:
            clock.dates = False
            return _int64(column.cast(int64()))
    elif types.is_integer(kind) and kind != _uint64() and clock.dates is not True:
        clock.dates = False
        return _int64(column.cast(int64()))
    found = _distinct(column, clock.read)
    if found is None:
        return None
    values, places = found
    if any(isinstance(value, float) for value in values):
        return np.array(values, dtype=np.float64)[places]
    return np.array(values, dtype=np.int64)[places]


def _numbers(column: Any) -> NDArray[np.float64] | None:
    """Ratings, float64 [rows]; None if one is not read."""
    found = _distinct(column, rating_of)
    if found is None:
        return None
    ratings: NDArray[np.float64] = np.array(found[0], dtype=np.float64)[found[1]]
    return ratings


def _int64(column: Any) -> NDArray[np.int64]:
    values: NDArray[np.int64] = column.to_numpy()
    return values


def _uint64() -> Any:
    import pyarrow

    return pyarrow.uint64()
