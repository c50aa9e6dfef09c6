"""`fedrec doctor`: what of this installation and machine a run needs, whether it is there, and what mends it."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, metadata, requires, version
from pathlib import Path
from typing import Literal, NamedTuple

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from rich.console import Console
from rich.table import Table
from rich.text import Text

from commands.processes import command_lines
from commands.resources import cluster
from fedrec import __version__
from fedrec.config.paths import default_runs_dir, home
from fedrec.core.disk import reason
from fedrec.core.errors import ConfigError, FedrecError

_NAME = "fedrec"
_ROOM = 2 * 2**30
"""Bytes of disk below which a run of real size may fail."""
_PACKAGES = (
    "fedrec",
    "peft_embeddings",
    "exchanges",
    "federation",
    "strategies",
    "client_app",
    "server_app",
    "commands",
    "conf",
)
_LEFTOVERS = ("flower-superlink", "flower-supernode", "flower-simulation", "flwr-simulation", "raylet", "gcs_server")
_STYLES = {"well": "green", "warning": "yellow", "failed": "bold red"}


class Check(NamedTuple):
    """One thing that was looked at.

    Attributes:
        name: What.
        state: `well`; `warning`, if runs work or may work; `failed`, if they do not.
        found: What is there.
        mend: What to do about it; empty if it is well.
    """

    name: str
    state: Literal["well", "warning", "failed"]
    found: str
    mend: str = ""


def doctor() -> list[Check]:
    """Look at everything; nothing is changed, and nothing outside this machine is asked."""
    return [
        _python(),
        *_requirements(),
        _torch(),
        _machine(),
        *_folders(),
        _shadows(),
        _loopback(),
        _ray(),
        _leftovers(),
    ]


def require_well(checks: Sequence[Check]) -> None:
    """Raise FedrecError if any of them has failed."""
    if failed := [check.name for check in checks if check.state == "failed"]:
        raise FedrecError(f"{len(failed)} of {len(checks)} checks failed: {', '.join(failed)}")


def show_checks(checks: Sequence[Check], console: Console) -> None:
    """Print them as a table, and below it what mends what is not well."""
    table = Table(title=f"fedrec {__version__}", title_justify="left")
    for head in ("", "", "found"):
        table.add_column(head, overflow="fold")
    for check in checks:
        table.add_row(Text(check.state, style=_STYLES[check.state]), Text(check.name), Text(check.found))
    console.print(table)
    for check in checks:
        if check.mend:
            console.print(f"{check.name}: {check.mend}", soft_wrap=True, highlight=False, markup=False)


def _python() -> Check:
    found = platform.python_version()
    with suppress(PackageNotFoundError):
        wanted = metadata(_NAME)["Requires-Python"] or ""
        if not SpecifierSet(wanted).contains(found, prereleases=True):
            return Check(
                "python", "failed", f"{found}, wanted {wanted}", "install fedrec in an environment of another Python"
            )
    return Check("python", "well", f"{found} in {sys.prefix}")


def _requirements() -> list[Check]:
    """One check for all packages that fedrec needs, or one for each that is not as it should be."""
    try:
        wanted = [Requirement(text) for text in requires(_NAME) or ()]
    except PackageNotFoundError:
        mend = "install it into this environment: `pip install -c constraints.txt .` in the folder of the sources"
        return [Check("packages", "failed", "fedrec is not installed here, its files are only on the path", mend)]
    needed = [each for each in wanted if each.marker is None or each.marker.evaluate({"extra": ""})]
    found = [check for each in needed if (check := _requirement(each))]
    return found or [Check("packages", "well", f"{len(needed)} that fedrec needs, in the versions that it needs")]


def _requirement(wanted: Requirement) -> Check | None:
    mend = f"pip install '{wanted.name}{wanted.specifier}'"
    try:
        found = version(wanted.name)
    except PackageNotFoundError:
        return Check(wanted.name, "failed", f"not installed, wanted {wanted.specifier}", mend)
    if wanted.specifier.contains(found, prereleases=True):
        return None
    return Check(wanted.name, "failed", f"{found}, wanted {wanted.specifier}", mend)


def _torch() -> Check:
    try:
        import torch
    except (ImportError, OSError) as error:  # a build for another machine
        return Check("torch", "failed", f"cannot be imported: {reason(error)}", "install torch anew")
    threads = f"threads: {torch.get_num_threads()}"
    if torch.cuda.is_available():
        return Check("torch", "well", f"{torch.__version__}, {torch.cuda.get_device_name(0)}, {threads}")
    if torch.version.cuda is not None:
        mend = "if this machine has a GPU, install its driver; if not, the small CPU build of torch does the same"
        return Check("torch", "warning", f"{torch.__version__}, a CUDA build, and no GPU to be seen; {threads}", mend)
    return Check("torch", "well", f"{torch.__version__} without a GPU, {threads}")


def _machine() -> Check:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    found = f"{platform.system()} {platform.machine()}, {cores} cores, {memory:.0f} GiB of memory"
    if memory < 2:
        return Check(
            "machine", "warning", found, "2 GiB are needed to import torch and Flower and to train a small shop"
        )
    return Check("machine", "well", found)


def _folders() -> list[Check]:
    try:
        places = {"fedrec's own folder": home(), "runs": default_runs_dir(Path.cwd())}
    except (ConfigError, OSError) as error:
        return [
            Check(
                "folders",
                "failed",
                str(error),
                "set FEDREC_HOME to an absolute path, and start in a folder that is there",
            )
        ]
    elsewhere = {"fedrec's own folder": "FEDREC_HOME", "runs": "runs_dir, or start in another folder"}
    return [_folder(name, path, f"set {elsewhere[name]}") for name, path in places.items()]


def _folder(name: str, path: Path, elsewhere: str) -> Check:
    """Whether a folder, or the nearest one above it that is there, can be written, and has room."""
    try:
        there = next(parent for parent in (path, *path.parents) if parent.exists())
        with tempfile.TemporaryFile(dir=there):
            free = shutil.disk_usage(there).free
    except OSError as error:
        return Check(name, "failed", f"{path} cannot be written: {reason(error)}", elsewhere)
    found = f"{path}, {free / 2**30:.1f} GiB free"
    if free < _ROOM:
        return Check(name, "warning", found, f"make room (`fedrec runs --delete ID` for runs), or {elsewhere}")
    return Check(name, "well", found)


def _shadows() -> Check:
    """Whether a script in the working directory would import something else under the names of fedrec's packages."""
    try:
        folder = Path.cwd()
    except OSError as error:
        return Check("names", "failed", f"no working directory: {reason(error)}", "start in a folder that is there")
    own = importlib.util.find_spec(_NAME)
    source = Path(own.origin).parent.parent if own and own.origin else None
    taken = [name for name in _PACKAGES if (folder / name).is_dir() or (folder / f"{name}.py").is_file()]
    if not taken or folder.resolve() == (source.resolve() if source else None):
        return Check("names", "well", "nothing in this folder has the name of a package of fedrec")
    mend = "a script or notebook here that imports fedrec would get them instead: rename them, or start it elsewhere"
    return Check("names", "warning", f"in {folder}: {', '.join(taken)}", mend)


