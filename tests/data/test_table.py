"""Tables of all forms, ids of all types, and a defined answer to whatever is wrong with them."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fedrec.core.errors import DataError
from fedrec.data.prepare import load

ROWS = [("u1", 10, 3, 4.0), ("u1", 7, 1, 5.0), ("007", 10, 2, 1.0), ("007", 30, 2, 2.5)]
NAMES = ("who", "what", "when", "stars")
COLUMNS = {f"{kind}_column": name for kind, name in zip(("user", "item", "time", "rating"), NAMES, strict=True)}


def lines(separator: str) -> str:
    return "\n".join(separator.join(map(str, row)) for row in [NAMES, *ROWS]) + "\n"


def write(path: Path) -> Path:
    name = path.name.removesuffix(".gz")
    if name.endswith((".parquet", ".pq")):
        pq.write_table(pa.table({n: [row[k] for row in ROWS] for k, n in enumerate(NAMES)}), path)
        return path
    if name.endswith("jsonl"):
        text = "".join(json.dumps(dict(zip(NAMES, row, strict=True))) + "\n" for row in ROWS)
    else:
        text = lines("," if name.endswith("csv") else "\t")
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


@pytest.mark.parametrize("name", ["t.csv", "t.tsv", "t.txt", "t.csv.gz", "t.jsonl", "t.jsonl.gz", "t.parquet", "t.pq"])
def test_every_form_gives_the_same(name: str, tmp_path: Path, config: Any, histories: Any) -> None:
    dataset = load(config("table", interactions=write(tmp_path / name), **COLUMNS))
    assert histories(dataset) == {"007": ["10", "30"], "u1": ["7", "10"]}
    filtered = load(config("table", interactions=tmp_path / name, min_rating=2.0, **COLUMNS))
    assert filtered.report.counts["low_rating"] == 1


def test_time_and_rating_are_optional(tmp_path: Path, config: Any, histories: Any) -> None:
    (tmp_path / "t.csv").write_text("item_id;user_id\n2;a\n1;a\n")
    dataset = load(config("table", interactions=tmp_path / "t.csv", time_column=None, separator=";"))
    assert histories(dataset) == {"a": ["2", "1"]}


def test_items_are_described_by_their_table(tmp_path: Path, config: Any) -> None:
    path = write(tmp_path / "t.csv")
    (tmp_path / "items.csv").write_text(
        'what,name,brand,tags\n30,"Sofa, ""big""",,\n7,  ,Acme,red|blue\n'
        "10,Lamp,Acme,\n10,Again,Acme,\n99,Never,Acme,\n"
    )
    values = COLUMNS | {"interactions": path, "item_table": tmp_path / "items.csv", "title_column": "name"}
    dataset = load(config("table", **values, items="rated"))
    assert dataset.catalogue.item_ids == ("30", "7", "10")
    assert dataset.catalogue.titles == ('Sofa, "big"', "7", "Lamp")
    assert dataset.catalogue.sentences == ('Sofa, "big".', "Acme. red, blue.", "Lamp. Acme.")
    assert dataset.report.counts["duplicate_item"] == 1
    assert dataset.report.counts["unrated_item"] == 1
    chosen = load(config("table", **values, text_columns=["tags", "name"]))
    assert chosen.catalogue.sentences == ('Sofa, "big".', "red, blue.", "Lamp.", "Never.")
    assert chosen.eligible.tolist() == [0, 1, 2]
    without = load(config("table", **(values | {"title_column": None}), text_columns=[]))
    assert without.catalogue.titles == ("30", "7", "10", "99")
    assert without.catalogue.sentences == ("", "", "", "")


def test_an_unknown_item_is_left_out_and_counted(tmp_path: Path, config: Any) -> None:
    path = write(tmp_path / "t.csv")
    (tmp_path / "items.jsonl").write_text('{"id": 7, "title": "a"}\n{"id": 10, "tags": ["x", "y"]}\n')
    values = COLUMNS | {"interactions": path, "item_table": tmp_path / "items.jsonl", "item_id_column": "id"}
    dataset = load(config("table", **values))
    assert dataset.report.counts["unknown_item"] == 1
    assert dataset.catalogue.titles == ("a", "10")


