"""Blocks of rows at once are read as rows one by one: the same columns, counts, reasons and errors.

Of a damaged file the first error may be another, for blocks are read ahead.
"""

from __future__ import annotations

import gzip
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet as parquet
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from fedrec.core.errors import DataError
from fedrec.data import bulk
from fedrec.data.collect import Malformed, collect
from fedrec.data.delimited import DelimitedFile
from fedrec.data.form import TextForm
from fedrec.data.parquet import ParquetFile
from fedrec.data.tables import interactions_in, open_table
from fedrec.datasets.base import RawData

NAMES = ["user_id", "item_id", "timestamp", "rating"]
HEADER = ",".join(NAMES)


@pytest.fixture(autouse=True)
def in_small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(DelimitedFile, "at_once_from", 0)
    monkeypatch.setattr(DelimitedFile, "block", 40)


def outcome(path: Path, form: TextForm, mode: Any, *, at_once: bool, timed: bool = True) -> tuple[Any, ...]:
    """All that reading leaves: columns with their types, or the error; and what was malformed."""
    malformed = Malformed(mode)
    try:
        table = open_table(path, form)
        if at_once:
            raw = interactions_in(table, NAMES, malformed, timed=timed, rated=True)
        else:
            rows = table.rows(NAMES, malformed, single=len(NAMES))
            raw = collect(lambda: table.place, rows, malformed, timed=timed, rated=True)
    except DataError as error:
        return (str(error),)
    return *plain(raw), malformed.count, dict(malformed.reasons)


def plain(raw: RawData) -> tuple[Any, ...]:
    assert raw.ratings is not None
    columns = [raw.users.codes, raw.items.codes, raw.ratings, *([] if raw.times is None else [raw.times])]
    return (
        *((str(column.dtype), column.tobytes()) for column in columns),
        raw.users.labels,
        raw.items.labels,
        raw.counts,
    )


def same(path: Path, form: TextForm, timed: bool = True) -> None:
    for mode in ("skip", "error"):
        found = outcome(path, form, mode, at_once=True, timed=timed)
        assert found == outcome(path, form, mode, at_once=False, timed=timed)


IDS = ["a", "b", "007", "7", "12.0", "", " ", "user_id", "é", "x\0", "\ufeff", "0x1F", "1_0", "+5"]
TIMES = ["-1", "3", "4.5", "1e3", "nan", "2020-01-01", "2020-01-01 10:00:00", "99999999999999999999"]
QUOTED = ['"q"', '""', '"a,b"', '"a\nb"', '"', 'a"b', '"a""b"']
FIELDS = st.sampled_from([*IDS, *TIMES, *QUOTED])
GOOD = st.tuples(
    st.sampled_from("abcé"), st.sampled_from("xyz"), st.integers(0, 2000).map(str), st.sampled_from("12345")
)
DATES = st.tuples(
    st.just("a"), st.just("x"), st.sampled_from(["2020-01-01", "2021-05-05T01:00:00+02:00"]), st.just("1")
)
LINES = st.lists(
    st.one_of(
        GOOD.map(",".join),
        GOOD.map(",".join),
        GOOD.map(lambda four: ",".join(f'"{field}"' for field in four)),
        DATES.map(",".join),
        st.lists(FIELDS, min_size=1, max_size=5).map(",".join),
        st.just(""),
        st.just(HEADER),
    ),
    max_size=14,
)
ENDS = st.sampled_from(["\n", "\n", "\n", "\r\n", "\r"])


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    lines=LINES,
    end=ENDS,
    last=st.booleans(),
    mark=st.booleans(),
    quote=st.sampled_from(['"', None]),
    timed=st.booleans(),
)
@example(
    lines=["a,x,1,1"] * 9 + ['a,"x,1,1', "b,x,1,1", 'b,"y",1,1'], end="\n", last=True, mark=True, quote='"', timed=True
)
@example(
    lines=["a,x,1.5,1", "a,y,3,1", "b,y,2,nan", "c,x,4,2"] * 3, end="\n", last=False, mark=False, quote='"', timed=True
)
def test_text_in_blocks_is_text_by_lines(
    tmp_path: Path, lines: Sequence[str], end: str, last: bool, mark: bool, quote: str | None, timed: bool
) -> None:
    path = tmp_path / "a.csv"
    text = end.join([HEADER, *lines]) + (end if last else "")
    path.write_bytes(("\ufeff" * mark + text).encode())
    same(path, TextForm(quote=quote), timed)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.lists(st.one_of(GOOD, GOOD, st.tuples(FIELDS, FIELDS, FIELDS, FIELDS)), max_size=12), packed=st.booleans()
)
def test_long_separators_other_encodings_and_packed_files(
    tmp_path: Path, rows: Sequence[Sequence[str]], packed: bool
) -> None:
    text = "".join("::".join(row) + "\n" for row in rows).encode("latin-1", "replace")
    path = tmp_path / ("a.dat.gz" if packed else "a.dat")
    path.write_bytes(gzip.compress(text) if packed else text)
    same(path, TextForm(separator="::", encoding="latin-1", columns=tuple(NAMES)))


