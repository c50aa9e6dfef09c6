"""Forms that people have: whatever a setting says of a table, its rows come back, or they are counted."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from fedrec.config.compose import compose
from fedrec.core.errors import ConfigError, DataError
from fedrec.data.collect import Malformed, collect
from fedrec.data.form import TextForm
from fedrec.data.prepare import load
from fedrec.data.tables import open_table

NAMES = ("user_id", "item_id", "timestamp", "title")
ROWS = [("a", "1", "3", "x"), ("a", "2", "1", "y"), ("b", "1", "2", "z")]
HISTORIES = {"a": ["2", "1"], "b": ["1"]}


def text(rows: Sequence[Sequence[str]], separator: str, header: Sequence[str] | None = NAMES, end: str = "\n") -> str:
    return "".join(separator.join(row) + end for row in ([header] if header else []) + list(rows))


def read(path: Path, form: TextForm, names: Sequence[str] = NAMES) -> tuple[list[list[Any]], int]:
    """Rows of a table, and how many lines were left out."""
    bad = Malformed("skip")
    table = open_table(path, form)
    return [list(values) for _, values in table.rows(names, bad, single=3)], bad.count


RECBOLE = ("user_id:token", "item_id:token", "timestamp:float", "title:token_seq")
FORMS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "typed header": ("t.inter", text(ROWS, "\t", RECBOLE), {}),
    "typed header, whole names": (
        "t.inter",
        text(ROWS, "\t", RECBOLE),
        {f"{kind}_column": name for kind, name in zip(("user", "item", "time"), RECBOLE, strict=False)},
    ),
    "no header": ("u.data", text(ROWS, "\t", None), {"columns": NAMES}),
    "no header, spaces": ("t.txt", text(ROWS, " ", None), {"columns": NAMES, "separator": " "}),
    "two colons": ("t.csv", text(ROWS, "::"), {"separator": "::"}),
    "two colons, no header": ("ratings.dat", text(ROWS, "::", None), {"separator": "::", "columns": NAMES}),
    "upper case": ("T.CSV", text(ROWS, ","), {}),
    "a tab, written out": ("t.csv", text(ROWS, "\t"), {"separator": "\\t"}),
    "old line ends": ("t.csv", text(ROWS, ",", end="\r"), {}),
    "old line ends without quotes": ("t.tsv", text(ROWS, "\t", end="\r"), {}),
    "Windows line ends without quotes": ("t.tsv", text(ROWS, "\t", end="\r\n"), {}),
    "blank lines before the header": ("t.csv", "\n\n" + text(ROWS, ","), {}),
    "no line end at the end": ("t.tsv", text(ROWS, "\t").rstrip("\n"), {}),
    "all in quotes": (
        "t.csv",
        text([[f'"{v}"' for v in row] for row in [NAMES, *ROWS]], ";", None),
        {"separator": ";"},
    ),
    "all in quotes, TSV": (
        "t.tsv",
        text([[f'"{v}"' for v in row] for row in [NAMES, *ROWS]], "\t", None),
        {"quote": '"'},
    ),
    "other quotes": ("t.csv", text([[f"'{v}'" for v in row] for row in [NAMES, *ROWS]], ",", None), {"quote": "'"}),
}


@pytest.mark.parametrize("case", FORMS)
def test_a_form_is_read(case: str, tmp_path: Path, config: Any, histories: Any) -> None:
    name, content, values = FORMS[case]
    (tmp_path / name).write_bytes(content.encode())
    dataset = load(config("table", interactions=tmp_path / name, **values))
    assert histories(dataset) == HISTORIES
    assert "malformed" not in dataset.report.counts


@pytest.mark.parametrize("packing", ["gz", "bz2", "xz", "GZ"])
def test_packed_text_is_read(packing: str, tmp_path: Path, config: Any, histories: Any) -> None:
    import bz2
    import gzip
    import lzma

    pack = {"gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress}[packing.lower()]
    (tmp_path / f"t.csv.{packing}").write_bytes(pack(text(ROWS, ",").encode()))
    assert histories(load(config("table", interactions=tmp_path / f"t.csv.{packing}"))) == HISTORIES


def test_a_tsv_has_no_quotes_unless_they_are_asked_for(tmp_path: Path, config: Any, histories: Any) -> None:
    (tmp_path / "t.tsv").write_text('user_id\titem_id\ttimestamp\nu\t"Heroes\t1\nu\t"b" c\t2\nu\td"\t3\nv\td"\t4\n')
    dataset = load(config("table", interactions=tmp_path / "t.tsv"))
    assert histories(dataset) == {"u": ['"Heroes', '"b" c', 'd"'], "v": ['d"']}
    with pytest.raises(
        DataError, match=r"line 2: cannot read .*sound quotes \(where quotes are plain .*dataset.quote=null"
    ):
        load(config("table", interactions=tmp_path / "t.tsv", quote='"'))
    (tmp_path / "t.csv").write_text((tmp_path / "t.tsv").read_text().replace("\t", ","))
    for none in (None, ""):
        assert histories(load(config("table", interactions=tmp_path / "t.csv", quote=none))) == histories(dataset)


def test_a_quote_that_swallows_lines_is_counted_with_all_of_them(tmp_path: Path, config: Any) -> None:
    """Whichever of the asked fields it opens: the row that comes of it has the right number of fields."""
    good = "u1,c,3\nu2,c,1\n"
    for swallowing in ('u1,"b,1\nu1,c,2\nu1,d",5\n', '"u1,b,1\nu1,c,2\nu1",d,5\n', 'u1,b,"1\nu1,c,2\nu1,d,5"\n'):
        (tmp_path / "t.csv").write_text("user_id,item_id,timestamp\n" + swallowing + good)
        with pytest.raises(DataError, match=r"t.csv, line 2: cannot read .*sound quotes"):
            load(config("table", interactions=tmp_path / "t.csv"))
        rows, lost = read(tmp_path / "t.csv", TextForm(), NAMES[:3])
        assert (len(rows), lost) == (2, 3)


def test_the_escape_of_mysql(tmp_path: Path, config: Any) -> None:
    """As the best known dump of book ratings has it."""
    (tmp_path / "r.csv").write_text(
        '"User-ID";"ISBN";"Rating"\r\n"1";"0001";"0"\r\n"1";"0002";"5"\r\n\\N;"0002";"5"\r\n'
    )
    (tmp_path / "b.csv").write_bytes(
        '"ISBN";"Title";"Text"\r\n"0001";"Café";"a"\r\n"0002";"The \\"Best\\"; of it";\\N\r\n'.encode("latin-1")
    )
    values = {"user_column": "User-ID", "item_column": "ISBN", "time_column": None, "title_column": "Title"}
    values |= {"interactions": tmp_path / "r.csv", "item_table": tmp_path / "b.csv", "separator": ";"}
    values |= {"encoding": "latin-1", "malformed": "skip"}
    dataset = load(config("table", **values, escape="\\"))
    assert dataset.catalogue.titles == ("Café", 'The "Best"; of it')
    assert dataset.catalogue.sentences == ("Café. a.", 'The "Best"; of it.')
    assert dataset.report.counts["malformed"] == 1, "the user that is missing"
    assert "malformed_item" not in dataset.report.counts
    with pytest.raises(DataError, match=r"b.csv, line 3: cannot read .*dataset.item_escape='\\\\'"):
        load(config("table", **(values | {"malformed": "error", "escape": None, "user_column": "User-ID"})))


def test_the_item_table_has_settings_of_its_own(tmp_path: Path, config: Any) -> None:
    (tmp_path / "r.tsv").write_text("José\t1\t1\nJosé\t2\t2\n")
    (tmp_path / "i.csv").write_bytes("1;'Café; ''red'''\n2;lamp\n".encode("cp1252"))
    dataset = load(
        config(
            "table",
            interactions=tmp_path / "r.tsv",
            columns=["user_id", "item_id", "timestamp"],
            item_table=tmp_path / "i.csv",
            item_columns=["item_id", "title"],
            item_separator=";",
            item_encoding="cp1252",
            item_quote="'",
        )
    )
    assert list(dataset.interactions.user_ids) == ["José"]
    assert dataset.catalogue.titles == ("Café; 'red'", "lamp")


def test_an_encoding_that_would_spoil_letters_is_refused(tmp_path: Path, config: Any, histories: Any) -> None:
    (tmp_path / "t.csv").write_text("user_id,item_id,timestamp\nJosé,1,1\nJosé,2,2\n", encoding="utf-8")
    for encoding in ("latin-1", "cp1252", "iso-8859-15"):
        with pytest.raises(
            DataError, match=r"t.csv is UTF-8 text, whose letters .* spoil; read it with dataset.encoding="
        ):
            load(config("table", interactions=tmp_path / "t.csv", encoding=encoding))
    (tmp_path / "t.csv").write_text("user_id,item_id,timestamp\nJose,1,1\nJose,2,2\n")
    assert histories(load(config("table", interactions=tmp_path / "t.csv", encoding="latin-1"))) == {"Jose": ["1", "2"]}
    (tmp_path / "t.csv").write_text(text(ROWS, ","), encoding="utf-16")
    with pytest.raises(DataError, match=r"is not utf-8 text .*dataset.encoding=utf-16"):
        load(config("table", interactions=tmp_path / "t.csv"))
    assert histories(load(config("table", interactions=tmp_path / "t.csv", encoding="utf-16"))) == HISTORIES
    (tmp_path / "t.csv").write_text(text(ROWS, ","), encoding="utf-16-le")
    with pytest.raises(DataError, match=r"holds NUL characters: is it dataset.encoding=utf-16\?"):
        load(config("table", interactions=tmp_path / "t.csv"))


def test_a_file_of_another_form_than_its_name_tells(tmp_path: Path, config: Any) -> None:
    import gzip

    path = tmp_path / "t.csv"
    parquet = pa.table({"user_id": ["a"], "item_id": ["é"], "timestamp": [1]})
    pq.write_table(parquet, tmp_path / "t.parquet")
    for content, form in (
        (gzip.compress(text(ROWS, ",").encode()), "a gzip file"),
        ((tmp_path / "t.parquet").read_bytes() + b"\xff", "a Parquet file"),
    ):
        path.write_bytes(content)
        with pytest.raises(DataError, match=rf"t.csv is no text, it begins as {form} .*: give it the right name"):
            load(config("table", interactions=path))


def test_a_configuration_tells_all_that_is_wrong_with_its_table(tmp_path: Path) -> None:
    wrong = ["dataset.separator=", "dataset.quote=ab", "dataset.item_encoding=x", "dataset.columns=[a,a]"]
    with pytest.raises(ConfigError) as caught:
        compose(["dataset=table", "dataset.item_table=i.csv", *wrong], base=tmp_path)
    told = str(caught.value)
    for part in (*(word.split("=")[0] for word in wrong), "dataset.interactions: a simulation needs a value"):
        assert f"- {part}" in told
    with pytest.raises(ConfigError) as caught:
        compose(
            ["dataset=table", "dataset.interactions=r.csv", "dataset.escape=\\", "dataset.item_separator=::"],
            base=tmp_path,
        )
    assert "dataset.item_escape='\\\\': needs a separator of one character, got '::'; or give ''" in str(caught.value)


def test_a_field_may_be_long(tmp_path: Path, config: Any) -> None:
    (tmp_path / "t.csv").write_text(text(ROWS, ","))
    chapter = "word " * 60_000
    (tmp_path / "i.csv").write_text(f'item_id,title,text\n1,one,"{chapter}"\n2,two,"{chapter}"\n')
    dataset = load(config("table", interactions=tmp_path / "t.csv", item_table=tmp_path / "i.csv"))
    assert len(dataset.catalogue.sentences[0]) > 299_000


def test_a_file_without_a_header_never_loses_its_first_line(tmp_path: Path, config: Any, histories: Any) -> None:
    path = tmp_path / "u.tsv"
    path.write_text("196\t242\t3\t881250949\n196\t243\t3\t881250950\n")
    named = r"looks like data .* 4 columns in their order, as in dataset.columns=\[user_id,item_id,timestamp\]"
    wrong = {"user_column": "196", "item_column": "242", "time_column": "881250949"}
    for values in ({}, wrong, wrong | {"time_column": None}, {"item_column": "242"}):
        with pytest.raises(DataError, match=named):
            load(config("table", interactions=path, **values))
    dataset = load(config("table", interactions=path, columns=["user_id", "item_id", "stars", "timestamp"]))
    assert histories(dataset) == {"196": ["242", "243"]}
    path.write_text("ann\tred lamp\nann\tblue lamp\n")
    with pytest.raises(DataError, match=r"u.tsv, line 2: has the same id as the first line"):
        load(config("table", interactions=path, user_column="ann", item_column="red lamp", time_column=None))
    with pytest.raises(DataError, match=r"no column 'user_id'.* if it has no header line, name its columns"):
        load(config("table", interactions=path, time_column=None))


def test_a_header_among_the_data_is_malformed(tmp_path: Path, config: Any) -> None:
    """Of two files that were joined, and of one that is said to have none."""
    (tmp_path / "t.csv").write_text(text(ROWS, ",") + text(ROWS[:1], ","))
    with pytest.raises(DataError, match=r"line 5: .*not the header line once more"):
        load(config("table", interactions=tmp_path / "t.csv", time_column=None))
    dataset = load(config("table", interactions=tmp_path / "t.csv", time_column=None, malformed="skip"))
    assert (dataset.report.counts["malformed"], sorted(dataset.interactions.user_ids)) == (1, ["a", "b"])
    with pytest.raises(DataError, match=r"line 1: .*not a header line; a file that has one needs dataset.columns=null"):
        load(config("table", interactions=tmp_path / "t.csv", time_column=None, columns=NAMES))


def test_hints_say_what_may_be_meant(tmp_path: Path, config: Any) -> None:
    path = tmp_path / "t.csv"
    for content, hint in (
        ("user_id::item_id::timestamp\n", "its first line holds '::': dataset.separator=::?"),
        ("USER_ID,ITEM_ID,TIMESTAMP\n", "no column 'user_id' (dataset.user_column); found 'USER_ID', 'ITEM_ID', "),
        ("USER_ID,ITEM_ID,TIMESTAMP\n", "'TIMESTAMP'; did you mean 'USER_ID'? Set dataset.user_column"),
        ("user_id, item_id, timestamp\n", "did you mean ' item_id'?"),
        ("sep=;\nuser_id;item_id;timestamp\n", "tells a spreadsheet the separator: remove that line"),
        ("x" * 10**6 + "\n", "found 'xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx...'. Set"),
        ("user_id;item_id;timestamp\n", "its first line holds ';': \"dataset.separator=';'\"?"),
        ("user_id\titem_id\ttimestamp\n", "dataset.separator='\\t'"),
    ):
        path.write_text(content)
        with pytest.raises(DataError) as caught:
            load(config("table", interactions=path))
        assert hint in str(caught.value)
        assert len(str(caught.value)) < 2000
    (tmp_path / "t.tsv").write_text('"user_id"\t"item_id"\t"timestamp"\n')
    with pytest.raises(DataError, match=r"its names stand in quotes: set .dataset.quote='"):
        load(config("table", interactions=tmp_path / "t.tsv"))


@pytest.mark.parametrize(
    ("form", "expected"),
    [
        (TextForm(separator=""), "dataset.separator='': cannot stand between fields"),
        (TextForm(separator="\n"), "dataset.separator="),
        (TextForm(quote="''"), "dataset.quote=\"''\": expected one character"),
        (TextForm(separator=";", quote=";"), "dataset.quote=';': expected one character"),
        (TextForm(separator="::", quote='"'), "needs a separator of one character, got '::'"),
        (TextForm(separator="::", escape="\\"), "needs a separator of one character, got '::'"),
        (TextForm(quote='"', escape='"'), "is the quote too"),
        (TextForm(encoding="utf-ate"), "dataset.encoding='utf-ate': there is no encoding of that name for text"),
        (TextForm(encoding="hex"), "there is no encoding of that name for text"),
        (TextForm(encoding="a\0b"), "there is no encoding of that name for text"),
        (TextForm(columns=("a", "b", "a")), "dataset.columns: a is there twice"),
        (TextForm(columns=("a", "")), "dataset.columns: a name is empty"),
        (TextForm(separator="", encoding="x", prefix=""), "separator='': cannot"),
    ],
)
def test_settings_that_cannot_be_meant_are_told(form: TextForm, expected: str, tmp_path: Path) -> None:
    assert expected in "; ".join(form.problems())
    (tmp_path / "t.csv").write_text(text(ROWS, ","))
    with pytest.raises(DataError):
        open_table(tmp_path / "t.csv", form).columns  # noqa: B018


def test_a_quote_that_is_the_separator_of_the_file_is_told(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(text(ROWS, ","))
    with pytest.raises(DataError, match=r"dataset.quote=',': expected one character that is no separator"):
        open_table(tmp_path / "t.csv", TextForm(quote=","))


def test_names_that_tell_no_form_and_paths_that_are_no_files(tmp_path: Path, config: Any) -> None:
    import os

    (tmp_path / "t.csv.zip").write_bytes(b"PK")
    with pytest.raises(DataError, match=r"t.csv.zip: cannot tell its form .*unpack an archive"):
        load(config("table", interactions=tmp_path / "t.csv.zip"))
    os.mkfifo(tmp_path / "t.csv")
    with pytest.raises(DataError, match=r"t.csv is a pipe or a device; expected a file"):
        load(config("table", interactions=tmp_path / "t.csv"))
    (tmp_path / "t.jsonl").write_text("{}\n")
    with pytest.raises(DataError, match=r"t.jsonl names its columns itself, .*give dataset.columns=null"):
        load(config("table", interactions=tmp_path / "t.jsonl", columns=["user_id", "item_id", "timestamp"]))
    long = "x" * 300
    with pytest.raises(DataError, match=r"cannot read .*File name too long"):
        load(config("table", interactions=tmp_path / f"{long}.csv"))


def test_columns_of_json_lines_are_the_keys_of_all_objects(tmp_path: Path, config: Any) -> None:
    (tmp_path / "t.csv").write_text(text(ROWS, ","))
    lines = [{"item_id": "1"}, {"item_id": "2", "title": "lamp"}, {"item_id": "3", "tags": ["red", "new"]}]
    (tmp_path / "i.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    values = {"interactions": tmp_path / "t.csv", "item_table": tmp_path / "i.jsonl"}
    assert load(config("table", **values)).catalogue.sentences == ("", "lamp.", "red, new.")
    assert load(config("table", **values, text_columns=["tags"])).catalogue.sentences == ("", "", "red, new.")
    with pytest.raises(DataError, match=r"no column 'brand' .*found 'item_id', 'title', 'tags'"):
        load(config("table", **values, text_columns=["brand"]))


def test_a_json_array_and_a_key_twice_are_told(tmp_path: Path, config: Any, histories: Any) -> None:
    (tmp_path / "t.json").write_text(json.dumps([dict(zip(NAMES, row, strict=True)) for row in ROWS]))
    for malformed in ("error", "skip"):
        with pytest.raises(DataError, match=r"t.json, line 1: begins a JSON array; expected one object a line"):
            load(config("table", interactions=tmp_path / "t.json", malformed=malformed))
    good = '{"user_id": "a", "item_id": "item_id", "timestamp": 1}\n{"user_id": "a", "item_id": 2, "timestamp": 1}\n'
    twice = '{"user_id": "a", "item_id": 1, "item_id": 3, "timestamp": 1}\n'
    deeper = '{"user_id": "a", "item_id": 4, "timestamp": 1, "also": {"item_id": 5}}\n'
    (tmp_path / "t.jsonl").write_text(good + deeper + twice)
    with pytest.raises(DataError, match=r"line 4: .*expected an object that has the key 'item_id' once"):
        load(config("table", interactions=tmp_path / "t.jsonl"))
    dataset = load(config("table", interactions=tmp_path / "t.jsonl", malformed="skip"))
    assert histories(dataset) == {"a": ["item_id", "2", "4"]}


LETTERS = st.characters(codec="utf-8", exclude_characters="\0\r\n\ufeff")
FIELD = st.text(LETTERS, max_size=8)
ID = st.text(LETTERS, min_size=1, max_size=6).filter(lambda value: value.strip())
TABLES = st.lists(st.tuples(ID, ID, st.integers(0, 10**12).map(str), FIELD), min_size=1, max_size=8)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=TABLES,
    separator=st.sampled_from([",", ";", "\t", "|", " "]),
    quote=st.sampled_from(['"', "'"]),
    escape=st.sampled_from([None, "\\"]),
    header=st.booleans(),
    end=st.sampled_from(["\n", "\r\n"]),
)
def test_what_is_written_with_quotes_reads_back(
    rows: list[tuple[str, ...]], separator: str, quote: str, escape: str | None, header: bool, end: str, tmp_path: Path
) -> None:
    assume(all(row[:2] != NAMES[:2] and row[0] != NAMES[0] for row in rows))
    path = tmp_path / "t.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(
            file,
            delimiter=separator,
            quotechar=quote,
            escapechar=escape,
            doublequote=escape is None,
            lineterminator=end,
            quoting=csv.QUOTE_ALL,
        )
        writer.writerows([NAMES, *rows] if header else rows)
    form = TextForm(separator=separator, quote=quote, escape=escape, columns=None if header else NAMES)
    assert read(path, form) == ([list(row) for row in rows], 0)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=TABLES, separator=st.sampled_from(["\t", "::", "|", ","]), name=st.sampled_from(["t.tsv", "t.dat", "T.TXT"])
)
def test_lines_without_quotes_read_back_or_are_counted(
    rows: list[tuple[str, ...]], separator: str, name: str, tmp_path: Path
) -> None:
    path = tmp_path / name
    path.write_bytes(text(rows, separator, None).encode())
    found, lost = read(path, TextForm(separator=separator, quote=None, columns=NAMES))
    assert len(found) + lost == len(rows)
    # A line is left out if a field holds the separator: then it has too many fields.
    fields = [separator.join(row).split(separator) for row in rows]
    assert found == [values for values in fields if len(values) == len(NAMES)]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=TABLES)
def test_all_forms_of_a_table_give_the_same_rows(rows: list[tuple[str, ...]], tmp_path: Path) -> None:
    assume(all(row[0] != NAMES[0] for row in rows))
    with (tmp_path / "t.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([NAMES, *rows])
    objects = [dict(zip(NAMES, row, strict=True)) for row in rows]
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(one, ensure_ascii=False) + "\n" for one in objects))
    pq.write_table(pa.Table.from_pylist(objects), tmp_path / "t.parquet")
    expected = ([list(row) for row in rows], 0)
    for name in ("t.csv", "t.jsonl", "t.parquet"):
        assert read(tmp_path / name, TextForm()) == expected, name


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    content=st.text(st.sampled_from(list('a1,"\t\\\n\r;')), max_size=60),
    name=st.sampled_from(["t.csv", "t.tsv"]),
    escape=st.sampled_from([None, "\\"]),
)
def test_no_line_of_any_file_is_lost_uncounted(content: str, name: str, escape: str | None, tmp_path: Path) -> None:
    """Every line with something on it is a row, or part of one whose last field may hold line ends, or counted."""
    path = tmp_path / name
    path.write_bytes(content.encode())
    bad = Malformed("skip")
    table = open_table(path, TextForm(columns=("user_id", "item_id"), escape=escape))
    got = collect(
        lambda: table.place,
        ((line, (user, item, None, None)) for line, (user, item) in table.rows(("user_id", "item_id"), bad, single=2)),
        bad,
        timed=False,
        rated=False,
    )
    lines = [line for line in content.replace("\r\n", "\n").replace("\r", "\n").split("\n") if line]
    assert len(got.users) + bad.count >= len(lines)
    assert len(got.users) <= len(lines)
