"""Fetches a public archive: bounded, with a timeout and a checksum, and put in place only when it is whole."""

from __future__ import annotations

import hashlib
import http.client
import tempfile
import urllib.error
import urllib.request
from pathlib import Path

from fedrec.core.errors import DataError
from fedrec.datasets.base import Progress

MAX_BYTES = 256 * 2**20
"""No archive that is fetched here is larger."""

_CHUNK = 2**16


def download(url: str, target: Path, md5: str, timeout: float, progress: Progress) -> None:
    """Fetch `url` into the file `target`, which appears only when its checksum is right.

    Args:
        url: http or https.
        target: Absolute path.
        md5: Expected checksum, as the publisher gives it (it guards against damage, not against an adversary).
        timeout: Seconds without a byte after which it is given up.
        progress: Called with the bytes that came and the bytes that were announced.

    Raises:
        DataError: No network, a wrong answer, too many bytes, too few, a wrong checksum; it says how to fetch by hand.
    """
    by_hand = f"To get it by hand: fetch {url} and put it at {target}"
    if not url.startswith(("http://", "https://")):
        raise DataError(f"dataset.url={url}: expected a URL that starts with https:// or http://")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=".download-") as scratch_dir:
            part = Path(scratch_dir) / target.name
            found = _fetch(url, part, timeout, progress, by_hand)
            if found != md5:
                raise DataError(f"{url}: the file that came has md5 {found}, expected {md5}: it is damaged. {by_hand}")
            part.replace(target)
    except (OSError, http.client.HTTPException, ValueError) as error:  # ValueError: no URL after all
        reason = error.reason if isinstance(error, urllib.error.URLError) else error
        raise DataError(f"cannot fetch {url} to {target}: {reason}. {by_hand}") from error


def _fetch(url: str, part: Path, timeout: float, progress: Progress, by_hand: str) -> str:
    digest, done = hashlib.md5(usedforsecurity=False), 0
    with urllib.request.urlopen(url, timeout=timeout) as reply, part.open("wb") as file:
        length = reply.headers.get("Content-Length", "")
        total = int(length) if length.isdecimal() else 0
        while chunk := reply.read(_CHUNK):
            done += len(chunk)
            if done > MAX_BYTES:
                raise DataError(f"{url} sends more than {MAX_BYTES:,} bytes, more than expected. {by_hand}")
            digest.update(chunk)
            file.write(chunk)
            progress(f"fetching {url}", done, total)
        if done < total:
            raise DataError(f"{url}: {done:,} of {total:,} bytes came: it was cut short. {by_hand}")
    return digest.hexdigest()
