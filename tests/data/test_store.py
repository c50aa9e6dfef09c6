"""The store of prepared interactions: what was written is what is opened, and damage is told."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedrec.core.errors import StoreError
from fedrec.data.store import UserIds, content_digest, open_store, verify_store, write_store
from fedrec.data.types import Interactions

Make = Callable[[Sequence[Sequence[int]]], Interactions]


@pytest.fixture
def small() -> Interactions:
    offsets, items = np.array([0, 2, 2, 5], dtype=np.int64), np.array([4, 1, 0, 3, 2], dtype=np.int32)
    return Interactions(("ü", "", "a user"), offsets, items)


def test_what_was_written_is_opened(small: Interactions, tmp_path: Path) -> None:
    folder = write_store(small, tmp_path)
    opened = open_store(folder)
    assert folder == tmp_path / "interactions" / content_digest(small)
    assert list(opened.user_ids) == ["ü", "", "a user"]
    assert opened.offsets.tolist() == [0, 2, 2, 5]
    assert opened.history(2).tolist() == [0, 3, 2]
    assert content_digest(opened) == content_digest(small)
    assert not opened.items.flags.writeable
    assert isinstance(opened.items.base, np.memmap)
    verify_store(folder)
    assert [path.name for path in (tmp_path / "interactions").iterdir()] == [folder.name]


def test_it_is_opened_once_in_a_process(small: Interactions, tmp_path: Path) -> None:
    folder = write_store(small, tmp_path)
    assert open_store(folder) is open_store(folder)


def test_writing_again_changes_nothing(small: Interactions, tmp_path: Path) -> None:
    folder = write_store(small, tmp_path)
    before = (folder / "items.npy").stat().st_mtime_ns
    assert write_store(small, tmp_path) == folder
    assert (folder / "items.npy").stat().st_mtime_ns == before


def test_no_interactions_at_all_can_be_kept(interactions: Make, tmp_path: Path) -> None:
    opened = open_store(write_store(interactions([]), tmp_path))
    assert (opened.users, len(opened.items)) == (0, 0)


@given(st.lists(st.text()))
def test_user_ids_are_a_sequence(ids: list[str]) -> None:
    found = UserIds.of(ids)
    assert list(found) == ids
    assert found[1:] == tuple(ids[1:])
    assert found[::-2] == tuple(ids[::-2])
    assert UserIds.of(found) is found
    if ids:
        assert found[-1] == ids[-1]
    with pytest.raises(IndexError):
        found[len(ids)]


def test_the_digest_is_of_everything(small: Interactions) -> None:
    others = [
        Interactions(("ü", "", "a usex"), small.offsets, small.items),
        Interactions(("ü", "a", " user"), small.offsets, small.items),
        Interactions(small.user_ids, np.array([0, 2, 3, 5], dtype=np.int64), small.items),
        Interactions(small.user_ids, small.offsets, small.items[::-1]),
    ]
    assert len({content_digest(made) for made in (small, *others)}) == 5


def test_the_digest_does_not_change(small: Interactions) -> None:
    """A change of this value orphans every cache: raise `FORMAT` with it."""
    assert content_digest(small) == "996ecbc1b45cd6ef95395765cd003e83"


@pytest.mark.parametrize("name", ["offsets.npy", "items.npy", "user_ids.npy", "user_id_offsets.npy", "meta.json"])
@pytest.mark.parametrize("kept", [None, 0, 7, -1])
def test_a_missing_or_truncated_file_is_told_and_mended(
    name: str, kept: int | None, small: Interactions, tmp_path: Path
) -> None:
    folder = write_store(small, tmp_path)
    path = folder / name
    data = path.read_bytes()
    path.unlink()
    if kept is not None:
        path.write_bytes(data[:kept])
    with pytest.raises(
        StoreError, match=rf"{name}.*(damaged|truncated|missing).*delete the folder and prepare the data again"
    ):
        open_store(folder)
    assert open_store(write_store(small, tmp_path)).items.tolist() == small.items.tolist()


@pytest.mark.parametrize("name", ["offsets.npy", "items.npy", "user_ids.npy", "user_id_offsets.npy", "meta.json"])
def test_no_flipped_byte_passes_verification(name: str, small: Interactions, tmp_path: Path) -> None:
    folder = write_store(small, tmp_path)
    sound = (folder / name).read_bytes()
    for position in range(0, len(sound), 3):
        damaged = bytearray(sound)
        damaged[position] ^= 0x11
        (folder / name).write_bytes(damaged)
        try:
            verify_store(folder)
        except StoreError:
            continue
        # Harmless: a blank of a header, or a number in the metadata that is written in another way.
        open_store.cache_clear()
        assert content_digest(open_store(folder)) == content_digest(small)


def test_another_format_is_told(small: Interactions, tmp_path: Path) -> None:
    folder = write_store(small, tmp_path)
    meta = json.loads((folder / "meta.json").read_text())
    (folder / "meta.json").write_text(json.dumps(meta | {"format": 99}))
    with pytest.raises(StoreError, match="has format 99, this version of fedrec reads 1"):
        open_store(folder)


def test_swapped_contents_do_not_pass_verification(small: Interactions, interactions: Make, tmp_path: Path) -> None:
    folder, other = write_store(small, tmp_path), write_store(interactions([[1, 2, 3]]), tmp_path)
    for path in other.iterdir():
        path.replace(folder / path.name)
    with pytest.raises(StoreError, match="is damaged"):
        verify_store(folder)


def test_a_folder_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="prepare the data on this machine first"):
        open_store(tmp_path / "none")


def test_a_place_that_cannot_be_written_is_told(small: Interactions, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="set cache_dir to a folder that may be read and written"):
        write_store(small, tmp_path / "file")


def test_opening_imports_nothing_heavy() -> None:
    code = (
        "import sys; import fedrec.data.store, fedrec.data.split;"
        "heavy = {'pandas', 'torch', 'pyarrow', 'pydantic', 'rich', 'hydra', 'scipy'} & sys.modules.keys();"
        "sys.exit(bool(heavy))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
