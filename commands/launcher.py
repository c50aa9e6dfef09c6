"""What stands where a SuperNode looks for `flwr-clientapp`: it runs an app that the site allows, and no other.

Flower starts a process by name for every task. `fedrec supernode` puts this one in its place. It does what Flower's
does, but when the bundle of the app is here as bytes, and before it is unpacked, it computes the bundle's SHA-256 and
looks into the site's policy. Nothing that the server says is believed: neither the digest that it names, nor the names
by which Flower would find the folder of the code, which could be those of an app that lies there from before. Code is
unpacked into a folder of this SuperNode's own and loaded from there.

A refusal is an error of the task, which Flower carries to the server: the site goes on and answers other runs.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import logging
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from flwr.cli.install import install_from_fab
from flwr.clientapp.utils import get_load_client_app_fn
from flwr.supercore.constant import TASK_TYPE_TO_COMMAND, TaskType
from flwr.supercore.version import package_version
from flwr.supernode.cli import flwr_clientapp

from commands.flower_app import PACKAGES
from fedrec.core.errors import FederationError, PolicyError

if TYPE_CHECKING:
    from client_app.homes.site import Site

log = logging.getLogger("flwr")  # Flower's, so that a line of ours stands among its own in the SuperNode's log

FLOWER = "1.41."
CLIENT_APP = TASK_TYPE_TO_COMMAND[TaskType.CLIENT_APP]
SITE_FILE = "site.json"
"""The node configuration, in the folder of the launchers."""
_RUNTIME = "flwr.supernode.runtime.run_clientapp"
_SEAM = ("pull_task_input", "install_from_fab", "get_load_client_app_fn")


def seam() -> ModuleType:
    """Flower's module that runs a ClientApp. Raises FederationError if it is not the one that this launcher knows."""
    try:
        runtime = importlib.import_module(_RUNTIME)
        if package_version.startswith(FLOWER) and {*_SEAM} <= {*runtime.run_clientapp.__code__.co_names}:
            return runtime
    except (ImportError, AttributeError):
        pass
    raise FederationError(
        f"Flower {package_version} does not start an app in the way of {FLOWER}*, so that nothing could stand before "
        f"it: install what fedrec's constraints.txt names (flwr {FLOWER}*)"
    )


class Gate:
    """Stands before the code of one task.

    Args:
        folder: That of the launchers, which `fedrec supernode` has made: it holds the node configuration, and what
            is unpacked.
        command: The name of Flower's command that was to be started.
    """

    def __init__(self, folder: Path, command: str) -> None:
        self._folder = folder
        self._command = command
        self._unpacked: Path | None = None

    def install(self, content: bytes, skip_prompt: bool = True) -> Path:
        """Unpack a bundle that the site allows; in the place of Flower's `install_from_fab`.

        Raises PolicyError if the site allows others, ConfigError if its policy cannot be read; then nothing is.
        """
        # Not at the start: Flower gives a task 30 seconds to be fetched, on however slow a machine, and starts it anew.
        from client_app.homes.policy import policy_of
        from client_app.homes.site import site_of

        digest = hashlib.sha256(content).hexdigest()
        site = site_of(json.loads((self._folder / SITE_FILE).read_text(encoding="utf-8")))
        allowed = policy_of(site).apps
        if self._command != CLIENT_APP:
            self._refuse(site, digest, f"a site runs ClientApps, not {self._command}")
        if allowed and digest not in allowed:
            self._refuse(site, digest, "it is not among the apps of this site's policy")
        self._unpacked = self._folder / "apps" / digest
        if not self._unpacked.exists():
            log.info(
                "fedrec: the app %s may run: %s", digest, "it is allowed" if allowed else "any app may, by the policy"
            )
            self._unpack(content, self._unpacked)
        return self._unpacked

    def _unpack(self, content: bytes, into: Path) -> None:
        """Whole or not at all, whatever ends this process."""
        into.parent.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(dir=self._folder) as part:
            install_from_fab(content, install_dir=Path(part), skip_prompt=True).rename(into)

    def _refuse(self, site: Site, digest: str, why: str) -> None:
        from client_app.homes.policy import policy_path
        from client_app.homes.sent import log_sent

        log.error("fedrec: refused the app %s, of which nothing was run: %s (%s)", digest, why, policy_path(site))
        log_sent(site.state_dir, exchange="app", app=digest, reason="policy", problem=why)
        raise PolicyError(f"the app {digest} was refused: {why}")

    def loader(self, *_: Any, **__: Any) -> Callable[[str, str, str], Any]:
        """What loads the app from where it was unpacked; in the place of Flower's `get_load_client_app_fn`."""
        if self._unpacked is None:
            raise FederationError("Flower loads an app that was not unpacked: nothing of it is run")
        # What was imported from the site's own installation must not take the place of what the bundle brings.
        for name in [name for name in sys.modules if name.partition(".")[0] in ("commands", *PACKAGES)]:
            del sys.modules[name]
        return get_load_client_app_fn(default_app_ref="", app_path=str(self._unpacked), multi_app=True)


def main(arguments: Sequence[str]) -> None:
    """Run one task: the launchers' folder, the name of Flower's command, and what Flower gives that command."""
    folder, command, *rest = arguments
    runtime, gate = seam(), Gate(Path(folder), command)
    runtime.install_from_fab = gate.install  # type: ignore[attr-defined]
    runtime.get_load_client_app_fn = gate.loader  # type: ignore[attr-defined]
    sys.argv = [command, *rest]
    flwr_clientapp()


if __name__ == "__main__":
    main(sys.argv[1:])