def _loopback() -> Check:
    try:
        with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname(), 2.0):
            port = server.getsockname()[1]
    except OSError as error:
        mend = "`fedrec simulate` needs ports of the loopback address; `fedrec train` needs none"
        return Check("ports", "failed", f"127.0.0.1 does not answer itself: {reason(error)}", mend)
    return Check("ports", "well", f"127.0.0.1 answers (tried {port})")


def _ray() -> Check:
    if importlib.util.find_spec("ray") is None:
        mend = "`fedrec simulate` needs Ray, which comes with `flwr[simulation]`; `fedrec train` does not"
        return Check("ray", "warning", "not installed", mend)
    named = cluster()
    where = f"RAY_ADDRESS={named}: simulations run on that cluster" if named else "started for each simulation"
    return Check("ray", "well", f"{version('ray')}, {where}")


def _leftovers() -> Check:
    """Processes of Flower and Ray that run now: of a simulation or deployment, or forgotten."""
    try:
        found = {pid: words for pid, words in command_lines().items() if _is_leftover(words)}
    except (OSError, subprocess.CalledProcessError) as error:
        return Check("leftovers", "warning", f"processes cannot be listed: {reason(error)}")
    if not found:
        return Check("leftovers", "well", "no process of Flower or Ray is running")
    some = ", ".join(f"{pid} {Path(words[0]).name}" for pid, words in sorted(found.items())[:8])
    more = f" and {len(found) - 8} more" if len(found) > 8 else ""
    mend = "if no simulation or deployment of yours is running, end them: kill PID"
    return Check("leftovers", "warning", some + more, mend)


def _is_leftover(words: Sequence[str]) -> bool:
    """Whether a command line is a program of Flower or Ray, started by itself or by Python."""
    return any(Path(word).name.startswith(_LEFTOVERS) for word in words[:2])
