"""A site runs the app bundles that its policy lists: what comes is hashed here, before anything of it is unpacked."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import stat
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from flwr.app import Error
from flwr.clientapp.client_app import LoadClientAppError
from flwr.supercore.constant import TASK_TYPE_TO_COMMAND

from commands import launcher, supernode
from commands.launcher import CLIENT_APP, Gate, seam
from commands.supernode import guarded_path, make_launchers
from fedrec.core.errors import ConfigError, FederationError, PolicyError

ROOT = Path(__file__).resolve().parents[2]


def bundle(folder: Path, text: str = "", name: str = "tiny") -> bytes:
    """A Flower app whose client writes a file when it is imported."""
    from flwr.cli.build import build_fab_from_disk

    app = folder / name
    (app / name).mkdir(parents=True)
    (app / "pyproject.toml").write_text(
        f'[project]\nname = "{name}"\nversion = "1.0"\nlicense = "Apache-2.0"\ndependencies = []\n'
        f'[tool.flwr.app]\npublisher = "p"\n[tool.flwr.app.components]\nserverapp = "{name}.app:server"\n'
        f'clientapp = "{name}.app:app"\n'
    )
    (app / name / "__init__.py").write_text("")
    (app / name / "app.py").write_text(
        f"{text}\nfrom pathlib import Path\nfrom flwr.clientapp import ClientApp\n"
        f"from flwr.serverapp import ServerApp\nPath({str(folder)!r}, 'ran').touch()\n"
        "app, server = ClientApp(), ServerApp()\n"
    )
    return build_fab_from_disk(app)


class Site:
    """A site that `fedrec supernode` has prepared."""

    def __init__(self, folder: Path) -> None:
        self.state, self.folder = folder / "state", folder / "state/launch"
        self.state.mkdir(mode=0o700)
        self.config = {"interactions": f"{folder}/clicks.csv", "state-dir": str(self.state)}
        make_launchers(self.folder, self.config)

    def allow(self, *digests: str) -> None:
        self.write(f"apps = {json.dumps(digests)}\n")

    def write(self, text: str) -> None:
        (self.state / "policy.toml").write_text(text)
        (self.state / "policy.toml").chmod(0o600)

    def gate(self, command: str = CLIENT_APP) -> Gate:
        return Gate(self.folder, command)

    def unpacked(self) -> list[str]:
        apps = self.folder / "apps"
        return sorted(path.name for path in apps.iterdir()) if apps.exists() else []

    def sent(self) -> list[dict[str, Any]]:
        path = self.state / "sent.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


@pytest.fixture(autouse=True)
def heard(monkeypatch: pytest.MonkeyPatch) -> None:
    """Flower's log reaches pytest."""
    monkeypatch.setattr(logging.getLogger("flwr"), "propagate", True)


@pytest.fixture(autouse=True)
def modules_stay() -> Any:
    """The launcher forgets what it has imported, which is right for its own process alone."""
    before, path = dict(sys.modules), list(sys.path)
    yield
    sys.modules.clear()
    sys.modules.update(before)
    sys.path[:] = path


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def test_what_is_listed_is_unpacked_and_loaded_from_there(site: Site, tmp_path: Path) -> None:
    content = bundle(tmp_path)
    site.allow("0" * 64, digest(content))
    gate = site.gate()
    assert gate.install(content) == site.folder / "apps" / digest(content)
    assert site.unpacked() == [digest(content)]
    assert not (tmp_path / "ran").exists(), "unpacking runs nothing"
    gate.loader(default_app_ref="", app_path=None, multi_app=True)("p/tiny", "1.0", "f" * 64)
    assert (tmp_path / "ran").exists()
    assert site.sent() == []


