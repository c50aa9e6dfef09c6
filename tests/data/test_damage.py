"""Files that were damaged on the way: whatever a library throws over them is a DataError with its mend."""

from __future__ import annotations

import bz2
import errno
import gzip
import json
import lzma
import random
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fedrec.core.errors import DataError
from fedrec.data import reading as reading_module
from fedrec.data.prepare import load
from fedrec.data.reading import reading

RATINGS = "".join(f"{n % 20}::{n % 7}::{n % 5}::{n * 7919}\n" for n in range(300))
MOVIES = "".join(f"{n}::Movie {n} (1995)::Drama\n" for n in range(7))
REVIEWS = "".join(
    json.dumps({"reviewerID": f"u{n % 20}", "asin": f"{n % 7}", "overall": 5.0, "unixReviewTime": n}) + "\n"
    for n in range(300)
)
PRODUCTS = "".join(json.dumps({"asin": f"{n}", "title": f"Thing {n}"}) + "\n" for n in range(7))
TABLE = "user_id,item_id,timestamp\n" + "".join(f"u{n % 20},{n % 7},{n}\n" for n in range(300))
PACK: dict[str, Callable[[bytes], bytes]] = {"gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress}


def damaged(good: bytes, times: int) -> Iterator[bytes]:
    """Copies with bytes flipped here and there, or cut short."""
    draw = random.Random(7)
    for n in range(times):
        bad = bytearray(good)
        for _ in range(draw.choice((1, 1, 3))):
            bad[draw.randrange(len(bad))] ^= draw.randrange(1, 256)
        yield bytes(bad[: draw.randrange(len(bad))] if n % 5 == 0 else bad)


def outcomes(path: Path, copies: Iterator[bytes], read: Callable[[], Any]) -> tuple[int, int]:
    """How many copies of a file were read all the same, and how many refused; anything else fails the test."""
    sound = refused = 0
    for content in copies:
        path.write_bytes(content)
        try:
            read()
        except DataError as error:
            refused += path.name in str(error)  # an error that does not name the file counts for nothing
        else:
            sound += 1
    return sound, refused


@pytest.mark.parametrize(
    "method",
    [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA],
    ids=["stored", "zip", "bz2", "xz"],
)
def test_any_damage_of_a_zip_is_told(method: int, tmp_path: Path, config: Any) -> None:
    path = tmp_path / "ml-1m.zip"
    with zipfile.ZipFile(path, "w", method) as made:
        made.writestr("ml-1m/ratings.dat", RATINGS)
        made.writestr("ml-1m/movies.dat", MOVIES)
    chosen = config("ml_1m", root=path)
    assert len(load(chosen).catalogue) == 7
    sound, refused = outcomes(path, damaged(path.read_bytes(), 250), lambda: load(chosen))
    assert refused > 3 * sound


def test_what_cannot_be_unpacked_says_how_to_go_on(tmp_path: Path, config: Any) -> None:
    """An encrypted member, and a method of compression that nobody has."""
    path = tmp_path / "ml-1m.zip"
    with zipfile.ZipFile(path, "w") as made:
        made.writestr("ml-1m/ratings.dat", RATINGS)
        made.writestr("ml-1m/movies.dat", MOVIES)
    good = path.read_bytes()
    central = good.index(b"PK\x01\x02")
    for place, value in ((central + 8, 1), (central + 10, 99)):
        bad = bytearray(good)
        bad[place] = value
        path.write_bytes(bad)
        with pytest.raises(
            DataError, match=r"not a sound zip archive .*: delete it and .*, or unpack it yourself and give"
        ):
            load(config("ml_1m", root=path))


@pytest.mark.parametrize("packing", sorted(PACK))
def test_any_damage_of_packed_text_is_told(packing: str, tmp_path: Path, config: Any) -> None:
    path = tmp_path / f"t.csv.{packing}"
    good = PACK[packing](TABLE.encode())
    chosen = config("table", interactions=path, malformed="skip")
    sound, refused = outcomes(path, damaged(good, 150), lambda: load(chosen))
    assert refused > 3 * sound
    path.write_bytes(good[:-9])
    with pytest.raises(DataError, match="it is damaged or truncated, fetch it again"):
        load(chosen)


@pytest.mark.parametrize("name", ["amazon", "amazon_2023"])
def test_any_damage_of_packed_reviews_is_told(name: str, tmp_path: Path, config: Any) -> None:
    suffix = "json" if name == "amazon" else "jsonl"
    keys = {"reviewerID": "user_id", "asin": "parent_asin", "overall": "rating", "unixReviewTime": "timestamp"}
    reviews, products = REVIEWS, PRODUCTS
    if name == "amazon_2023":
        for old, new in keys.items():
            reviews, products = reviews.replace(old, new), products.replace(old, new)
    paths = {f"Tools.{suffix}.gz": reviews, f"meta_Tools.{suffix}.gz": products}
    for file, text in paths.items():
        (tmp_path / file).write_bytes(gzip.compress(text.encode()))
    chosen = config(name, root=tmp_path, k_core=0, malformed="skip")
    assert len(load(chosen).catalogue) == 7
    for file in paths:
        good = (tmp_path / file).read_bytes()
        _, refused = outcomes(tmp_path / file, damaged(good, 60), lambda: load(chosen))
        assert refused > 30
        (tmp_path / file).write_bytes(good)


@pytest.mark.parametrize("compression", ["snappy", "none", "zstd"])
def test_any_damage_of_parquet_is_told(compression: str, tmp_path: Path, config: Any) -> None:
    path = tmp_path / "t.parquet"
    rows = [line.split(",") for line in TABLE.splitlines()]
    table = pa.table(dict(zip(rows[0], map(list, zip(*rows[1:], strict=True)), strict=True)))
    pq.write_table(table, path, compression=compression, row_group_size=100, write_page_checksum=True)
    chosen = config("table", interactions=path, malformed="skip")
    before = load(chosen)
    sound, refused = outcomes(path, damaged(path.read_bytes(), 200), lambda: load(chosen))
    assert refused > sound
    assert before.interactions.users == 20


def test_pages_of_parquet_are_checked_where_they_can_be(tmp_path: Path, config: Any) -> None:
    path = tmp_path / "t.parquet"
    table = pa.table({"user_id": ["a"] * 9, "item_id": [f"item-{n}" for n in range(9)], "timestamp": range(9)})
    pq.write_table(table, path, compression="none", use_dictionary=False, write_page_checksum=True)
    path.write_bytes(path.read_bytes().replace(b"item-3", b"item-8", 1))
    with pytest.raises(DataError, match=r"t.parquet, after row 0, is not a sound Parquet file .*fetch it again"):
        load(config("table", interactions=path))


def test_what_the_disk_refuses_is_no_damage(tmp_path: Path, config: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "t.csv").write_text(TABLE)

    def refuse(*_: Any, **__: Any) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(reading_module, "open", refuse, raising=False)
    with pytest.raises(
        DataError, match=r"cannot read .*t.csv: Permission denied; check the path, its owner and the disk"
    ):
        load(config("table", interactions=tmp_path / "t.csv"))
    with pytest.raises(DataError, match=r"^cannot read /x: Input/output error"), reading("/x", "file"):
        raise OSError(errno.EIO, "Input/output error")
    with pytest.raises(DataError, match=r"^/x is not a sound bzip2 file"), reading("/x", "bzip2 file"):
        raise OSError("Invalid data stream")
    with pytest.raises(DataError, match=r"^/x is not a sound file \(MemoryError\)"), reading("/x", "file"):
        raise MemoryError
