"""The meter's bytes beside those that cross a real socket, counted by a proxy between SuperNode and SuperLink."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from commands.flower_app import assemble

ROOT = Path(__file__).resolve().parents[2]
ITEMS, ROUNDS = 20_000, 3
BESIDE = 1_800_000
"""Bytes in each direction that have nothing to do with tensors: the bundle of the code, envelopes, polling."""


class Proxy:
    """Passes connections on to a port and counts what goes `down` to who connects, and `up` from there."""

    def __init__(self, target: int) -> None:
        self.counts: Counter[str] = Counter()
        self._target = target
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                try:
                    far = socket.create_connection(("127.0.0.1", self._target))
                except ConnectionRefusedError:  # the SuperLink does not listen yet
                    near.close()
                    continue
                for source, sink, name in ((near, far, "up"), (far, near, "down")):
                    threading.Thread(target=self._pass, args=(source, sink, name), daemon=True).start()

    def _pass(self, source: socket.socket, sink: socket.socket, name: str) -> None:
        with suppress(OSError):
            while data := source.recv(65_536):
                self.counts[name] += len(data)
                sink.sendall(data)
        with suppress(OSError):
            sink.shutdown(socket.SHUT_WR)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def running(command: list[str], cwd: Path, env: dict[str, str]) -> Iterator[None]:
    cwd.mkdir(parents=True)
    with (cwd / "log").open("wb") as log:
        process = subprocess.Popen(command, cwd=cwd, env=env, stdout=log, stderr=log, start_new_session=True)
    try:
        yield
    finally:
        for signum in (signal.SIGTERM, signal.SIGKILL):
            with suppress(ProcessLookupError, subprocess.TimeoutExpired):
                os.killpg(process.pid, signum)
                process.wait(10)


@pytest.mark.runtime
def test_the_meter_counts_what_crosses_the_socket_but_for_the_runtimes_own(tmp_path: Path) -> None:
    """One device of one user, and a table of 2.56 MB both ways in every round."""
    programs = Path(sys.executable).parent
    env = {name: value for name, value in os.environ.items() if not name.startswith("FLWR_")}
    env |= {
        "PATH": f"{programs}{os.pathsep}{env['PATH']}",
        "PYTHONPATH": str(ROOT),
        "FEDREC_HOME": str(tmp_path / "home"),
        "FLWR_HOME": str(tmp_path / "flwr"),
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_TELEMETRY_ENABLED": "0",
        "OMP_NUM_THREADS": "1",
        "NO_PROXY": "127.0.0.1,localhost",
    }
    items = "".join(f"{number},Item {number}\n" for number in range(ITEMS))
    (tmp_path / "items.csv").write_text("item_id,title\n" + items)
    history = "".join(f"anna,{7 * number},{number}\n" for number in range(30))
    (tmp_path / "clicks.csv").write_text("user_id,item_id,timestamp\n" + history)
    port = free_port()
    proxy = Proxy(port)
    (tmp_path / "flwr").mkdir()
    (tmp_path / "flwr/config.toml").write_text(
        f'[superlink]\ndefault = "local"\n\n[superlink.local]\naddress = "127.0.0.1:{port}"\ninsecure = true\n'
    )
    overrides = (
        f"runtime=deployment dataset=table dataset.item_table={tmp_path}/items.csv strategy=full "
        f"strategy.rounds={ROUNDS} base_table.start=random federation.fraction=1.0 evaluation.every=0 run_id=wire"
    )
    (tmp_path / "run.toml").write_text(f'overrides = "{overrides}"\n')
    superlink = ["flower-superlink", "--insecure", "--host", "127.0.0.1", "--port", str(port)]
    superlink += ["--disable-runtime-dependency-installation"]
    supernode = ["flower-supernode", "--insecure", "--superlink", f"127.0.0.1:{proxy.port}", "--host", "127.0.0.1"]
    supernode += ["--port", str(free_port())]
    supernode += ["--node-config", f"interactions='{tmp_path}/clicks.csv' state-dir='{tmp_path}/state'"]
    app = assemble(tmp_path / "fedrec")
    with running(superlink, tmp_path / "superlink", env), running(supernode, tmp_path / "supernode", env):
        # The SuperLink takes seconds to answer, and the run waits for the node.
        for _ in range(60):
            command = ["flwr", "run", str(app), "local", "--stream", "--run-config", str(tmp_path / "run.toml")]
            done = subprocess.run(command, env=env, cwd=tmp_path, check=False, text=True, capture_output=True)
            if done.returncode == 0:
                break
    proxy.close()
    folder = tmp_path / "home/runs/wire"
    assert (folder / "summary.json").is_file(), done.stdout[-3000:] + done.stderr[-3000:]
    counted = json.loads((folder / "summary.json").read_text())["bytes_per_user"]
    table = 4 * ITEMS * 32
    assert counted["up"] > ROUNDS * table
    sent = counted["total"] + counted["evaluation"]
    crossed = proxy.counts["up"] + proxy.counts["down"]
    print(f"counted {sent:.0f}, crossed {crossed}: {dict(proxy.counts)}")
    assert sent < crossed < sent + 2 * BESIDE
    assert counted["up"] < proxy.counts["up"] < counted["up"] + BESIDE
    assert sent - counted["up"] - 1000 < proxy.counts["down"] < sent - counted["up"] + BESIDE