def test_what_is_not_listed_is_refused_before_anything_of_it_is_unpacked(
    site: Site, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    allowed = bundle(tmp_path / "a")
    other = bundle(tmp_path / "b", "# one comment more")
    site.allow(digest(allowed))
    with pytest.raises(PolicyError, match=f"the app {digest(other)} was refused"):
        site.gate().install(other)
    assert site.unpacked() == []
    assert f"refused the app {digest(other)}, of which nothing was run" in caplog.text
    (line,) = site.sent()
    assert (line["exchange"], line["app"], line["reason"]) == ("app", digest(other), "policy")


def test_no_list_allows_any_app_and_the_log_says_so(
    site: Site, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    content = bundle(tmp_path)
    for text in ("", "apps = []\n", "max_steps = 7\n"):
        site.write(text)
        assert site.gate().install(content).is_dir()
    (site.state / "policy.toml").unlink()
    with caplog.at_level("INFO", "flwr"):
        make_launchers(site.folder, site.config)
        assert site.gate().install(content).is_dir()
    assert "any app may, by the policy" in caplog.text


@pytest.mark.parametrize(
    "text",
    ["apps = [", "apps = 7", "apps = ['12']", "apps = ['" + "A" * 64 + "']", "aps = []", "apps = ['" + "0" * 65 + "']"],
)
def test_a_policy_that_cannot_be_read_runs_nothing(site: Site, tmp_path: Path, text: str) -> None:
    content = bundle(tmp_path)
    site.write(text)
    with pytest.raises(ConfigError, match=r"policy\.toml"):
        site.gate().install(content)
    assert site.unpacked() == []


def test_a_policy_that_others_may_write_runs_nothing(site: Site, tmp_path: Path) -> None:
    content = bundle(tmp_path)
    site.allow(digest(content))
    (site.state / "policy.toml").chmod(0o666)
    with pytest.raises(ConfigError, match="may be written by others"):
        site.gate().install(content)
    assert site.unpacked() == []


@pytest.mark.parametrize("command", sorted(set(TASK_TYPE_TO_COMMAND.values()) - {CLIENT_APP}))
def test_a_site_runs_no_other_kind_of_task_whatever_it_lists(site: Site, tmp_path: Path, command: str) -> None:
    content = bundle(tmp_path)
    site.allow(digest(content))
    with pytest.raises(PolicyError, match=f"a site runs ClientApps, not {command}"):
        site.gate(command).install(content)
    assert site.unpacked() == []


def test_a_server_chooses_no_other_folder_by_the_names_that_it_gives(site: Site, tmp_path: Path) -> None:
    """An app that lay in Flower's home from before the list was made stays where it is."""
    old = tmp_path / "home/apps/p.old.1.0.deadbeef"
    old.mkdir(parents=True)
    content = bundle(tmp_path / "new")
    site.allow(digest(content))
    gate = site.gate()
    gate.install(content)
    load = gate.loader(default_app_ref="", app_path=None, multi_app=True)
    for fab_id, version in (("p/old", "1.0"), ("p/tiny", "1.0/../../../../home/apps/p.old.1.0")):
        with pytest.raises(LoadClientAppError, match="mismatch"):
            load(fab_id, version, "deadbeef")
    assert not (tmp_path / "new/ran").exists()


def test_nothing_is_loaded_that_was_not_unpacked(site: Site) -> None:
    with pytest.raises(FederationError, match="not unpacked"):
        site.gate().loader()


def test_what_the_site_has_imported_does_not_take_the_place_of_what_the_bundle_brings(
    site: Site, tmp_path: Path
) -> None:
    gate = site.gate()
    gate.install(bundle(tmp_path))
    gate.loader()
    left = {name.partition(".")[0] for name in sys.modules}
    assert not left & {"fedrec", "client_app", "exchanges", "peft_embeddings", "commands"}


def test_a_task_that_is_refused_ends_as_flower_expects_and_one_that_is_listed_runs(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Flower's own code, with a SuperNode that gives the task and takes the answer."""
    content = bundle(tmp_path)
    runtime = seam()
    pushed: list[Any] = []
    message = SimpleNamespace(metadata=SimpleNamespace())
    run = SimpleNamespace(fab_id="p/tiny", fab_version="1.0", run_id=1)
    named = SimpleNamespace(hash_str=digest(content), content=content)  # the digest that the server names is right
    monkeypatch.setattr(runtime, "pull_task_input", lambda client: (message, object(), run, named))
    monkeypatch.setattr(runtime, "push_message", lambda client, reply, context: pushed.append(reply))
    for name in ("HeartbeatSender", "register_signal_handlers", "event", "flwr_exit"):
        monkeypatch.setattr(runtime, name, lambda *_, **__: SimpleNamespace(start=lambda: None, is_running=False))
    monkeypatch.setattr(runtime, "Message", lambda error, reply_to: error)
    monkeypatch.setattr(launcher, "flwr_clientapp", lambda: runtime.run_clientapp("127.0.0.1:1", "token", True))
    monkeypatch.setattr(runtime, "install_from_fab", runtime.install_from_fab)  # put back afterwards
    monkeypatch.setattr(runtime, "get_load_client_app_fn", runtime.get_load_client_app_fn)
    site.allow("0" * 64)
    named.hash_str = "0" * 64  # a digest that is allowed, beside other content
    launcher.main([str(site.folder), CLIENT_APP])
    (error,) = pushed
    assert isinstance(error, Error)
    assert error.reason is not None
    assert "PolicyError" in error.reason
    assert digest(content) in error.reason
    assert not (tmp_path / "ran").exists()
    site.allow(digest(content))
    launcher.main([str(site.folder), CLIENT_APP])
    assert (tmp_path / "ran").exists()


@pytest.mark.parametrize("change", ["version", "name", "module"])
def test_another_flower_is_refused_at_the_start(change: str, monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = seam()
    if change == "version":
        monkeypatch.setattr(launcher, "package_version", "1.42.0")
    elif change == "name":
        monkeypatch.setattr(runtime, "run_clientapp", lambda: runtime.pull_task_input)
    else:
        monkeypatch.setattr(launcher, "_RUNTIME", "flwr.supernode.elsewhere")
    with pytest.raises(FederationError, match="nothing could stand before it"):
        seam()


def test_nobody_else_looks_into_the_launchers_and_no_other_command_is_found(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert stat.S_IMODE(site.folder.stat().st_mode) == 0o700
    assert all(not stat.S_IMODE(path.stat().st_mode) & 0o077 for path in site.folder.iterdir() if path.suffix == "")
    venv = tmp_path / "venv"
    venv.mkdir()
    (venv / "flwr-model").touch()
    monkeypatch.setenv("PATH", os.pathsep.join([str(venv), "", "bin", str(Path(sys.executable).parent), "/usr/bin"]))
    path = guarded_path(site.folder).split(os.pathsep)
    assert path[0] == str(site.folder)
    assert not {str(venv), "", "bin", str(Path(sys.executable).parent)} & set(path)
    assert {path.name for path in site.folder.iterdir()} >= {*TASK_TYPE_TO_COMMAND.values(), "flower-superexec"}
    make_launchers(tmp_path / "a:b", {})
    with pytest.raises(FederationError, match="without ':' in its path"):
        guarded_path(tmp_path / "a:b")
    (site.folder / CLIENT_APP).chmod(0o600)
    with pytest.raises(FederationError, match="noexec"):
        guarded_path(site.folder)


def test_a_new_start_forgets_what_was_unpacked(site: Site, tmp_path: Path) -> None:
    site.gate().install(bundle(tmp_path))
    assert site.unpacked()
    make_launchers(site.folder, site.config)
    assert site.unpacked() == []


def test_the_launcher_imports_nothing_from_the_working_directory(site: Site, tmp_path: Path) -> None:
    here = tmp_path / "here"
    for package in ("flwr", "commands", "client_app", "fedrec"):
        (here / package).mkdir(parents=True)
        (here / package / "__init__.py").write_text(f"open({str(tmp_path / 'taken')!r}, 'w')\n")
    done = subprocess.run(
        [str(site.folder / CLIENT_APP), "--help"],
        cwd=here,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "Run a Flower ClientApp" in done.stdout
    assert not (tmp_path / "taken").exists()


def test_a_task_is_fetched_before_anything_heavy_is_imported() -> None:
    """Flower gives it 30 seconds, also on a slow machine."""
    code = "import sys, commands.launcher; print(sorted({'torch', 'client_app', 'exchanges'} & {*sys.modules}))"
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    assert subprocess.check_output([sys.executable, "-P", "-c", code], env=env, text=True) == "[]\n"


class StartedError(Exception):
    """In the place of a process that becomes another."""


def start(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> dict[str, Any]:
    told: dict[str, Any] = {}

    def become(program: Path, given: list[str], env: dict[str, str]) -> None:
        told.update(program=program, given=given, env=env)
        raise StartedError

    monkeypatch.setattr(supernode.os, "execve", become)
    with pytest.raises(StartedError):
        supernode.supernode(arguments)
    return told


@pytest.mark.parametrize("form", ["text", "file", "short"])
def test_the_command_becomes_flowers_with_the_launchers_in_front(
    form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    state = tmp_path / "a state's"
    words = f"interactions='{tmp_path}/clicks.csv' state-dir=\"{state}\""
    if form == "file":
        (tmp_path / "node.toml").write_text(f"interactions = '{tmp_path}/clicks.csv'\nstate-dir = \"{state}\"\n")
        words = f"{tmp_path}/node.toml"
    arguments = ["--superlink", "x:1", "--node-conf" if form == "short" else "--node-config", words]
    told = start(monkeypatch, *arguments)
    assert told["given"] == [str(Path(sys.executable).with_name("flower-supernode")), *arguments]
    assert told["env"]["PATH"].split(os.pathsep)[0] == str(state / "launch")
    assert json.loads((state / "launch/site.json").read_text())["state-dir"] == str(state)
    assert "ANY app that the server sends may run" in caplog.text


def test_the_command_refuses_what_would_go_past_the_launchers(tmp_path: Path) -> None:
    words = f"interactions='{tmp_path}/clicks.csv' state-dir='{tmp_path}/state'"
    for more, problem in (
        (["--isolation", "process"], "isolation=process"),
        (["--isol=process"], "isolation=process"),
        (["--allow-runtime-dependency-installation"], "a server would choose what is installed"),
    ):
        with pytest.raises(ConfigError, match=problem):
            supernode.supernode(["--node-config", words, *more])
    with pytest.raises(ConfigError, match="state-dir: is missing"):
        supernode.supernode(["--superlink", "x:1"])
    (tmp_path / "state").mkdir(mode=0o700)
    (tmp_path / "state/policy.toml").write_text("apps = 7")
    with pytest.raises(ConfigError, match="policy"):
        supernode.supernode(["--node-config", words])
    assert not (tmp_path / "state/launch").exists()
