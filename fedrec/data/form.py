"""The form of a table in a file: what its name tells, and how its text is to be read. Light, for clients load it."""

from __future__ import annotations

import codecs
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

SEPARATORS = {
    ".csv": ",",
    ".tsv": "\t",
    ".txt": "\t",
    ".dat": "\t",
    ".data": "\t",
    ".inter": "\t",
    ".item": "\t",
    ".user": "\t",
}
"""Text with fields in lines, by the end of its name, and what separates the fields if nothing else is said."""
JSON_LINES = (".jsonl", ".ndjson", ".json")
PARQUET = (".parquet", ".pq")
SUFFIXES = (*SEPARATORS, *JSON_LINES, *PARQUET)
"""Ends of names that tell a form, in lower case; a file's own may be in upper case."""
PACKED = (".gz", ".bz2", ".xz")
"""Ends that a text file may have after its own."""

AUTO = "auto"
ITEMS = "dataset.item_"
"""The prefix of the settings of the item table."""
_LINE_ENDS = "\r\n"
_PLAIN = re.compile(r"[\w.,:-]+|\[[\w,]+\]")


def suffix_of(path: Path) -> str:
    """The end of a name that tells the form, in lower case, without that of its packing."""
    name = path.name.lower()
    for packed in PACKED:
        name = name.removesuffix(packed)
    return Path(name).suffix


def is_packed(path: Path) -> bool:
    """Whether the name says that the file is compressed."""
    return path.name.lower().endswith(PACKED)


def unknown_form() -> str:
    """What is wrong with a name that tells no form, and how to mend it."""
    ends = ", ".join(SUFFIXES)
    return (
        f"cannot tell its form from its name; expected a name that ends in {ends} (text also in {', '.join(PACKED)}), "
        "or a folder of such files: rename it, unpack an archive, or export a sheet as .csv"
    )


@dataclass(frozen=True)
class TextForm:
    r"""How a text file is to be read; what is not text (Parquet) or has a syntax of its own (JSON) has less of it.

    Attributes:
        separator: Between the fields of a line, one character or more (None: as the file's name tells).
        encoding: Of the text.
        quote: The character around a field that may hold separators and line ends ("auto": `"` where the separator is
            one character and no tab; None or empty: none, every character is the field's own).
        escape: The character before one that is to be taken as it is; `\N` alone in a field is then an empty one
            (None or empty: none).
        columns: The names of the columns of a file without a header line, in their order (None: it has one).
        prefix: Before the names of the settings in messages, as in `dataset.encoding`.
    """

    separator: str | None = None
    encoding: str = "utf-8"
    quote: str | None = AUTO
    escape: str | None = None
    columns: tuple[str, ...] | None = None
    prefix: str = "dataset."

    def setting(self, key: str, value: str) -> str:
        """How the setting `key` is given in a shell, for messages: `dataset.quote=null`, or `quote=''` to a site.

        An empty value is none.
        """
        if not self.prefix:
            return f"{key}='{value}'"
        given = f"{self.prefix}{key}"
        if not value and (self.prefix != ITEMS or key == "columns"):
            return f"{given}=null"  # of the item table, null is as the interactions'
        if _PLAIN.fullmatch(value):
            return f"{given}={value}"
        if value == "\\":
            return f"{given}='\\\\'"
        return f"\"{given}='{value.replace(chr(34), chr(92) + chr(34))}'\""

    def naming(self) -> str:
        """How the columns of a file without a header line are named, for messages."""
        names = "item_id,title" if self.prefix == ITEMS else "user_id,item_id,timestamp"
        return self.setting("columns", f"[{names}]" if self.prefix else names)

    def separator_in(self, path: Path) -> str:
        r"""What separates the fields of the file `path`; `\t`, written out, is a tab."""
        return (self.separator or SEPARATORS[suffix_of(path)]).replace("\\t", "\t")

    def quote_in(self, path: Path) -> str | None:
        """The quote character of the file `path`, None for none."""
        if self.quote != AUTO:
            return self.quote or None
        separator = self.separator_in(path)
        return '"' if len(separator) == 1 and separator != "\t" else None

    def problems(self) -> list[str]:
        """All that is wrong with it, one line each, by the names of the settings."""
        found = []
        separator = None if self.separator is None else self.separator.replace("\\t", "\t")
        if separator is not None and (not separator or any(end in separator for end in _LINE_ENDS)):
            found.append(
                f"{self._given('separator', self.separator)}: cannot stand between fields; expected one character or "
                "more, without line ends"
            )
        for key, value in (("quote", self.quote), ("escape", self.escape)):
            if not value or (key == "quote" and value == AUTO):
                continue
            if len(value) != 1 or value in _LINE_ENDS or value in (separator or ""):
                found.append(f"{self._given(key, value)}: expected one character that is no separator or line end")
            elif separator is not None and len(separator) > 1:
                found.append(
                    f"{self._given(key, value)}: needs a separator of one character, got {separator!r}; or give ''"
                )
        if self.quote and self.quote == self.escape:
            found.append(
                f"{self._given('escape', self.escape)}: is the quote too; a quote that is doubled inside a field needs "
                f"no escape character: give {self.setting('escape', '')}"
            )
        try:
            if not codecs.lookup(self.encoding)._is_text_encoding:
                raise LookupError
        except (LookupError, ValueError):
            found.append(
                f"{self._given('encoding', self.encoding)}: there is no encoding of that name for text; legal are "
                "utf-8, latin-1, cp1252, utf-16, ..."
            )
        if self.columns is not None:
            twice = [name for name, count in Counter(self.columns).items() if count > 1]
            if twice or not self.columns or "" in self.columns:
                what = f"{', '.join(twice)} is there twice" if twice else "a name is empty"
                found.append(f"{self.prefix}columns: {what}; expected one name for each column, in their order")
        return found

    def _given(self, key: str, value: str | None) -> str:
        return f"{self.prefix}{key}={value!r}"
