"""What `fedrec data` says of a data set, on data small enough to count by hand, and on real ones."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from typer.testing import CliRunner

from commands.cli import app
from commands.data_facts import facts_of, show_data_facts
from fedrec.config.describe import load_member
from fedrec.core.strict_json import parsed_object
from fedrec.data.prepare import prepare
from fedrec.datasets.base import IdColumn, RawData, RawItem


def raw(times: list[float] | None, ratings: list[float] | None, text: str = "a text") -> RawData:
    """Four users with 1, 2, 3 and 4 items of five; item `e` is listed and nobody's."""
    users = [0, 1, 1, 2, 2, 2, 3, 3, 3, 3]
    items = [0, 0, 1, 0, 1, 2, 0, 1, 2, 3]
    listed = tuple(RawItem(name, name.upper(), text if name != "c" else "") for name in "abcde")
    return RawData(
        IdColumn(np.array(users, dtype=np.int32), tuple("uvwx")),
        IdColumn(np.array(items, dtype=np.int32), tuple("abcd")),
        None if times is None else np.array(times),
        None if ratings is None else np.array(ratings),
        listed,
        {},
    )


CONFIG = load_member("dataset", "table", interactions="/nowhere.csv")


def shown(data: RawData) -> str:
    text = io.StringIO()
    show_data_facts(facts_of(data, prepare(data, CONFIG)), Console(width=120, file=text))  # type: ignore[arg-type]
    return text.getvalue()


def test_what_is_said_is_counted() -> None:
    data = raw(None, None)
    found = facts_of(data, prepare(data, CONFIG)).as_dict()  # type: ignore[arg-type]
    assert list(found["per_user"].values()) == [1, 1, 2, 4, 4]
    assert (found["per_item"]["0.0"], found["per_item"]["1.0"]) == (1, 4)
    assert found["popular"] == {"1": 0.4}  # a hundredth and a tenth of four are one, with 4 of 10 interactions
    assert (found["ranked_users"], found["items_with_one_interaction"], found["items_without_text"]) == (2, 1, 1)
    assert (found["catalogue"], found["counts"]["unrated_item"]) == (5, 1)
    assert found["times"] is None
    assert found["ratings"] is None


@pytest.mark.parametrize(
    ("times", "words"),
    [
        ([874_724_710.0] * 9 + [893_286_638.0], "times: 1997-09-20 to 1998-04-22, if they are seconds since 1970"),
        ([3.0] * 9 + [8.0], "times: 3 to 8"),
        ([874_724_710_000.0] * 9 + [1.7e12], "times: 8.74725e+11 to 1.7e+12"),
        ([5.0] * 10, "times: one and the same for all interactions (5): the order of the file decides"),
        (None, "times: none: interactions keep the order of the file"),
    ],
)
def test_times_are_shown_as_what_they_may_be(times: list[float] | None, words: str) -> None:
    assert words in shown(raw(times, None))


def test_ratings_and_the_lack_of_text_are_told() -> None:
    text = shown(raw(None, [1.0] * 5 + [4.0] * 5, text=" "))
    assert "ratings: 1 to 4, 2.50 on average" in text
    assert "5 of 5 items have no text: a base table cannot be made of it" in text


def test_the_command_on_real_data(real: Path) -> None:
    result = CliRunner().invoke(app, ["data", "dataset=ml_100k", f"dataset.root={real / 'ml-100k'}", "--json"])
    assert result.exit_code == 0, result.output
    found = parsed_object(result.output.splitlines()[-1])
    assert (found["after"]["users"], found["ranked_users"], found["per_user"]["0.5"]) == (943, 943, 65)
    assert found["items_with_one_interaction"] == 141


def test_an_error_of_the_data_is_an_error_of_the_command(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["data", "dataset=ml_100k", f"dataset.root={tmp_path}"])
    assert result.exit_code == 1
    assert "error: " in result.output
