"""Amazon reviews of 2018 (Ni, Li and McAuley, 2019): review files beside `meta_*` files, JSON lines, gzipped or not."""

from __future__ import annotations

import html
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Strict

from fedrec.core.errors import DataError
from fedrec.core.registry import datasets
from fedrec.data.collect import Malformed, collect, id_text, sentence, with_items
from fedrec.data.rows import JsonLinesFile
from fedrec.datasets.base import DatasetConfig, DatasetSource, Progress, RawData, RawItem

_TAG = re.compile(r"<[^<>]*>")
_REVIEW = ("reviewerID", "asin", "unixReviewTime", "overall")
_SUFFIXES = (".json", ".json.gz")


@dataclass(frozen=True)
class AmazonConfig(DatasetConfig):
    """Configuration of `amazon`.

    Attributes:
        root: Absolute path of the folder that holds the reviews (`<category>_5.json.gz` or `<category>.json.gz`) and
            their items (`meta_<category>.json.gz`).
        category: Which of them, as in `Industrial_and_Scientific_5` (null: the folder holds one of each).
    """

    name: Literal["amazon"]
    root: Annotated[Path, Strict(False)]
    category: str | None


@datasets.register("amazon")
class Amazon(DatasetSource):
    """One category of the 2018 release; reviews of a product without a line in the meta file are unknown items."""

    config_class = AmazonConfig
    config: AmazonConfig

    def read(self, progress: Progress) -> RawData:
        """Read the reviews and the items. Raises DataError."""
        config = self.config
        reviews, meta = find_files(config.root, config.category)
        bad, bad_items = Malformed(config.malformed), Malformed(config.malformed)
        file = JsonLinesFile(reviews, "utf-8")
        raw = collect(file.place, file.rows(_REVIEW, bad), bad, timed=True, rated=True)
        # Whole categories list millions of products: the text of those without a review is not kept if not asked for.
        wanted = set(raw.items.labels) if config.items == "rated" else None
        unrated: set[str] = set()
        listed = []
        for item_id, fields in _products(JsonLinesFile(meta, "utf-8"), bad_items):
            if wanted is None or item_id in wanted:
                listed.append(_item(item_id, fields))
            else:
                unrated.add(item_id)
        return with_items(raw, listed, {"malformed_item": bad_items.count, "unrated_item": len(unrated)})


def find_files(root: Path, category: str | None) -> tuple[Path, Path]:
    """The review file and the meta file in `root`. Raises DataError if there is none, or more than one that fit."""
    if not root.is_absolute():
        raise DataError(f"dataset.root={root} is a relative path, write dataset.root={root.absolute()}")
    if not root.is_dir():
        raise DataError(f"dataset.root={root}: there is no such folder")
    names = sorted(path.name for path in root.iterdir() if path.name.endswith(_SUFFIXES))
    stem = {name: name.removesuffix(".gz").removesuffix(".json") for name in names}
    plain = category.removesuffix("_5") if category is not None else None
    metas = [n for n in names if n.startswith("meta_") and plain in (None, stem[n].removeprefix("meta_"))]
    reviews = [n for n in names if not n.startswith("meta_") and category in (None, stem[n])]
    for what, found, expected in (
        ("review file", reviews, f"{category or '<category>_5'}.json.gz"),
        ("meta file", metas, f"meta_{plain or '<category>'}.json.gz"),
    ):
        if len(found) != 1:
            there = ", ".join(found or names) or "no .json at all"
            mend = "choose with dataset.category" if found else "fetch it from the 2018 release of the Amazon reviews"
            raise DataError(
                f"{root} holds {len(found)} files that could be the {what} ({there}); expected one such as "
                f"{expected}: {mend}"
            )
    return root / reviews[0], root / metas[0]


def _products(file: JsonLinesFile, malformed: Malformed) -> Iterator[tuple[str, dict[str, Any]]]:
    for line, found in file.objects(malformed):
        try:
            item_id = id_text(found.get("asin"))
        except ValueError:
            malformed.met(f"{file.place} {line}", found, "a product with an asin")
            continue
        yield item_id, found


def _item(item_id: str, fields: dict[str, Any]) -> RawItem:
    title = _clean(fields.get("title"))
    attributes = (title, *(_clean(fields.get(name)) for name in ("brand", "category", "description")))
    return RawItem(item_id, " ".join(title.split()) if isinstance(title, str) else "", sentence(attributes))


def _clean(value: object) -> object:
    """Text without the page's markup; lists keep their shape."""
    if isinstance(value, str):
        return _TAG.sub(" ", html.unescape(value))
    return [_clean(part) for part in value] if isinstance(value, list) else None
