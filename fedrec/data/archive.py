"""Named files of a published data set, wherever they lie: in a folder, in its zip archive, or still to be fetched.

Archives are read in place and never unpacked, so that no member can write anywhere.
"""

from __future__ import annotations

import io
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from fedrec.config.paths import home
from fedrec.core.errors import DataError
from fedrec.data.collect import Malformed
from fedrec.data.reading import reading

MAX_MEMBER = 2**30
"""Bytes that one unpacked member may have: the published ones have some 25 million."""


class Files(ABC):
    """Where the files of a data set are read from."""

    @abstractmethod
    def label(self, name: str) -> str:
        """The file's place, for messages."""

    @abstractmethod
    def read(self, name: str) -> bytes:
        """The file's bytes. Raises DataError."""


class _Folder(Files):
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def label(self, name: str) -> str:
        return str(self.folder / name)

    def read(self, name: str) -> bytes:
        with reading(self.folder / name, "file"):
            return (self.folder / name).read_bytes()


class _Archive(Files):
    def __init__(self, path: Path, names: Sequence[str]) -> None:
        self.path = path
        with self._open() as archive:
            members = [info.filename for info in archive.infolist()]
        for member in members:
            pure = PurePosixPath(member.replace("\\", "/"))
            if pure.is_absolute() or ".." in pure.parts or ":" in "".join(pure.parts[:1]):
                raise DataError(
                    f"{path} has a member {member!r} that leads out of its folder, as no published archive "
                    "does: delete it and fetch it again"
                )
        self.members = {name: [m for m in members if PurePosixPath(m).name == name] for name in names}
        for name, found in self.members.items():
            if len(found) != 1:
                raise DataError(f"{path} has {len(found)} members named {name}, expected 1: it is another archive")

    def label(self, name: str) -> str:
        return f"{self.path}!{self.members[name][0]}"

    def read(self, name: str) -> bytes:
        with self._open() as archive:
            info = archive.getinfo(self.members[name][0])
            if info.file_size > MAX_MEMBER:
                raise DataError(
                    f"{self.label(name)} unpacks to {info.file_size:,} bytes, at most {MAX_MEMBER:,} are read"
                )
            return archive.read(info)

    @contextmanager
    def _open(self) -> Iterator[zipfile.ZipFile]:
        mend = "delete it and fetch it again, or unpack it yourself and give the folder"
        with reading(self.path, "zip archive", mend), zipfile.ZipFile(self.path) as archive:
            yield archive


def default_root(folder: str) -> Path:
    """Where a published data set is kept when the configuration names no place. Raises ConfigError as `home` does."""
    return home() / "data" / folder


def find(root: Path, folder: str, names: Sequence[str], fetch: Callable[[Path], None]) -> Files:
    """The files `names`: in `root`, in `root/<folder>`, in `root/<folder>.zip`, or in `root` itself if that is the zip.

    `root` is absolute, `folder` names both the data set's folder and its archive ("ml-1m"), and `fetch` is called with
    the archive's path if none of these is there.

    Raises:
        DataError: Some files are there and others are missing; the archive is damaged; it cannot be fetched.
    """
    if not root.is_absolute():
        raise DataError(f"dataset.root={root} is a relative path, write dataset.root={root.absolute()}")
    for place in (root, root / folder):
        with reading(place, "folder"):
            present = [name for name in names if (place / name).is_file()]
        if len(present) == len(names):
            return _Folder(place)
        if present:
            missing = ", ".join(name for name in names if name not in present)
            raise DataError(
                f"{place} has {', '.join(present)} but lacks {missing}: copy it from the archive {folder}.zip"
            )
    archive = root if root.suffix.lower() == ".zip" else root / f"{folder}.zip"
    if not archive.is_file():
        if root.is_file():
            raise DataError(f"dataset.root={root} is a file and no zip; expected a folder, or {folder}.zip")
        fetch(archive)
    return _Archive(archive, names)


def delimited(
    files: Files, name: str, separator: str, width: int, malformed: Malformed
) -> Iterator[tuple[int, list[str]]]:
    """Give (line, fields) of a latin-1 file without quotes or header; another number of fields is malformed."""
    place = files.label(name)
    for line, text in enumerate(io.StringIO(files.read(name).decode("latin-1"), newline=None), 1):
        fields = text.rstrip("\n").split(separator)
        if len(fields) == width:
            yield line, fields
        elif text.strip():
            malformed.met(f"{place}, line {line}", text.rstrip("\n"), f"{width} fields separated by {separator!r}")
