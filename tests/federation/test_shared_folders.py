"""Workers of a simulation have no fixed nodes: all must see the server's folders, or the run ends at once."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from flwr.app import ConfigRecord, Context, Message

from client_app.answers.app import app as honest
from exchanges.records import ENROLL, pack, unpack
from fedrec.core.errors import FederationError, StoreError
from fedrec.core.shared_folder import NotSharedError, leave_token, require_shared
from fedrec.wire.protocol import SimulatedData

Federate = Callable[..., Any]
Client = Callable[[Message, Context], Message]


def elsewhere(folder: Path, key: str = "state_dir", partition: int | None = None, from_round: int = 0) -> Client:
    """Clients (or one of them, or from a round on) for whom a folder of the setup's is another than the server's."""

    def client(message: Message, context: Context) -> Message:
        content = unpack(message.content)
        concerned = partition is None or context.node_config["partition-id"] == partition
        if concerned and message.metadata.message_type == ENROLL and not from_round:
            setup = moved(str(content.fields["setup"]), key, folder)
            message.content = pack({"setup": setup})
        if concerned and from_round and int(content.fields.get("round", 0)) >= from_round:
            told = str(context.state["setup"]["json"])  # type: ignore[index]
            context.state["setup"] = ConfigRecord({"json": moved(told, key, folder)})
        return honest(message, context)

    return client


def moved(setup: str, key: str, folder: Path) -> str:
    values = json.loads(setup)
    values["simulation"][key] = str(folder)
    return json.dumps(values)


@pytest.mark.parametrize("partition", [None, 2])
def test_a_worker_without_the_servers_state_dir_ends_the_run_at_its_start(
    federate: Federate, tmp_path: Path, partition: int | None
) -> None:
    own = tmp_path / "own"
    own.mkdir()
    with pytest.raises(FederationError) as caught:
        federate(nodes=3, client=elsewhere(own, partition=partition))
    text = str(caught.value)
    assert f"does not see the server's state-dir {own}: expected {own}/token with this run's token" in text
    assert "No such file" in text
    assert "put runs_dir (and cache_dir) on a disk that they share" in text
    assert list(own.iterdir()) == [], "nothing is made in a folder that is not the server's"
    (run,) = (path for path in tmp_path.glob("runs-*/r"))
    assert not (run / "metrics.jsonl").exists()


def test_a_folder_with_the_token_of_another_run_is_not_the_servers(federate: Federate, tmp_path: Path) -> None:
    leave_token(tmp_path)
    with pytest.raises(FederationError, match="it holds another one"):
        federate(client=elsewhere(tmp_path, partition=1))


def test_a_folder_that_is_not_there_is_not_made(federate: Federate, tmp_path: Path) -> None:
    with pytest.raises(FederationError, match="does not see the server's state-dir"):
        federate(client=elsewhere(tmp_path / "nowhere"))
    assert not (tmp_path / "nowhere").exists()


def test_a_worker_without_the_prepared_data_ends_the_run_at_its_start(federate: Federate, tmp_path: Path) -> None:
    with pytest.raises(FederationError, match=r"server's prepared data .*nowhere.* put cache_dir \(and runs_dir\) on"):
        federate(nodes=3, client=elsewhere(tmp_path / "nowhere", "interactions", partition=1))


def test_a_worker_first_used_in_a_later_round_ends_the_run_then(federate: Federate, tmp_path: Path) -> None:
    with pytest.raises(FederationError, match="does not see the server's state-dir"):
        federate(nodes=3, client=elsewhere(tmp_path / "nowhere", partition=2, from_round=3))
    (run,) = (path for path in tmp_path.glob("runs-*/r"))
    assert [json.loads(line)["round"] for line in (run / "metrics.jsonl").read_text().splitlines()] == [1, 2]


def test_the_folders_are_looked_at_once_in_a_process(tmp_path: Path) -> None:
    data = SimulatedData(str(tmp_path), str(tmp_path), leave_token(tmp_path))
    require_shared(data)
    shutil.rmtree(tmp_path)
    require_shared(data)


def test_every_run_has_a_token_of_its_own(tmp_path: Path) -> None:
    first = SimulatedData(str(tmp_path), str(tmp_path), leave_token(tmp_path))
    assert leave_token(tmp_path) != first.token
    with pytest.raises(NotSharedError, match="it holds another one"):
        require_shared(first)


def test_a_state_dir_that_cannot_be_written_to_is_a_store_error(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="cannot be written"):
        leave_token(tmp_path / "nowhere")
