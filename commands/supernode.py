"""`fedrec supernode`: Flower's SuperNode, which runs only the apps that the site's policy allows.

A SuperNode starts each task by the name of a command, which its SuperExec looks up on the PATH. So this makes a folder
in the state-dir with commands of these names, all of them `commands.launcher`, and starts Flower's `flower-supernode`
with a PATH that leads to them and to no others: if the folder is gone, nothing is started.
"""

from __future__ import annotations

import argparse
import importlib
import json
import logging
import os
import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NoReturn

from flwr.common.config import parse_config_args
from flwr.supercore.constant import TASK_TYPE_TO_COMMAND

from client_app.homes.policy import policy_of, policy_path
from client_app.homes.site import folder_problems, site_of
from commands.launcher import SITE_FILE, seam
from fedrec.core.errors import ConfigError, FederationError
from fedrec.core.owned import own_file

log = logging.getLogger("flwr")

FOLDER = "launch"
"""The launchers' folder in the state-dir; it is made anew with every start."""
_SUPEREXEC = "flower-superexec"
_COMMANDS = tuple(TASK_TYPE_TO_COMMAND.values())


def supernode(arguments: Sequence[str]) -> NoReturn:
    """Become a SuperNode with the launchers in front.

    Args:
        arguments: Those of `flower-supernode`.

    Raises ConfigError if they or the site's policy are not what they should be, FederationError if Flower is another.
    """
    seam()
    node_config = _node_config(arguments)
    site = site_of(node_config)
    if problems := folder_problems(site):
        raise ConfigError(problems)
    apps, path = policy_of(site).apps, policy_path(site)
    folder = site.state_dir / FOLDER
    make_launchers(folder, node_config)
    env = {**os.environ, "PATH": guarded_path(folder)}
    if apps:
        log.info("fedrec: %d app(s) may run at this site, by %s", len(apps), path)
    else:
        log.warning("fedrec: ANY app that the server sends may run at this site: %s names no apps", path)
    program = Path(sys.executable).with_name("flower-supernode")
    os.execve(program, [str(program), *arguments], env)


def _node_config(arguments: Sequence[str]) -> dict[str, object]:
    """The node configuration, read as Flower reads it. Raises ConfigError if a task would get past the launchers."""
    given = _parser().parse_args(arguments)
    problems = []
    if given.isolation != "subprocess":
        problems.append(
            f"isolation={given.isolation}: tasks are then started by a {_SUPEREXEC} of its own, which this command "
            "does not reach; leave it out"
        )
    if given.runtime_dependency_install:
        problems.append("allow-runtime-dependency-installation: a server would choose what is installed; leave it out")
    if problems:
        raise ConfigError(problems)
    return dict(parse_config_args([given.node_config] if given.node_config else None))


def _parser() -> argparse.ArgumentParser:
    """Flower's own, so that both read the same arguments in the same way."""
    module = importlib.import_module("flwr.supernode.cli.flower_supernode")
    parser: argparse.ArgumentParser = module._parse_args_run_supernode()
    return parser


def make_launchers(folder: Path, node_config: Mapping[str, object]) -> None:
    """Make the folder anew, with a command of every name by which Flower starts a task, and its SuperExec."""
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(mode=0o700)
    own_file(folder / SITE_FILE)
    (folder / SITE_FILE).write_text(json.dumps(node_config), encoding="utf-8")
    for command in _COMMANDS:  # -P: nothing is imported from the working directory
        _write(folder / command, [sys.executable, "-P", "-m", "commands.launcher", str(folder), command])
    _write(folder / _SUPEREXEC, [str(Path(sys.executable).with_name(_SUPEREXEC))])


def _write(path: Path, command: Sequence[str]) -> None:
    path.write_text(f'#!/bin/sh\nexec {shlex.join(command)} "$@"\n', encoding="utf-8")
    path.chmod(0o700)


def guarded_path(folder: Path) -> str:
    """A PATH on which Flower's commands of tasks are those of a folder, and nowhere else.

    Raises FederationError if they cannot be executed there.
    """
    names = (*_COMMANDS, _SUPEREXEC)
    others = [
        part
        for part in os.environ.get("PATH", os.defpath).split(os.pathsep)
        if Path(part).is_absolute() and not any((Path(part) / name).exists() for name in names)
    ]
    path = os.pathsep.join([str(folder), *others])
    for name in names:
        if shutil.which(name, path=path) != str(folder / name):
            raise FederationError(
                f"{folder / name} cannot be executed: put the state-dir on a disk that is not mounted with noexec, "
                f"in a folder without {os.pathsep!r} in its path"
            )
    return path
