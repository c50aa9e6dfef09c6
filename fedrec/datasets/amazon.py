"""Amazon reviews of 2018 (Ni, Li and McAuley, 2019): review files beside `meta_*` files, JSON lines, packed or not."""

from __future__ import annotations

import html
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Strict
from typing_extensions import override

from fedrec.core.errors import DataError
from fedrec.core.registry import datasets
from fedrec.data.collect import Malformed, collect, id_text, sentence, with_items
from fedrec.data.form import suffix_of
from fedrec.data.json_lines import JsonLinesFile
from fedrec.data.reading import reading
from fedrec.datasets.base import DatasetConfig, DatasetSource, Progress, RawData, RawItem

_TAG = re.compile(r"<[^<>]*>")
_YEARS = {".json": "2018", ".jsonl": "2023"}
_MEMBERS = {"2018": "amazon", "2023": "amazon_2023"}


@dataclass(frozen=True)
class ReviewsConfig(DatasetConfig):
    """Configuration of a release of Amazon's reviews.

    Attributes:
        root: Absolute path of the folder that holds the reviews of a category and their items (`meta_<category>`).
        category: Which of them, as the review file is called without its end (null: the folder holds one of each).
    """

    root: Annotated[Path, Strict(False)]
    category: str | None


class Reviews(DatasetSource):
    """One category of a release; reviews of a product without a line in the meta file are unknown items."""

    config: ReviewsConfig

    suffix: ClassVar[str]
    """What the names of its files end in, unpacked."""
    release: ClassVar[str]
    """The year."""
    review: ClassVar[tuple[str, str, str, str]]
    """Keys of a review: user, item, time, rating."""
    attributes: ClassVar[tuple[str, ...]]
    """Keys of a product that make its sentence, beside the title."""

    @override
    def read(self, progress: Progress) -> RawData:
        """Read the reviews and the items. Raises DataError."""
        config = self.config
        reviews, meta = self.find_files(config.root, config.category)
        bad, bad_items = Malformed(config.malformed), Malformed(config.malformed)
        file = JsonLinesFile(reviews)
        raw = collect(lambda: file.place, file.rows(self.review, bad), bad, timed=True, rated=True)
        # Whole categories list millions of products: the text of those without a review is not kept if not asked for.
        wanted = set(raw.items.labels) if config.items == "rated" else None
        unrated: set[str] = set()
        listed = []
        for item_id, fields in self._products(JsonLinesFile(meta), bad_items):
            if wanted is None or item_id in wanted:
                listed.append(self._item(item_id, fields))
            else:
                unrated.add(item_id)
        return with_items(raw, listed, {"malformed_item": bad_items.count, "unrated_item": len(unrated)})

    def find_files(self, root: Path, category: str | None) -> tuple[Path, Path]:
        """The review file and the meta file in `root`. Raises DataError if none, or more than one, may be meant."""
        if not root.is_absolute():
            raise DataError(f"dataset.root={root} is a relative path, write dataset.root={root.absolute()}")
        with reading(f"dataset.root={root}", "folder"):
            if not root.is_dir():
                raise DataError(f"dataset.root={root}: there is no such folder")
            files = sorted(path.name for path in root.iterdir() if not path.name.startswith("."))
        names = [name for name in files if suffix_of(Path(name)) == self.suffix]
        stem = {name: name[: name.lower().rindex(self.suffix)] for name in names}
        plain = category.removesuffix("_5") if category is not None else None
        metas = [n for n in names if n.startswith("meta_") and plain in (None, stem[n].removeprefix("meta_"))]
        reviews = [n for n in names if not n.startswith("meta_") and category in (None, stem[n])]
        for what, found, expected in (
            ("review file", reviews, f"{category or self.example}{self.suffix}.gz"),
            ("meta file", metas, f"meta_{plain or '<category>'}{self.suffix}.gz"),
        ):
            if len(found) != 1:
                there = ", ".join(found or names) or f"no {self.suffix} at all"
                mend = (
                    "choose with dataset.category"
                    if found
                    else f"fetch it from the {self.release} release of the Amazon reviews{_other_release(files, self)}"
                )
                raise DataError(
                    f"{root} holds {len(found)} files that could be the {what} ({there}); expected one such as "
                    f"{expected}: {mend}"
                )
        return root / reviews[0], root / metas[0]

    @property
    def example(self) -> str:
        """How a review file is called, without its end."""
        return "<category>"

    def _products(self, file: JsonLinesFile, malformed: Malformed) -> Iterator[tuple[str, dict[str, Any]]]:
        key = self.review[1]
        for line, found in file.objects(malformed):
            try:
                item_id = id_text(found.get(key))
            except ValueError:
                malformed.met(f"{file.place} {line}", found, f"a product with the key {key}")
                continue
            yield item_id, found

    def _item(self, item_id: str, fields: dict[str, Any]) -> RawItem:
        title = _clean(fields.get("title"))
        attributes = (title, *(_clean(fields.get(name)) for name in self.attributes))
        return RawItem(item_id, " ".join(title.split()) if isinstance(title, str) else "", sentence(attributes))


@dataclass(frozen=True)
class AmazonConfig(ReviewsConfig):
    """Configuration of `amazon`: `<category>_5.json.gz` or `<category>.json.gz`, and `meta_<category>.json.gz`."""

    name: Literal["amazon"]


@datasets.register("amazon")
class Amazon(Reviews):
    """One category of the 2018 release."""

    config_class = AmazonConfig
    suffix, release = ".json", "2018"
    review = ("reviewerID", "asin", "unixReviewTime", "overall")
    attributes = ("brand", "category", "description")

    @property
    @override
    def example(self) -> str:
        return "<category>_5"


def _other_release(files: list[str], asked: Reviews) -> str:
    """What to choose where the files are those of the other release."""
    years = {_YEARS.get(suffix_of(Path(name))) for name in files} - {None, asked.release}
    return "".join(
        f"; files here end as those of {year}, dataset={_MEMBERS[year]}" for year in sorted(filter(None, years))
    )


def _clean(value: object) -> object:
    """Text without the page's markup; lists keep their shape."""
    if isinstance(value, str):
        return _TAG.sub(" ", html.unescape(value))
    return [_clean(part) for part in value] if isinstance(value, list) else None