def test_a_missing_column_is_named_with_the_nearest(tmp_path: Path, config: Any) -> None:
    path = write(tmp_path / "t.csv")
    with pytest.raises(DataError) as caught:
        load(config("table", interactions=path, **(COLUMNS | {"user_column": "whom", "item_column": "zzz"})))
    message = str(caught.value)
    assert (
        f"{path} has no column 'whom' (dataset.user_column); found 'who', 'what', 'when', 'stars'; did you mean 'who'"
        in message
    )
    assert "has no column 'zzz' (dataset.item_column)" in message
    (tmp_path / "items.csv").write_text("what,title\n")
    values = {"item_table": tmp_path / "items.csv", "text_columns": ["title", "names"]}
    with pytest.raises(DataError, match=r"items.csv has no column 'names' \(dataset.text_columns\[1\]\)"):
        load(config("table", interactions=path, **COLUMNS, **values))


MALFORMED = [
    ("a,1,1\nb,1\nb,2,1\n", 3, "3 columns as in the header, 2 came"),
    ("a,1,1\nb,1,1,1\nb,2,1\n", 3, "3 columns as in the header, 4 came"),
    ("a,1,1\n,1,1\nb,2,1\n", 3, "an id that is not empty"),
    ("a,1,1\n\n\nb,2,1\nb, ,2\n", 6, "an id that is not empty"),
    ("a,1,1\nb,2,x\nb,2,1\n", 3, "a time that is a finite number or an ISO 8601 date"),
    ("a,1,1\nb,2,2020-01-01\nb,2,1\n", 3, "a time that is a number, as in the lines before"),
    ('a,1,1\n"b"x,2,1\nb,2,1\n', 3, "a line with sound quotes (where quotes are plain characters, dataset.quote=null"),
]


def test_lines_that_an_open_quote_takes_along_are_counted(tmp_path: Path, config: Any) -> None:
    """What is left out is never more than what is said."""
    good = "".join(f"u{number},{item},1\n" for number in range(5) for item in (1, 2))
    for bad, lost in (('"u9,1,1\n', 11), ('"u9,1,1\nu9,2,1\n"u8",1,1\n', 3)):
        (tmp_path / "t.csv").write_text("user_id,item_id,timestamp\na,1,1\na,2,1\n" + bad + good)
        dataset = load(config("table", interactions=tmp_path / "t.csv", malformed="skip"))
        assert dataset.report.counts["malformed"] == lost
        assert len(dataset.interactions.items) + lost == 2 + bad.count("\n") + 10


@pytest.mark.parametrize(("text", "line", "expected"), MALFORMED)
def test_a_malformed_line_is_named_or_counted(text: str, line: int, expected: str, tmp_path: Path, config: Any) -> None:
    (tmp_path / "t.csv").write_text("user_id,item_id,timestamp\n" + text)
    with pytest.raises(DataError) as caught:
        load(config("table", interactions=tmp_path / "t.csv"))
    assert str(caught.value).startswith(f"{tmp_path / 't.csv'}, line {line}: cannot read ")
    assert expected in str(caught.value)
    dataset = load(config("table", interactions=tmp_path / "t.csv", malformed="skip"))
    assert dataset.report.counts["malformed"] == 1
    assert len(dataset.interactions.items) == 2


def test_malformed_json_and_parquet_rows_are_named(tmp_path: Path, config: Any) -> None:
    good = '{"user_id": "a", "item_id": 1, "timestamp": 1}\n{"user_id": "a", "item_id": 2, "timestamp": 1}\n'
    wrong = ("{", "[1]", '{"user_id": true, "item_id": 1, "timestamp": 1}', '{"item_id": 1}', "[" * 100_000)
    half = r'{"user_id": "\ud83d", "item_id": 1, "timestamp": 1}'  # of a pair of surrogates
    huge = '{"user_id": "b", "item_id": 1, "timestamp": 1' + "0" * 400 + "}"
    for bad in (*wrong, half, huge):
        (tmp_path / "t.jsonl").write_text(good + bad + "\n")
        with pytest.raises(DataError, match=r"t.jsonl, line 3: cannot read"):
            load(config("table", interactions=tmp_path / "t.jsonl"))
        dataset = load(config("table", interactions=tmp_path / "t.jsonl", malformed="skip"))
        assert dataset.report.counts["malformed"] == 1
    columns = {"user_id": ["a", "a", None], "item_id": [1.0, 2.0, None], "timestamp": [1, 2, 3]}
    pq.write_table(pa.table(columns), tmp_path / "t.parquet")
    with pytest.raises(DataError, match=r"t.parquet, row 3: cannot read"):
        load(config("table", interactions=tmp_path / "t.parquet"))
    dataset = load(config("table", interactions=tmp_path / "t.parquet", malformed="skip"))
    assert dataset.catalogue.item_ids == ("1", "2")