def test_bytes_that_are_no_text_are_the_same_error(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes((HEADER + "\n" + "a,x,1,1\n" * 20).encode() + b"\xff,x,1,1\n" + b"a,x,1,1\n" * 20)
    same(path, TextForm())
    assert "is not utf-8 text" in outcome(path, TextForm(), "skip", at_once=True)[0]


def test_a_line_longer_than_all_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bulk, "LONGEST", 100)
    path = tmp_path / "a.csv"
    path.write_text(HEADER + "\n" + "a,x,1,1\n" * 5 + "b" * 500 + ",x,2,1\n" + "c,x,1,1\n" * 5)
    same(path, TextForm())


def test_a_block_of_many_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(DelimitedFile, "block", 2**20)
    monkeypatch.setattr(bulk, "CHUNK", 300)
    rng = np.random.default_rng(0)
    path = tmp_path / "a.csv"
    lines = (f"u{user},i{item},{when},{stars / 2}\n" for user, item, when, stars in rng.integers(0, 400, (900, 4)))
    path.write_text(HEADER + "\n" + "".join(lines))
    same(path, TextForm())
    path.write_text(HEADER + "\n" + "a,x,1,1\n" * 200 + "b" * 1000 + ",x,2,1\n")  # longer than a chunk
    same(path, TextForm())


def written(folder: Path, form: str) -> tuple[Path, TextForm]:
    """Sound rows in a file, or files, of some form."""
    rows, path = [("a", "x", "1", "1"), ("b", "y", "2", "3.5")] * 30, folder / "a.csv"
    if form == "parquet":
        path = folder / "a.parquet"
        columns = (pyarrow.array([row[n] for row in rows]) for n in range(4))
        parquet.write_table(pyarrow.table(dict(zip(NAMES, columns, strict=True))), path)
    elif form == "long separator":
        path.write_text("".join("::".join(row) + "\n" for row in rows))
        return path, TextForm(separator="::", columns=tuple(NAMES))
    elif form == "latin-1":
        path.write_bytes((HEADER + "\n" + "é,x,1,1\n" * 30).encode("latin-1"))
        return path, TextForm(encoding="latin-1")
    elif form == "parts":
        path = folder / "parts"
        path.mkdir()
        for part in (1, 2):
            (path / f"part-{part}.csv").write_text(HEADER + "\n" + "".join(",".join(row) + "\n" for row in rows))
    else:
        text = (HEADER + "\n" + '"a",x,1,1\nb,"y",2,3.5\n' * 30).encode()
        path = folder / ("a.csv.gz" if form == "packed" else "a.csv")
        path.write_bytes(gzip.compress(text) if form == "packed" else text)
    return path, TextForm()


@pytest.mark.parametrize("form", ["plain", "packed", "long separator", "latin-1", "parts", "parquet"])
def test_what_is_plain_is_not_read_by_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str) -> None:
    path, told = written(tmp_path, form)
    expected = outcome(path, told, "error", at_once=False)

    def never(*_: Any, **__: Any) -> Any:
        raise AssertionError("rows one by one")

    monkeypatch.setattr(DelimitedFile, "_rows", never)
    monkeypatch.setattr(ParquetFile, "_read", never)
    assert outcome(path, told, "error", at_once=True) == expected


