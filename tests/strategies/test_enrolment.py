"""What a node may answer to an invitation: not more than the keys of as many users as a node may have."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict

from commands.local_grid import LocalGrid
from exchanges import records
from federation import enrolment, roster
from federation.directory import Directory
from federation.losses import Losses
from federation.post import Post
from fedrec.config.compose import compose
from fedrec.wire.code import code_digest
from server_app.setup import make_setup

KEYS = np.arange(20, dtype=np.uint64)


def answer(keys: np.ndarray, more: bytes = b"") -> RecordDict:
    """The keys, and beside them an array that nobody can read."""
    arrays = ArrayRecord({records.KEYS: Array(keys)})
    if more:
        arrays["more"] = Array("uint8", (len(more),), "numpy.ndarray", more)
    return RecordDict({"arrays": arrays, "fields": ConfigRecord({"code": code_digest()})})


@pytest.mark.parametrize("list_to_send", [False, True], ids=["simulation", "deployment"])
def test_an_answer_longer_than_any_is_refused_unread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, list_to_send: bool
) -> None:
    monkeypatch.setattr(roster, "LONGEST", 2_000)
    setup = make_setup(compose([f"runs_dir={tmp_path}", "run_id=r"], base=None), 30, "catalogue", "", None)
    asked, read = 0, []
    as_array = Array.numpy

    def reading(self: Array) -> np.ndarray:
        read.append(len(self.data))
        return as_array(self)

    monkeypatch.setattr(Array, "numpy", reading)

    def client(message: Message, context: Context) -> Message:
        nonlocal asked
        asked += 1
        place = int(context.node_config["partition-id"])
        return Message(answer(KEYS + 100 * place, b"no array" * 300 * place), reply_to=message)

    losses = Losses()
    joining = roster.Roster(setup, Post(losses, 2), Directory(), records.wrap(b"the list") if list_to_send else None)
    for _ in range(2):
        joining.enrol(LocalGrid(client, 2))  # type: ignore[arg-type]
    assert asked == 2, "it is not asked again while it is there"
    assert read == [len(Array(KEYS).data)]
    assert losses.counts == {"oversized": 1}
    assert losses.wasted["oversized"] > 2_000
    assert joining.directory.keys.tolist() == KEYS.tolist()


def test_there_is_room_for_as_many_users_as_a_node_may_have() -> None:
    most = enrolment._MOST_USERS
    assert most >= 10**7
    asked = Message(RecordDict(), 1, "query.enroll")
    asked.metadata.__dict__["_message_id"] = "m"
    LocalGrid(lambda message, context: message, 0)  # type: ignore[arg-type, return-value]
    reply = Message(answer(np.zeros(most, dtype=np.uint64)), reply_to=asked)
    assert records.weight(reply) <= enrolment.LONGEST
