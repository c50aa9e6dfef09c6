"""Who has nothing but the address and the public certificate gets nowhere; who has a registered key takes part."""

from __future__ import annotations

import json
import os
import shutil
import signal
import ssl
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from commands.flower_app import assemble

ROOT = Path(__file__).resolve().parents[2]
if str(ROOT) not in sys.path:  # benchmarks are not installed
    sys.path.append(str(ROOT))

from benchmarks.deployment import Sites  # noqa: E402

pytestmark = pytest.mark.runtime

NODES, USERS = 2, 20
DATA = f"dataset=synthetic dataset.n_users={USERS} dataset.n_items=40 dataset.interactions_per_user=8"
RUN = [
    "base_table.dim=8",
    "embedding.rank=2",
    "strategy.rounds=2",
    "strategy.warmup_rounds=1",
    "federation.min_nodes=2",
]


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sites]:
    assert shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin"), "install nginx: apt-get install nginx-light"
    made = Sites(tmp_path_factory.mktemp("federation"), 30_000 + os.getpid() % 20_000, DATA)
    try:
        done = made.call("start", str(NODES))
        assert done.returncode == 0, done.stdout
        yield made
    finally:
        made.call("stop")
        assert not [path for path in Path("/proc").glob("[0-9]*/cmdline") if str(made.folder).encode() in _read(path)]


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


def port(federation: Sites, name: str = "port") -> int:
    return int((federation.folder / "superlink" / name).read_text())


def status(federation: Sites, path: str, which: str = "port", body: bytes = b"") -> int:
    """What a POST of these bytes is answered with."""
    context = ssl.create_default_context(cafile=str(federation.folder / "ca.crt"))
    address = f"https://127.0.0.1:{port(federation, which)}{path}"
    request = urllib.request.Request(
        address, data=body, method="POST", headers={"Content-Type": "application/protobuf"}
    )
    try:
        with urllib.request.urlopen(request, context=context, timeout=30) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


@pytest.fixture(scope="module")
def outsider(federation: Sites, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of somebody who knows the address and the certificate, and has a fresh home."""
    home = tmp_path_factory.mktemp("outsider")
    (home / "config.toml").write_text(
        f'[superlink]\ndefault = "door"\n\n[superlink.door]\naddress = "127.0.0.1:{port(federation)}"\n'
        f'root-certificates = "{federation.folder}/ca.crt"\n'
    )
    env = {name: value for name, value in os.environ.items() if not name.startswith(("FLWR_", "FEDREC_"))}
    path = f"{Path(sys.executable).parent}{os.pathsep}{env['PATH']}"
    quiet = {"FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1", "NO_PROXY": "127.0.0.1,localhost"}
    return {**env, **quiet, "PATH": path, "FLWR_HOME": str(home), "PYTHONPATH": str(ROOT)}


def runs(federation: Sites) -> list[dict[str, str]]:
    """What the operator, at the loopback port, sees of runs."""
    env = {**os.environ, "FLWR_HOME": str(federation.folder / "superlink/home"), "FLWR_TELEMETRY_ENABLED": "0"}
    flwr = str(Path(sys.executable).with_name("flwr"))
    done = subprocess.run(
        [flwr, "ls", "local", "--format", "json"], env=env, text=True, capture_output=True, check=True
    )
    found: list[dict[str, str]] = json.loads(done.stdout[done.stdout.index("{") :])["runs"]
    return found


def test_an_outsider_is_refused_everything_and_those_with_a_key_finish_their_run(
    federation: Sites, outsider: dict[str, str], tmp_path: Path
) -> None:
    done = federation.call("run", "run_id=honest", *RUN)
    assert done.returncode == 0, done.stdout[-3000:]
    assert json.loads((federation.folder / "runs/honest/summary.json").read_text())["test"]["users"] > 0
    (before,) = runs(federation)
    subprocess.run(["ssh-keygen", "-q", "-t", "ecdsa", "-b", "384", "-N", "", "-f", str(tmp_path / "key")], check=True)
    app = str(assemble(tmp_path / "app"))
    flwr, supernode = (str(Path(sys.executable).with_name(name)) for name in ("flwr", "flower-supernode"))
    for command in (
        ["run", app, "door"],
        ["ls", "door"],
        ["stop", before["run-id"], "door"],
        ["supernode", "list", "door"],
        ["supernode", "register", str(tmp_path / "key.pub"), "door"],
    ):
        done = subprocess.run(
            [flwr, *command], env=outsider, text=True, capture_output=True, timeout=180, cwd=tmp_path, check=False
        )
        assert done.returncode != 0, (command, done.stdout)
        assert before["run-id"] not in done.stdout + done.stderr or command[0] == "stop"
    assert runs(federation) == [before], "nothing was started, and nothing has changed"
    with (tmp_path / "log").open("wb") as log:
        stranger = subprocess.Popen(
            [
                *(supernode, "--root-certificates", f"{federation.folder}/ca.crt"),
                *("--superlink", f"127.0.0.1:{port(federation)}"),
                *("--auth-supernode-private-key", str(tmp_path / "key")),
                *("--host", "127.0.0.1", "--port", str(port(federation) + 50)),
                *("--node-config", f"interactions='{tmp_path}/x.csv' state-dir='{tmp_path}/x'"),
            ],
            env=outsider,
            cwd=tmp_path,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        assert stranger.wait(180) != 0, "a SuperNode whose key is not registered ends"
    finally:
        with suppress(ProcessLookupError):
            os.killpg(stranger.pid, signal.SIGKILL)


OTHERS = ["/v1/control/list-runs", "/v1/control/start-run", "/v1/runtime/acquire-task", "/v1/runtime/pull-task-input"]
WAYS = [
    "{}",
    "/v1/fleet/..{}",
    "/v1/fleet/../..{}",
    "/v1/fleet/%2e%2e/..{}",
    "/v1/fleet/..%2f..{}",
    "//{}",
    "/v1//fleet/../..{}",
]


@pytest.mark.parametrize("path", OTHERS)
def test_the_front_knows_no_other_interface_however_it_is_written(federation: Sites, path: str) -> None:
    assert status(federation, path, "inner-port") != 404, "it is there, on the loopback address"
    for way in WAYS:
        assert status(federation, way.format(path)) in (400, 404), way
    assert status(federation, path.upper()) == 404


def test_the_superlink_listens_on_the_loopback_address_alone(federation: Sites) -> None:
    told = subprocess.run(["ss", "-ltnH"], text=True, capture_output=True, check=True).stdout
    listening = {line.split()[3] for line in told.splitlines()}
    for name in ("port", "inner-port"):
        assert f"127.0.0.1:{port(federation, name)}" in listening
        assert f"0.0.0.0:{port(federation, name)}" not in listening
    assert status(federation, "/v1/fleet/pull-messages") in (400, 401, 403, 415, 422), "without a signature"