def test_blank_lines_before_everything(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("\n" * 100 + HEADER + "\n" + "a,x,1,1\n" * 20)
    same(path, TextForm())
    assert len(outcome(path, TextForm(), "error", at_once=True)) > 1


@pytest.mark.parametrize("name", NAMES[:3])
def test_text_in_parquet_that_is_none_is_damage(tmp_path: Path, name: str) -> None:
    good = pyarrow.array(["1", "2", "3"])
    bad = pyarrow.Array.from_buffers(pyarrow.string(), 3, [None, good.buffers()[1], pyarrow.py_buffer(b"1\xff3")])
    path = tmp_path / "a.parquet"
    parquet.write_table(pyarrow.table({each: bad if each == name else good for each in NAMES}), path)
    same(path, TextForm())
    assert "is not a sound Parquet file" in outcome(path, TextForm(), "skip", at_once=True)[0]


VALUES = {
    "user_id": [["a", "b", "a"], [1, 2, 1], [1.0, 2.0, 1.0], [1.5, 2.0, 3.0], ["a", None, "b"], ["a", "", "b"]],
    "timestamp": [
        [3, 2, 1],
        [0.5, 1.0, 2.0],
        ["5", "4", "3"],
        ["2020-01-01", "5", "4"],
        [2**62, None, 1],
        [True, False, True],
    ],
    "rating": [[1, 2, 3], [0.5, 1.5, float("nan")], ["1", "x", "3"], [2**60 + 1, 1, 2]],
}


@pytest.mark.parametrize("kind", ["plain", "dictionary", "large", "timestamp", "uint64", "decimal"])
def test_parquet_in_batches_is_parquet_by_rows(tmp_path: Path, kind: str) -> None:
    for number, users in enumerate(VALUES["user_id"]):
        for times in VALUES["timestamp"]:
            for ratings in VALUES["rating"]:
                columns = {"user_id": pyarrow.array(users), "item_id": pyarrow.array(["x", "y", "x"])}
                columns |= {"timestamp": pyarrow.array(times), "rating": pyarrow.array(ratings)}
                if kind == "dictionary":
                    columns["user_id"] = columns["user_id"].dictionary_encode()
                if kind == "large":
                    columns["item_id"] = columns["item_id"].cast(pyarrow.large_string())
                if kind == "timestamp" and pyarrow.types.is_integer(columns["timestamp"].type):
                    columns["timestamp"] = columns["timestamp"].cast(pyarrow.timestamp("ms"))
                if kind == "uint64":
                    columns["timestamp"] = pyarrow.array([2**63 + 5, 1, 2], type=pyarrow.uint64())
                if kind == "decimal":
                    columns["rating"] = pyarrow.array([1, 2, 3]).cast(pyarrow.decimal128(20, 1))
                path = tmp_path / f"{number}.parquet"
                parquet.write_table(pyarrow.table(columns), path)
                same(path, TextForm())


def test_parts_in_folders_with_names(tmp_path: Path) -> None:
    for day in (1, 2):
        folder = tmp_path / f"timestamp={day}"
        folder.mkdir()
        (folder / "part-0.csv").write_text("user_id,item_id,rating\n" + "a,x,1\nb,y,2\n" * 9 + "c,z,good\n")
    same(tmp_path, TextForm())


def test_numbers_are_those_of_python(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    times = rng.integers(0, 2**62, 50)
    path = tmp_path / "a.csv"
    path.write_text(
        HEADER + "\n" + "".join(f"u{n % 7},i{n % 5},{time},{n / 8}\n" for n, time in enumerate(times.tolist()))
    )
    malformed = Malformed("error")
    raw = interactions_in(open_table(path, TextForm()), NAMES, malformed, timed=True, rated=True)
    assert raw.times is not None
    assert raw.ratings is not None
    assert raw.times.tolist() == times.tolist()
    assert raw.ratings.tolist() == [n / 8 for n in range(50)]
