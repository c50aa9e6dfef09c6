"""A state-dir that version 1 of its layout has left is still whole: users, data, private tensors, ledgers, the model.

`state-dir-<n>.tar.gz` is such a folder: a site of two users after a run of two rounds, with ledgers, and in
`expected.json` what it held then. Whoever raises `LAYOUT` adds a folder of the new version, and a
step from the one before.
"""

from __future__ import annotations

import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from client_app.homes.budget import reported
from client_app.homes.forgotten import key_of
from client_app.homes.training_budget import trained
from client_app.stores.layout import LAYOUT, STEPS, layout_of, require_layout
from client_app.stores.run_record import read_record
from commands.recommend import of_site, recommend
from fedrec.core.errors import StoreError

FOLDERS = sorted(Path(__file__).parent.glob("state-dir-*.tar.gz"))


@pytest.fixture(params=FOLDERS, ids=lambda path: path.name.partition(".")[0])
def state(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    with tarfile.open(request.param) as packed:
        packed.extractall(tmp_path, filter="data")
    folder = tmp_path / "state"
    folder.chmod(0o700)
    require_layout(folder)
    return folder


def test_there_is_a_folder_of_each_version_and_a_step_from_each() -> None:
    assert [path.name for path in FOLDERS] == [f"state-dir-{number}.tar.gz" for number in range(1, LAYOUT + 1)]
    assert sorted(STEPS) == list(range(LAYOUT))


def test_all_that_it_held_is_there(state: Path) -> None:
    expected: dict[str, Any] = json.loads((state / "expected.json").read_text())
    assert layout_of(state) == LAYOUT
    node = of_site(state).node
    assert [f"{key:016x}" for key in node.users.keys.tolist()] == expected["keys"]
    assert f"{key_of(state, 'u00'):016x}" in expected["keys"]
    private, found = node.private(node.users.keys, before=99)
    assert found.tolist() == expected["trained"]
    for name, values in expected["private"].items():
        assert private[name].flatten().tolist() == values
    whole = node.users.whole(np.arange(2))
    ids = of_site(state).items.ids
    offsets = whole.offsets.tolist()
    histories = [[ids[row] for row in whole.items[offsets[n] : offsets[n + 1]]] for n in range(2)]
    assert dict(zip(node.users.ids(np.arange(2)), histories, strict=True)) == expected["histories"]
    best = recommend(None, str(state), "u00", None, 5)["items"]
    assert [item["item_id"] for item in best] == expected["recommended"]
    assert read_record(state / "prepared" / f"{expected['run']}.json") is not None


def test_what_was_spent_stays_spent(state: Path) -> None:
    assert reported(state) == {"items of a run": 1.0}
    users, releases, epsilon = trained(state, 1e-5)
    assert (users, releases) == (1, 7)
    assert epsilon > 1


@pytest.mark.parametrize(("number", "said"), [("2", "a later version of fedrec"), ("-1", "layout"), ("one", "layout")])
def test_what_is_no_version_of_before_is_refused(tmp_path: Path, number: str, said: str) -> None:
    (tmp_path / "layout").write_text(number)
    with pytest.raises(StoreError, match=said):
        require_layout(tmp_path)
    assert (tmp_path / "layout").read_text() == number
