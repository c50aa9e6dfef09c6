"""The 2018 Amazon files: reviews beside products, gzipped or not, with the faults that the release has."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from fedrec.core.errors import DataError
from fedrec.data.prepare import load

REVIEWS = [
    {"reviewerID": "A1", "asin": "0001", "overall": 5.0, "unixReviewTime": 30, "reviewText": "good"},
    {"reviewerID": "A1", "asin": "0002", "overall": 2.0, "unixReviewTime": 10},
    {"reviewerID": "A2", "asin": "0001", "overall": 4.0, "unixReviewTime": 20},
    {"reviewerID": "A2", "asin": "GONE", "overall": 4.0, "unixReviewTime": 21},
    {"reviewerID": "A1", "asin": "0001", "overall": 1.0, "unixReviewTime": 40},
]
PRODUCTS = [
    {
        "asin": "0002",
        "title": "Nuts &amp; <b>bolts</b>",
        "brand": "Acme",
        "description": ["Strong.", ""],
        "category": ["Tools", "Small"],
    },
    {"asin": "0001", "title": "", "brand": None, "description": []},
    {"asin": "0002", "title": "Again"},
    {"asin": "0009", "title": "Never bought"},
    {"asin": "0009", "title": "Never bought, again"},
]


def write(path: Path, rows: list[Any], extra: str = "") -> None:
    text = "".join(json.dumps(row) + "\n" for row in rows) + extra
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())


@pytest.mark.parametrize("suffix", [".json.gz", ".json"])
def test_a_category_is_read(suffix: str, tmp_path: Path, config: Any) -> None:
    write(tmp_path / f"Tools_5{suffix}", REVIEWS)
    write(tmp_path / f"meta_Tools{suffix}", PRODUCTS)
    dataset = load(config("amazon", root=tmp_path, k_core=0))
    assert dataset.catalogue.item_ids == ("0002", "0001")
    assert dataset.catalogue.titles == ("Nuts & bolts", "0001")
    assert dataset.catalogue.sentences == ("Nuts & bolts. Acme. Tools, Small. Strong.", "")
    assert list(dataset.interactions.user_ids) == ["A1", "A2"]
    assert dataset.interactions.items.tolist() == [0, 1, 1]
    assert dataset.report.counts == {
        "unknown_item": 1,
        "duplicate": 1,
        "duplicate_item": 1,
        "unrated_item": 1,
        "users_too_short": 2,
    }
    listed = load(config("amazon", root=tmp_path, k_core=0, items="listed"))
    assert listed.catalogue.item_ids == ("0002", "0001", "0009")
    assert listed.report.counts["unrated_item"] == 1
    assert listed.report.counts["duplicate_item"] == 2


def test_malformed_lines_are_named_or_counted(tmp_path: Path, config: Any) -> None:
    write(tmp_path / "Tools_5.json", REVIEWS, '{"reviewerID": "A3", "asin"\n{"asin": "0001", "unixReviewTime": 3}\n')
    write(tmp_path / "meta_Tools.json", PRODUCTS, '{"title": "no asin"}\nnull\n')
    with pytest.raises(DataError, match=r"Tools_5.json, line 6: cannot read .*expected one JSON object"):
        load(config("amazon", root=tmp_path))
    dataset = load(config("amazon", root=tmp_path, k_core=0, malformed="skip"))
    assert dataset.report.counts["malformed"] == 2
    assert dataset.report.counts["malformed_item"] == 2
    write(tmp_path / "Tools_5.json", REVIEWS)
    with pytest.raises(DataError, match=r"meta_Tools.json, line 6: cannot read .*expected a product with the key asin"):
        load(config("amazon", root=tmp_path))


def test_a_truncated_download_is_told(tmp_path: Path, config: Any) -> None:
    write(tmp_path / "Tools_5.json.gz", REVIEWS)
    write(tmp_path / "meta_Tools.json.gz", PRODUCTS)
    path = tmp_path / "Tools_5.json.gz"
    path.write_bytes(path.read_bytes()[:-12])
    with pytest.raises(
        DataError, match=r"Tools_5.json.gz is not a sound gzip file .*damaged or truncated, fetch it again"
    ):
        load(config("amazon", root=tmp_path))


def test_the_category_chooses(tmp_path: Path, config: Any) -> None:
    for category in ("Tools", "Toys"):
        write(tmp_path / f"{category}_5.json", REVIEWS)
        write(tmp_path / f"{category}.json", REVIEWS)
        write(tmp_path / f"meta_{category}.json", PRODUCTS)
    with pytest.raises(DataError, match=r"holds 4 files that could be the review file .*choose with dataset.category"):
        load(config("amazon", root=tmp_path))
    for category in ("Toys_5", "Toys"):
        assert load(config("amazon", root=tmp_path, category=category, k_core=0)).interactions.users == 2
    with pytest.raises(DataError, match=r"holds 0 files that could be the review file .*expected one such as Books"):
        load(config("amazon", root=tmp_path, category="Books_5"))


REVIEWS_2023 = [
    {"rating": 5.0, "title": "Good", "asin": "B1", "parent_asin": "P1", "user_id": "U1", "timestamp": 1588687728923},
    {"rating": 2.0, "asin": "B2", "parent_asin": "P2", "user_id": "U1", "timestamp": 1588687728922},
    {"rating": 1.0, "asin": "B3", "parent_asin": "P1", "user_id": "U2", "timestamp": 3},
    {"rating": 4.0, "asin": "B1", "parent_asin": "P1", "user_id": "U1", "timestamp": 1588687728999},
]
PRODUCTS_2023 = [
    {
        "main_category": "All Beauty",
        "title": "Nail <i>file</i>",
        "average_rating": 4.8,
        "features": ["Steel &amp; glass", "Long"],
        "description": ["For nails."],
        "price": None,
        "images": [{"thumb": "https://x"}],
        "store": "Acme",
        "categories": [],
        "details": {"Brand": "Acme"},
        "parent_asin": "P1",
        "bought_together": None,
    },
    {"main_category": None, "title": "Soap", "features": [], "description": [], "parent_asin": "P2"},
    {"title": "Never bought", "parent_asin": "P3"},
]


@pytest.mark.parametrize("suffix", [".jsonl.gz", ".jsonl", ".JSONL"])
def test_the_release_of_2023_is_read(suffix: str, tmp_path: Path, config: Any) -> None:
    write(tmp_path / f"All_Beauty{suffix}", REVIEWS_2023)
    write(tmp_path / f"meta_All_Beauty{suffix}", PRODUCTS_2023)
    dataset = load(config("amazon_2023", root=tmp_path, k_core=0))
    assert dataset.catalogue.item_ids == ("P1", "P2")
    assert dataset.catalogue.titles == ("Nail file", "Soap")
    assert dataset.catalogue.sentences == (
        "Nail file. Acme. All Beauty. Steel & glass, Long. For nails.",
        "Soap.",
    )
    assert dataset.interactions.history(0).tolist() == [1, 0], "by time, to the millisecond"
    assert dataset.report.counts == {"duplicate": 1, "unrated_item": 1, "users_too_short": 2}
    rated = load(config("amazon_2023", root=tmp_path, k_core=0, min_rating=2, category="All_Beauty", items="listed"))
    assert rated.report.counts["low_rating"] == 1


def test_the_other_release_is_named(tmp_path: Path, config: Any) -> None:
    write(tmp_path / "All_Beauty.jsonl.gz", REVIEWS_2023)
    write(tmp_path / "meta_All_Beauty.jsonl.gz", PRODUCTS_2023)
    with pytest.raises(DataError, match=r"no \.json at all.*files here end as those of 2023, dataset=amazon_2023"):
        load(config("amazon", root=tmp_path))
    (tmp_path / "All_Beauty.jsonl.gz").unlink()
    write(tmp_path / "All_Beauty_5.json.gz", REVIEWS)
    with pytest.raises(DataError, match=r"files here end as those of 2018, dataset=amazon$"):
        load(config("amazon_2023", root=tmp_path))


def test_missing_files_are_told(tmp_path: Path, config: Any) -> None:
    with pytest.raises(DataError, match=r"0 files that could be the review file \(no .json at all\)"):
        load(config("amazon", root=tmp_path))
    write(tmp_path / "Tools_5.json", REVIEWS)
    with pytest.raises(DataError, match=r"0 files that could be the meta file \(Tools_5.json\); expected .* fetch it"):
        load(config("amazon", root=tmp_path))
    with pytest.raises(DataError, match="there is no such folder"):
        load(config("amazon", root=tmp_path / "none"))
    with pytest.raises(DataError, match="is a relative path"):
        load(config("amazon", root="here"))
