"""The launchers as processes, before the part of Flower's SuperNode that hands out tasks and takes answers."""

from __future__ import annotations

import hashlib
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import uvicorn
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.cli.build import build_fab_from_disk
from flwr.cli.install import install_from_fab
from flwr.supercore.constant import TaskType
from flwr.supercore.fab import Fab
from flwr.supercore.object_store import ObjectStoreFactory
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity
from flwr.supernode.main import create_app
from flwr.supernode.nodestate import NodeStateFactory
from flwr.supernode.start_client_internal import _insert_message

from commands.supernode import guarded_path, make_launchers

pytestmark = pytest.mark.runtime

ROOT = Path(__file__).resolve().parents[2]


class Node:
    """A SuperNode's state and its loopback port, and a site's launchers."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.state_dir = folder / "state"
        self.state_dir.mkdir(mode=0o700)
        self.config: dict[str, bool | float | int | str] = {
            "interactions": f"{folder}/clicks.csv",
            "state-dir": str(self.state_dir),
        }
        make_launchers(self.state_dir / "launch", self.config)
        self.factory = NodeStateFactory(ObjectStoreFactory())
        self.state = self.factory.state()
        self.state.set_node_id(7)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.server = uvicorn.Server(
            uvicorn.Config(create_app(self.factory), host="127.0.0.1", port=self.port, log_level="error")
        )
        self.thread = threading.Thread(target=self.server.run)
        self.thread.start()
        while not self.server.started:
            time.sleep(0.05)

    def allow(self, content: bytes) -> None:
        (self.state_dir / "policy.toml").write_text(f'apps = ["{hashlib.sha256(content).hexdigest()}"]\n')
        (self.state_dir / "policy.toml").chmod(0o600)

    def ask(
        self, kind: TaskType, content: bytes, run_id: int, fab: tuple[str, str], path: str | None = None
    ) -> Message:
        """What a task is answered with, whose bundle the server says to be the app `fab`."""
        run = Run.create_empty(run_id)
        run.fab_id, run.fab_version, run.series_id = *fab, run_id
        run.fab_hash = self.state.store_fab(Fab("", content, {}))
        self.state.store_run(run)
        context = Context(run_id=run_id, node_id=7, node_config=self.config, state=RecordDict(), run_config={})
        self.state.set_run_series_context(run_id, context)
        TaskIdentity.run_id, TaskIdentity.task_id, TaskIdentity.node_id = run_id, 1, 1  # of the server
        message = Message(RecordDict({"c": ConfigRecord({"a": 1})}), 7, "query")
        _insert_message(message, self.state, self.factory.objectstore_factory.store())
        task = self.state.create_task(kind, run_id, fab_hash=run.fab_hash)
        assert task is not None
        token = self.state.claim_task(task)
        assert token is not None
        done = subprocess.run(
            [kind.value, "--runtime-api-address", f"127.0.0.1:{self.port}", "--token", token, "--insecure"],
            env={**os.environ, "PATH": path or guarded_path(self.state_dir / "launch"), "PYTHONPATH": str(ROOT)},
            cwd=self.folder,
            text=True,
            capture_output=True,
            timeout=120,
            check=False,
        )
        (reply,) = self.state.get_messages_legacy(run_ids=[run_id], is_reply=True)
        self.log = done.stdout + done.stderr
        return reply


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Node]:
    monkeypatch.setenv("FLWR_HOME", str(tmp_path / "home"))
    made = Node(tmp_path)
    yield made
    made.server.should_exit = True
    made.thread.join()


def app(folder: Path, name: str = "tiny") -> bytes:
    """An app whose import leaves a file; it could be started as a ClientApp and as an AgentApp."""
    (folder / name / name).mkdir(parents=True)
    (folder / name / "pyproject.toml").write_text(
        f'[project]\nname = "{name}"\nversion = "1.0"\nlicense = "Apache-2.0"\ndependencies = []\n'
        f'[tool.flwr.app]\npublisher = "p"\n[tool.flwr.app.components]\nserverapp = "{name}.app:app"\n'
        f'clientapp = "{name}.app:app"\n'
    )
    (folder / name / name / "__init__.py").write_text("")
    (folder / name / name / "app.py").write_text(
        "from pathlib import Path\nfrom flwr.app import Message\nfrom flwr.clientapp import ClientApp\n"
        f"Path({str(folder / 'ran')!r}).touch()\napp = ClientApp()\n"
        "@app.query()\ndef answer(message, context):\n    return Message(message.content, reply_to=message)\n"
    )
    return build_fab_from_disk(folder / name)


TINY = ("p/tiny", "1.0")


def test_only_what_is_listed_runs(node: Node, tmp_path: Path) -> None:
    good, bad = app(tmp_path / "good"), app(tmp_path / "bad", "spy")
    node.allow(good)
    reply = node.ask(TaskType.CLIENT_APP, bad, 1, ("p/spy", "1.0"))
    assert reply.has_error()
    assert "PolicyError" in str(reply.error.reason)
    assert "of which nothing was run" in node.log
    assert not (tmp_path / "bad/ran").exists()
    reply = node.ask(TaskType.CLIENT_APP, good, 2, TINY)
    assert not reply.has_error(), node.log
    assert (tmp_path / "good/ran").exists()


def test_what_lies_in_flowers_folder_from_before_does_not_run(node: Node, tmp_path: Path) -> None:
    """Flower knows a bundle that it has unpacked by 32 bits of its digest: another one with the same can be made."""
    good, old = app(tmp_path / "good"), app(tmp_path / "old")
    lying = install_from_fab(old, skip_prompt=True)
    lying.rename(lying.with_suffix(f".{hashlib.sha256(good).hexdigest()[:8]}"))
    node.allow(good)
    assert not node.ask(TaskType.CLIENT_APP, good, 1, TINY).has_error(), node.log
    assert (tmp_path / "good/ran").exists()
    assert not (tmp_path / "old/ran").exists()
    plain = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    assert not node.ask(TaskType.CLIENT_APP, good, 2, TINY, path=plain).has_error(), node.log
    assert (tmp_path / "old/ran").exists(), "as Flower's own command does"


def test_an_agent_is_refused_at_once_and_the_site_goes_on(node: Node, tmp_path: Path) -> None:
    """A server may start a task of another kind, which Flower would wait for for ever if nothing answered it."""
    good = app(tmp_path / "good")
    node.allow(good)
    reply = node.ask(TaskType.AGENT_APP, good, 1, TINY)
    assert reply.has_error()
    assert "a site runs ClientApps, not flwr-agentapp" in str(reply.error.reason)
    assert not (tmp_path / "good/ran").exists()
    assert not node.ask(TaskType.CLIENT_APP, good, 2, TINY).has_error(), node.log
