"""Any table of interactions, with an optional table of items: delimited text, JSON lines or Parquet."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, cast

from annotated_types import MinLen
from pydantic import Strict

from fedrec.core.errors import DataError
from fedrec.core.registry import datasets
from fedrec.data.collect import Malformed, id_text, sentence, with_items
from fedrec.data.form import AUTO, ITEMS, TextForm
from fedrec.data.rows import TableFile
from fedrec.data.tables import interactions_in, open_table, require_table
from fedrec.datasets.base import DatasetConfig, DatasetSource, Progress, RawData, RawItem

if TYPE_CHECKING:
    from fedrec.config.schema import RunConfig

ColumnName = Annotated[str, MinLen(1)]


@dataclass(frozen=True)
class TableConfig(DatasetConfig):
    """Configuration of `table`.

    Attributes:
        interactions: Absolute path of the table of interactions, a file or a folder of parts. Needed in a simulation; a
            deployment does not read it (null: none).
        user_column: Its column of user ids (of any type; read as text).
        item_column: Its column of item ids.
        time_column: Its column of times, numbers or ISO 8601 dates (null: the order in the file is the order in time).
        rating_column: Its column of ratings (null: none).
        item_table: Absolute path of the table of items, as above (null: every item that occurs is known, without text).
        item_id_column: Its column of item ids (null: as `item_column`).
        title_column: Its column of titles (null: the id is the title).
        text_columns: Its columns that make an item's sentence, in this order (null: all but the id).
        separator: Between the fields of a line (null: a comma in .csv, a tab in all other text).
        encoding: Of text.
        quote: Around a field that may hold separators (auto: `"` unless the separator is a tab or several characters;
            null: none).
        escape: Before a character that is to be taken as it is (null: none).
        columns: Names of the columns of interactions without a header line, in their order (null: they have one).
        item_separator: As `separator`, of the table of items (null: as `separator`; so of the next three).
        item_encoding: As `encoding`.
        item_quote: As `quote` (empty: none).
        item_escape: As `escape` (empty: none).
        item_columns: As `columns`, of the table of items (null: it has a header line).
    """

    name: Literal["table"]
    interactions: Annotated[Path, Strict(False)] | None
    user_column: ColumnName
    item_column: ColumnName
    time_column: ColumnName | None
    rating_column: ColumnName | None
    item_table: Annotated[Path, Strict(False)] | None
    item_id_column: ColumnName | None
    title_column: ColumnName | None
    text_columns: Annotated[tuple[ColumnName, ...], Strict(False)] | None
    separator: str | None
    encoding: str
    quote: str | None
    escape: str | None
    columns: Annotated[tuple[ColumnName, ...], Strict(False)] | None
    item_separator: str | None
    item_encoding: str | None
    item_quote: str | None
    item_escape: str | None
    item_columns: Annotated[tuple[ColumnName, ...], Strict(False)] | None

    @property
    def form(self) -> TextForm:
        """How the interactions are read."""
        return TextForm(self.separator, self.encoding, self.quote, self.escape, self.columns)

    @property
    def own_item_form(self) -> TextForm:
        """What is said of the table of items alone."""
        return TextForm(
            self.item_separator,
            "utf-8" if self.item_encoding is None else self.item_encoding,
            AUTO if self.item_quote is None else self.item_quote,
            self.item_escape,
            self.item_columns,
            ITEMS,
        )

    @property
    def item_form(self) -> TextForm:
        """How the table of items is read: as the interactions where nothing else is said."""
        return TextForm(
            self.separator if self.item_separator is None else self.item_separator,
            self.encoding if self.item_encoding is None else self.item_encoding,
            self.quote if self.item_quote is None else self.item_quote,
            self.escape if self.item_escape is None else self.item_escape,
            self.item_columns,
            ITEMS,
        )


@datasets.register("table")
class Table(DatasetSource):
    """Reads tables of one's own."""

    config_class = TableConfig
    config: TableConfig

    @classmethod
    def problems(cls, config: RunConfig) -> list[str]:
        """What is wrong with the configuration as a whole."""
        chosen = cast(TableConfig, config.dataset)
        # What the item table takes over is not said twice; together with its own settings it may still be wrong.
        problems = chosen.form.problems() + chosen.own_item_form.problems() or chosen.item_form.problems()
        if config.runtime == "simulation" and chosen.interactions is None:
            problems.append("dataset.interactions: a simulation needs a value: give dataset.interactions=... (a path)")
        if config.runtime == "deployment" and chosen.item_table is None:
            problems.append("dataset.item_table: a deployment needs a value: give dataset.item_table=... (a path)")
        return problems

    def read(self, progress: Progress) -> RawData:
        """Read both tables. Raises DataError."""
        config = self.config
        if config.interactions is None:
            raise DataError("dataset=table has no table of interactions: give dataset.interactions=... (a path)")
        table = open_table(require_table(config.interactions, "dataset.interactions"), config.form)
        bad, bad_items = Malformed(config.malformed), Malformed(config.malformed)
        timed, rated = config.time_column is not None, config.rating_column is not None
        raw = interactions_in(table, self._columns(table), bad, timed=timed, rated=rated)
        if config.item_table is None:
            return raw
        listed = self._listed(config.item_table, bad_items)
        return with_items(raw, listed, {"malformed_item": bad_items.count})

    def list_items(self, progress: Progress) -> tuple[tuple[RawItem, ...], dict[str, int]]:
        """As in `DatasetSource`: the table of items alone."""
        if self.config.item_table is None:
            raise DataError("dataset=table has no table of items: give dataset.item_table=... (a path)")
        bad = Malformed(self.config.malformed)
        listed = self._listed(self.config.item_table, bad)
        return tuple(listed), {"malformed_item": bad.count} if bad.count else {}

    def _listed(self, path: Path, bad: Malformed) -> list[RawItem]:
        table = open_table(require_table(path, "dataset.item_table"), self.config.item_form)
        return list(self._items(table, bad))

    def _columns(self, table: TableFile) -> list[str]:
        """The columns of the interactions. Raises DataError if one is not there."""
        config = self.config
        wanted = {
            "dataset.user_column": config.user_column,
            "dataset.item_column": config.item_column,
            "dataset.time_column": config.time_column,
            "dataset.rating_column": config.rating_column,
        }
        table.require({setting: name for setting, name in wanted.items() if name is not None})
        # A column that is not there is filled with the users': it is not looked at.
        return [name or config.user_column for name in wanted.values()]

    def _items(self, table: TableFile, malformed: Malformed) -> Iterator[RawItem]:
        config = self.config
        id_column = config.item_id_column or config.item_column
        wanted = {"dataset.item_id_column": id_column}
        if config.title_column is not None:
            wanted["dataset.title_column"] = config.title_column
        texts = config.text_columns
        wanted |= {f"dataset.text_columns[{n}]": name for n, name in enumerate(texts or ())}
        table.require(wanted)
        if texts is None:
            texts = tuple(name for name in table.columns if name != table.find(id_column))
        for line, (item, title, *parts) in table.rows([id_column, config.title_column or id_column, *texts], malformed):
            try:
                item_id = id_text(item)
            except ValueError as error:
                malformed.met(f"{table.place} {line}", item, str(error))
                continue
            title = "" if title is None or config.title_column is None else " ".join(str(title).split())
            # "Action|Comedy" is how MovieLens and many others write a list.
            yield RawItem(item_id, title, sentence(p.split("|") if isinstance(p, str) else p for p in parts))
