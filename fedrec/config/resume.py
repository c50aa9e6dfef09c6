"""The configuration of a run that is resumed: the one in its folder, and nothing else.

What is typed beside `resume` may say where the folders are now; anything else has to be what the run has already.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from fedrec.config.describe import flat, from_dict, to_dict
from fedrec.config.paths import default_runs_dir, expanded, make_absolute, paths_in
from fedrec.config.schema import RunConfig
from fedrec.core.disk import DAMAGE, reading, reason
from fedrec.core.errors import ConfigError
from fedrec.core.registry import nearest

RESUME = "resume"
_CONFIG = "config.yaml"
PLACES = (RESUME, "runs_dir", "cache_dir")
"""Keys that say where a run is: nothing of the run itself."""


def resumed(
    typed: Mapping[str, Any], lines: Mapping[str, str], problems: Sequence[str], base: Path | None
) -> RunConfig:
    """The configuration of the run that `typed["resume"]` names. Raises ConfigError with all problems.

    Args:
        typed: Dotted key or group -> the value that was typed.
        lines: Dotted key or group -> the override as it was typed.
        problems: What was wrong with the overrides already.
        base: Directory that relative paths are taken against; None in a running app, where they are problems.
    """
    found = list(problems)
    runs = _place(typed.get("runs_dir"), base) or default_runs_dir(base)
    if base is None:
        found += [
            f"{lines[key]}: the relative path means nothing in a running app; give it absolute"
            for key in PLACES[1:]
            if typed.get(key) is not None and not expanded(Path(str(typed[key]))).is_absolute()
        ]
    config = _read(str(typed[RESUME]), runs, lines[RESUME], found)
    if config is not None:
        found += _contradictions(typed, lines, config, base)
    if config is None or found:
        raise ConfigError(found)
    places = {"runs_dir": runs, "cache_dir": _place(typed.get("cache_dir"), base) or config.cache_dir}
    return dataclasses.replace(config, **places, resume=str(typed[RESUME]))  # type: ignore[arg-type]


def _place(value: Any, base: Path | None) -> Path | None:
    return None if value is None else make_absolute(base or Path.cwd(), expanded(Path(str(value))))


def _read(run: str, runs: Path, line: str, found: list[str]) -> RunConfig | None:
    """The configuration in the run's folder; what is wrong with it is added to `found`."""
    path = runs / run / _CONFIG
    with reading(f"{line}: {path}", "set runs_dir to the folder in which the run is"):
        known = Path(run).name == run and path.is_file()
    if not known:
        names = sorted(folder.parent.name for folder in runs.glob("*/config.yaml"))
        hint = nearest(run, names) if names else "there are no runs in that folder"
        found.append(f"{line}: there is no run {run!r} in {runs}; {hint} (another folder: runs_dir=...)")
        return None
    try:
        return config_in(path.parent)
    except ConfigError as error:
        found += [f"{line}: {problem}" for problem in error.problems]
    return None


def config_in(folder: Path) -> RunConfig:
    """The configuration in a run's folder. Raises ConfigError with all problems, also if it cannot be read."""
    path = folder / _CONFIG
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, OSError, *DAMAGE) as error:
        raise ConfigError([f"{path} cannot be read: {reason(error)}"]) from error
    try:
        return from_dict(values)
    except ConfigError as error:
        raise ConfigError([f"{path}: {problem}" for problem in error.problems]) from error


def _contradictions(
    typed: Mapping[str, Any], lines: Mapping[str, str], config: RunConfig, base: Path | None
) -> list[str]:
    """A line for each override that is not what the run has."""
    has, paths = flat(to_dict(config)), dict(paths_in(config))
    found = []
    for key, value in typed.items():
        if key in PLACES:
            continue
        if key not in has:
            found.append(
                f"{lines[key]}: the run {typed[RESUME]} has no {key}; leave it out, a resumed run goes on as it is"
            )
            continue
        if key in paths and value is not None:
            value = str(_place(value, base))
        if value != has[key]:
            found.append(
                f"{lines[key]}: the run {typed[RESUME]} has {key}={has[key]}, and goes on with that: leave it out"
            )
    return found
