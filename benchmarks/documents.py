"""Blocks of the documents that scripts write from kept results: one way to find them, compare them and write them.

A block stands between the lines `<!-- NAME:begin -->` and `<!-- NAME:end -->`. Everything outside stays as it is.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path


def spliced(text: str, name: str, body: str) -> str:
    """A document with `body` between the two marks of a name.

    Raises SystemExit if the marks are not there, each once and in order: nothing is written beside a lost mark.
    """
    begin, end = f"<!-- {name}:begin -->\n", f"<!-- {name}:end -->"
    if text.count(begin) != 1 or text.count(end) != 1 or text.index(begin) > text.index(end):
        raise SystemExit(f"the document needs the lines {begin.strip()} and {end}, each once and in this order")
    head, _, rest = text.partition(begin)
    return f"{head}{begin}{body}{end}{rest.partition(end)[2]}"


def write(page: Path, blocks: Mapping[str, str], *, command: str, check: bool) -> int:
    """Write the blocks of a document, or only compare them.

    Args:
        page: The document.
        blocks: What stands between the marks of each name.
        command: What writes these blocks, for the message.
        check: Change nothing.

    Returns:
        The exit status: 1 if `check` found a difference, which is then named on standard error.
    """
    before = page.read_text(encoding="utf-8")
    after = before
    for name, body in blocks.items():
        after = spliced(after, name, body)
    if check and before != after:
        print(f"{page.name} differs from the kept results: run `{command}`", file=sys.stderr)
        return 1
    if before != after:
        page.write_text(after, encoding="utf-8")
    return 0
