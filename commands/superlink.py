"""A SuperLink for one run: own home, neutral directory, known environment, free port, and nothing left afterwards."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sysconfig
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from commands.processes import Offspring
from fedrec.core.errors import FederationError

NAME = "simulation"
_START_TIMEOUT = 300.0
_CALL_TIMEOUT = 300.0
_POLL = 0.05
_LONGEST_BASE = 32  # Ray's sockets lie 68 characters deeper than this, and a socket's path may have 103 on some systems

_ENVIRONMENT = {
    # Flower would install the app's dependencies anew in every run, a CUDA build of torch included.
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.1",
    "RAY_USAGE_STATS_ENABLED": "0",
    # A worker that asks for no GPU sees none; Ray announces another default.
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1",
    "RAY_DEDUP_LOGS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "PYTHONUNBUFFERED": "1",
}


class SuperLink:
    """A simulation SuperLink, running inside `with`; there is other work to do until it answers, then call `wait`.

    Attributes:
        base: Private temporary folder; all that Flower and Ray write lies in it and goes with it.
        offspring: Everything that was started.
    """

    def __init__(self) -> None:
        self.base = _private_folder()
        self.offspring = Offspring(self.base)
        self._cwd = self.base / "cwd"  # empty: a worker imports from its working directory before the app's bundle
        self._log = self.base / "superlink.log"
        self._env = environment(self.base)
        self._port = 0
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> Self:
        """Start."""
        try:
            self._start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End every process and remove the private folder."""
        self.close()

    def _start(self) -> None:
        home = Path(self._env["FLWR_HOME"])
        home.mkdir()
        self._cwd.mkdir()
        self._port = port = _free_port()
        (home / "config.toml").write_text(
            f'[superlink]\ndefault = "{NAME}"\n\n[superlink.{NAME}]\naddress = "127.0.0.1:{port}"\ninsecure = true\n'
        )
        command = [self._script("flower-superlink"), "--insecure", "--simulation", "--isolation", "subprocess"]
        command += ["--host", "127.0.0.1", "--port", str(port), "--disable-runtime-dependency-installation"]
        with self._log.open("w") as log:
            self._process = self.offspring.start(
                command, self._env, self._cwd, stdout=log.fileno(), stderr=subprocess.STDOUT
            )

    def wait(self) -> None:
        """Wait until it answers. Raises FederationError if it ends instead, or takes too long."""
        deadline = time.monotonic() + _START_TIMEOUT
        while not _healthy(self._port):
            self.check()
            if time.monotonic() > deadline:
                where = f"127.0.0.1:{self._port}"
                raise FederationError(
                    f"Flower's SuperLink did not answer on {where} in {_START_TIMEOUT:.0f} s:\n{self.tail()}"
                )
            time.sleep(_POLL)
        self.offspring.look()

    def check(self) -> None:
        """Raise a FederationError if the SuperLink has ended."""
        if self._process is None or (code := self._process.poll()) is None:
            return
        raise FederationError(f"Flower's SuperLink ended with exit status {code}. Its last lines:\n{self.tail()}")

    def call(self, *arguments: str) -> dict[str, Any]:
        """Run `flwr <arguments> --format json` and return what it prints; its failure is a FederationError."""
        process = self.offspring.start(
            [self._script("flwr"), *arguments, "--format", "json"],
            self._env,
            self._cwd,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        try:
            out, err = process.communicate(timeout=_CALL_TIMEOUT)
        except subprocess.TimeoutExpired as error:
            self.offspring.kill(process)
            raise FederationError(
                f"`flwr {' '.join(arguments[:1])}` had no answer from Flower's SuperLink on 127.0.0.1:{self._port} in "
                f"{_CALL_TIMEOUT:.0f} s and was ended: this machine may be out of memory or busy with other work; look "
                f"at that and at the SuperLink's last lines, and start again:\n{self.tail()}"
            ) from error
        start = out.find("{")
        try:
            answer = json.loads(out[start:]) if start >= 0 else None
        except json.JSONDecodeError:
            answer = None
        if process.returncode != 0 or not isinstance(answer, dict) or not answer.get("success"):
            reason = answer.get("error-message") if isinstance(answer, dict) else None
            raise FederationError(
                f"`flwr {' '.join(arguments[:1])}` failed with exit status {process.returncode}: "
                f"{reason or (err or out).strip() or 'it said nothing'}"
            )
        return answer

    def stream(self, run_id: str) -> subprocess.Popen[str]:
        """Start `flwr log <run> --stream`; it ends when the run has ended."""
        return self.offspring.start(
            [self._script("flwr"), "log", run_id, NAME, "--stream"],
            self._env,
            self._cwd,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )

    def tail(self, lines: int = 20) -> str:
        """The last lines of the SuperLink's own log."""
        if not self._log.exists():
            return "(it wrote no log)"
        return "\n".join(self._log.read_text(errors="replace").splitlines()[-lines:])

    def close(self) -> None:
        """End every process and remove the private folder."""
        try:
            left = self.offspring.end()
        except BaseException:  # a Ctrl-C right here
            self.offspring.end()
            raise
        finally:
            shutil.rmtree(self.base, ignore_errors=True)
        if left:
            raise FederationError(f"these processes would not end: {sorted(left)}; end them with `kill -9`")

    def _script(self, name: str) -> str:
        path = shutil.which(name, path=self._env["PATH"])
        if path is None:
            raise FederationError(
                f"the command {name!r} of Flower is not in {sysconfig.get_path('scripts')} nor on the PATH: "
                "install fedrec with its dependencies in one environment"
            )
        return path


def environment(base: Path) -> dict[str, str]:
    """The environment of a SuperLink, and so of everything it starts: the caller's, less what would lead it astray.

    Args:
        base: The run's private folder.
    """
    env = {key: value for key, value in os.environ.items() if not key.startswith("FLWR_")}
    env |= _ENVIRONMENT
    env["FLWR_HOME"] = str(base / "home")
    # Ray looks for a running cluster in its temporary folder and would join it; RAY_ADDRESS is the way to ask for that.
    env["RAY_TMPDIR"] = str(base)
    # Flower starts its parts by name, and a command called by its path may run without its environment being activated.
    env["PATH"] = os.pathsep.join([sysconfig.get_path("scripts"), env.get("PATH", os.defpath)])
    for name in ("NO_PROXY", "no_proxy"):
        env[name] = ",".join(filter(None, [env.get(name), "127.0.0.1", "localhost"]))
    return env


def _private_folder() -> Path:
    folder = Path(tempfile.gettempdir())
    if len(str(folder)) > _LONGEST_BASE - len("/fedrec-12345678") and Path("/tmp").is_dir():
        folder = Path("/tmp")
    return Path(tempfile.mkdtemp(prefix="fedrec-", dir=folder)).resolve()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _healthy(port: int) -> bool:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # a proxy cannot reach our own machine
    try:
        with opener.open(f"http://127.0.0.1:{port}/health", timeout=2.0) as answer:
            return bool(answer.status == 200)
    except (OSError, urllib.error.URLError):
        return False
