"""Folders of parts, as Spark, Hive and Dask leave them: one table, whatever else lies there."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fedrec.core.errors import DataError
from fedrec.data.parts import files_of, part_files
from fedrec.data.prepare import load


def part(path: Path, users: list[str], items: list[Any], times: Any, **more: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"user_id": users, "item_id": items, "timestamp": times, **more}), path)


def test_a_folder_as_spark_leaves_it(tmp_path: Path, config: Any, histories: Any) -> None:
    folder = tmp_path / "clicks"
    part(folder / "part-00000-0a-c000.snappy.parquet", ["a", "a"], ["1", "2"], [3, 1])
    part(folder / "part-00001-0a-c000.snappy.parquet", ["b"], ["1"], [2])
    for name in ("_SUCCESS", "_metadata", ".part-00000.crc", "_temporary/0/part-00009.parquet", ".ipynb/x.parquet"):
        (folder / name).parent.mkdir(exist_ok=True, parents=True)
        (folder / name).write_bytes(b"x")
    for path in (folder, folder.rename(tmp_path / "clicks.parquet")):
        path = path if path.exists() else tmp_path / "clicks.parquet"
        assert histories(load(config("table", interactions=path))) == {"a": ["2", "1"], "b": ["1"]}


def test_folders_below_are_columns_as_hive_names_them(tmp_path: Path, config: Any, histories: Any) -> None:
    folder = tmp_path / "t"
    for day, user, item in (("1", "a", "x"), ("2", "a", "y"), ("1", "b", "y")):
        path = folder / f"timestamp={day}" / f"shop=S%20{user}" / "part-0.parquet"
        path.parent.mkdir(parents=True)
        pq.write_table(pa.table({"user_id": [user], "item_id": [item]}), path)
    dataset = load(config("table", interactions=folder))
    assert histories(dataset) == {"a": ["x", "y"], "b": ["y"]}
    by_shop = load(config("table", interactions=folder, user_column="shop"))
    assert list(by_shop.interactions.user_ids) == ["S a", "S b"]
    (folder / "timestamp=2").rename(folder / "timestamp=__HIVE_DEFAULT_PARTITION__")
    with pytest.raises(DataError, match=r"part-0.parquet, row 1: cannot read .*a time that is"):
        load(config("table", interactions=folder))
    assert load(config("table", interactions=folder, malformed="skip")).report.counts["malformed"] == 1


def test_parts_are_in_the_order_of_their_numbers(tmp_path: Path, config: Any, histories: Any) -> None:
    for number in range(12):
        part(tmp_path / "t" / f"part.{number}.parquet", ["a"], [f"i{number}"], [0])
    assert [path.name for path in part_files(tmp_path / "t")] == [f"part.{number}.parquet" for number in range(12)]
    dataset = load(config("table", interactions=tmp_path / "t", time_column=None))
    assert histories(dataset) == {"a": [f"i{number}" for number in range(12)]}


def test_parts_may_be_text(tmp_path: Path, config: Any, histories: Any) -> None:
    folder = tmp_path / "csv"
    folder.mkdir()
    (folder / "part-0.csv").write_text("user_id,item_id,timestamp\na,1,3\na,2,1\n")
    (folder / "part-1.csv.gz").write_bytes(gzip.compress(b"timestamp,user_id,item_id\n2,b,1\nx,b,2\n"))
    (folder / "part-2.csv").write_bytes(b"")
    with pytest.raises(DataError, match=r"part-1.csv.gz, line 3: cannot read"):
        load(config("table", interactions=folder))
    dataset = load(config("table", interactions=folder, malformed="skip"))
    assert histories(dataset) == {"a": ["2", "1"], "b": ["1"]}
    assert dataset.report.counts["malformed"] == 1
    headless = tmp_path / "tsv"
    headless.mkdir()
    (headless / "0.tsv").write_text("a\t1\t3\na\t2\t1\n")
    (headless / "1.tsv").write_text("b\t1\t2\n")
    columns = ["user_id", "item_id", "timestamp"]
    assert histories(load(config("table", interactions=headless, columns=columns))) == {"a": ["2", "1"], "b": ["1"]}
    with pytest.raises(DataError, match=r"0.tsv: its first line .*looks like data"):
        load(config("table", interactions=headless))


def test_columns_of_json_parts_are_those_of_all(tmp_path: Path, config: Any) -> None:
    (tmp_path / "t.csv").write_text("user_id,item_id,timestamp\na,1,3\na,2,1\n")
    (tmp_path / "items").mkdir()
    for number, item in enumerate(({"item_id": "1"}, {"item_id": "2", "title": "lamp", "tags": ["red"]})):
        (tmp_path / "items" / f"{number}.json").write_text(json.dumps(item) + "\n")
    dataset = load(config("table", interactions=tmp_path / "t.csv", item_table=tmp_path / "items"))
    assert dataset.catalogue.sentences == ("", "lamp. red.")


def test_what_is_no_table_in_parts_is_told(tmp_path: Path, config: Any) -> None:
    folder = tmp_path / "t.parquet"
    folder.mkdir()

    def refused(match: str) -> None:
        with pytest.raises(DataError, match=match):
            load(config("table", interactions=folder))

    refused(r"t.parquet is a folder without a part of a table; expected files that end in \.csv")
    part(folder / "a.parquet", ["a"], ["1"], [1])
    (folder / "notes.md").write_text("hello")
    refused(r"holds 1 files that cannot be a part .*notes.md.* begin their names with _")
    (folder / "notes.md").rename(folder / "notes.csv")
    refused(r"files of several forms \(.csv, Parquet\)")
    (folder / "notes.csv").unlink()
    part(folder / "b.parquet", ["a"], ["2"], pa.array([1], pa.timestamp("ms")))
    refused(r"keep the times of column 'timestamp' in several units \(no unit in .*a.parquet; ms in .*b.parquet\)")
    (folder / "b.parquet").write_bytes(b"")
    refused(r"b.parquet is not a sound Parquet file")
    pq.write_table(pa.table({"user_id": ["a"], "item": ["2"], "timestamp": [1]}), folder / "b.parquet")
    refused(r"b.parquet and .*a.parquet have columns of other names")
    (folder / "_delta_log").mkdir()
    refused("is a Delta Lake table: its folder also holds rows that were deleted")


def test_a_table_is_its_own_part(tmp_path: Path) -> None:
    assert files_of(tmp_path / "t.csv") == [tmp_path / "t.csv"]


def test_text_kept_as_bytes_and_ids_kept_as_decimals(tmp_path: Path, config: Any, histories: Any) -> None:
    """As Impala and databases write them."""
    from decimal import Decimal

    table = pa.table(
        {
            "user_id": pa.array([b"Jos\xc3\xa9", b"Jos\xc3\xa9", b"\xff"], pa.binary()),
            "item_id": pa.array([Decimal(2**60 + 1), Decimal(7), Decimal(7)], pa.decimal128(38, 0)),
            "timestamp": [1, 2, 3],
        }
    )
    pq.write_table(table, tmp_path / "t.parquet")
    dataset = load(config("table", interactions=tmp_path / "t.parquet", malformed="skip"))
    assert histories(dataset) == {"José": [str(2**60 + 1), "7"]}
    assert dataset.report.counts["malformed"] == 1


def test_two_parquet_columns_of_one_name_are_told(tmp_path: Path, config: Any) -> None:
    columns = [pa.array(["a"]), pa.array(["1"]), pa.array([1]), pa.array(["2"])]
    pq.write_table(
        pa.Table.from_arrays(columns, names=["user_id", "item_id", "timestamp", "item_id"]), tmp_path / "t.pq"
    )
    with pytest.raises(DataError, match=r"t.pq: two columns have the same name, among columns \[2, 4\]; rename one"):
        load(config("table", interactions=tmp_path / "t.pq"))