def test_parquet_keeps_large_ids_dictionaries_and_clocks(tmp_path: Path, config: Any, histories: Any) -> None:
    big = 2**62 + 1
    table = pa.table(
        {
            "user_id": pa.array(["a", "b", "a"]).dictionary_encode(),
            "item_id": pa.array([big, big, big - 1], pa.int64()),
            "timestamp": pa.array([1_500_000_000_000_000_001, 5, 1_500_000_000_000_000_000], pa.timestamp("ns")),
        }
    )
    pq.write_table(table, tmp_path / "t.parquet", row_group_size=2)
    dataset = load(config("table", interactions=tmp_path / "t.parquet"))
    assert histories(dataset) == {"a": [str(big - 1), str(big)], "b": [str(big)]}


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("t.xlsx", b"", r"cannot tell its form from its name; expected .*\.csv, \.tsv"),
        ("t.csv", b"", "is empty: expected a header line"),
        ("t.csv", b'"user_id"x,item_id\n', "line 1: cannot read the header .*mend its quotes"),
        ("t.csv", b"user_id,user_id\n", "two columns have the same name"),
        ("t.csv", b"user_id,item_id,timestamp\n\xff,1,1\n", "is not utf-8.* text .*dataset.encoding=latin-1"),
        (
            "t.csv.gz",
            gzip.compress(b"user_id,item_id,timestamp\n" + b"a,1,1\n" * 99, mtime=0)[:-9],
            "not a sound gzip file .*damaged or truncated, fetch it again",
        ),
        ("t.csv.gz", b"user_id", "not a sound gzip file .*damaged or truncated, fetch it again"),
        ("t.jsonl", b"\n", "holds no JSON object"),
        ("t.parquet", b"PAR1", "is not a sound Parquet file"),
        ("t.csv", b"user_id,item_id,timestamp\n", "0 items .* at least 2 are needed"),
    ],
)
def test_a_file_that_is_no_table_is_told(name: str, content: bytes, expected: str, tmp_path: Path, config: Any) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=expected):
        load(config("table", interactions=tmp_path / name))


def test_a_byte_order_mark_and_another_encoding(tmp_path: Path, config: Any) -> None:
    text = "user_id,item_id,timestamp\né,1,1\né,2,2\n"
    (tmp_path / "t.csv").write_text(text, encoding="utf-8-sig")
    assert list(load(config("table", interactions=tmp_path / "t.csv")).interactions.user_ids) == ["é"]
    json_lines = '{"user_id": "é", "item_id": 1, "timestamp": 1}\n{"user_id": "é", "item_id": 2, "timestamp": 1}\n'
    (tmp_path / "t.jsonl").write_text(json_lines, encoding="utf-8-sig")
    assert list(load(config("table", interactions=tmp_path / "t.jsonl")).interactions.user_ids) == ["é"]
    (tmp_path / "t.csv").write_text(text, encoding="latin-1")
    dataset = load(config("table", interactions=tmp_path / "t.csv", encoding="latin-1"))
    assert list(dataset.interactions.user_ids) == ["é"]
    with pytest.raises(DataError, match="is not utf-16 text"):
        load(config("table", interactions=tmp_path / "t.csv", encoding="utf-16"))


def test_a_path_that_is_none_is_told(tmp_path: Path, config: Any) -> None:
    (tmp_path / "ratings.csv").write_text("")
    with pytest.raises(
        DataError, match=r"dataset.interactions=.*rating.csv: there is no such file; did you mean ratings"
    ):
        load(config("table", interactions=tmp_path / "rating.csv"))
    with pytest.raises(DataError, match=r"is a relative path, write dataset.interactions=/"):
        load(config("table", interactions="ratings.csv"))
    with pytest.raises(DataError, match=r"dataset.item_table=.*items.csv: there is no such file"):
        load(config("table", interactions=write(tmp_path / "t.csv"), item_table=tmp_path / "items.csv", **COLUMNS))
