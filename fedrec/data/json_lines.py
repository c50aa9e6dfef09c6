"""JSON lines: one object a line."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from typing_extensions import override

from fedrec.core.errors import DataError
from fedrec.data.collect import Malformed, Row
from fedrec.data.form import TextForm
from fedrec.data.reading import open_text
from fedrec.data.rows import TableFile


class JsonLinesFile(TableFile):
    """One JSON object a line; a key that an object lacks is None. The columns are the keys of all objects."""

    def __init__(self, path: Path, form: TextForm | None = None) -> None:
        super().__init__(path, form or TextForm())

    @cached_property
    @override
    def columns(self) -> list[str]:
        """Names of the columns, in the order in which they are met."""
        found = dict.fromkeys(key for _, keys in self.objects(Malformed("skip")) for key in keys)
        if not found:
            raise DataError(f"{self.path} holds no JSON object: expected one a line")
        return list(found)

    @override
    def absent(self, names: Sequence[str]) -> list[str]:
        """Those of `names` that no object has as a key; looks no further than it must."""
        left = dict.fromkeys(names)
        for _, found in self.objects(Malformed("skip")):
            for name in [name for name in left if name in found]:
                del left[name]
            if not left:
                break
        return list(left)

    @override
    def rows(self, names: Sequence[str], malformed: Malformed, single: int = 1) -> Iterator[Row]:
        """(line, values of the columns `names`) for every line that can be read."""
        marks = [(name, json.dumps(name)) for name in dict.fromkeys(names)]
        for line, text, found in self._lines(malformed):
            twice = [name for name, mark in marks if text.count(mark) > 1]
            if twice and (double := _doubled(text, twice)):
                malformed.met(f"{self.place} {line}", text.strip(), f"an object that has the key {double!r} once")
                continue
            yield line, [found.get(name) for name in names]

    def objects(self, malformed: Malformed) -> Iterator[tuple[int, dict[str, Any]]]:
        """(line, object) for every line that holds a JSON object."""
        return ((line, found) for line, _, found in self._lines(malformed))

    def _lines(self, malformed: Malformed) -> Iterator[tuple[int, str, dict[str, Any]]]:
        with open_text(self.path, self.form) as stream:
            first = True
            for line, text in enumerate(stream, 1):
                if not text.strip():
                    continue
                if first and text.lstrip().startswith("["):
                    raise DataError(
                        f"{self.path}, line {line}: begins a JSON array; expected one object a line. Convert it, as "
                        "with jq -c '.[]' a.json > a.jsonl"
                    )
                first = False
                try:
                    found = json.loads(text)
                    if "\\ud" in text or "\\uD" in text:  # half a pair of surrogates is no text
                        json.dumps(found, ensure_ascii=False).encode()
                except (ValueError, RecursionError):
                    found = None
                if isinstance(found, dict):
                    yield line, text, found
                else:
                    malformed.met(f"{self.place} {line}", text.strip(), "one JSON object")


def _doubled(text: str, names: Sequence[str]) -> str | None:
    """The name that the outermost object has twice as a key; its values may hold it too, which is no harm."""
    pairs: list[tuple[str, Any]] = []

    def keep(met: list[tuple[str, Any]]) -> dict[str, Any]:
        nonlocal pairs
        pairs = met  # the outermost object is closed last
        return dict(met)

    json.loads(text, object_pairs_hook=keep)
    keys = [key for key, _ in pairs]
    return next((name for name in names if keys.count(name) > 1), None)
