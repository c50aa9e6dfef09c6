"""Folders and paths: what a relative one means, and where runs and caches are when the configuration does not say.

Paths are absolute before they enter a run, because the runtime's working directory is not the user's.
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from fedrec.config.schema import RunConfig
from fedrec.config.validate import Validator
from fedrec.core.errors import ConfigError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

HOME_VARIABLE = "FEDREC_HOME"
"""The environment variable that names fedrec's own folder (default: `.fedrec` in the user's home)."""

_BARE = re.compile(r"[A-Za-z/][A-Za-z0-9/._-]*")
_WORDS = ("null", "true", "false", "nan", "inf")  # what Hydra's grammar reads as something else than text

T = TypeVar("T", bound="DataclassInstance")


def home() -> Path:
    """The folder that is fedrec's own.

    Raises ConfigError if the environment variable holds a relative path, or is not set and this account has no home.
    """
    text = os.environ.get(HOME_VARIABLE)
    if not text:
        try:
            return Path.home() / ".fedrec"
        except RuntimeError as error:  # an account that the system does not know, as a container may have
            raise ConfigError([f"{HOME_VARIABLE}: this account has no home folder ({error}); set it"]) from error
    if not Path(text).is_absolute():
        absolute = make_absolute(Path.cwd(), Path(text))
        raise ConfigError([f"{HOME_VARIABLE}={text}: expected an absolute path; from here it would be {absolute}"])
    return Path(text)


def working_directory() -> Path:
    """The folder in which the command was typed. Raises ConfigError if it has been removed since."""
    try:
        return Path.cwd()
    except FileNotFoundError as error:
        raise ConfigError(["the working directory has been removed: change to a folder that is there"]) from error


def settle(config: RunConfig, base: Path | None) -> RunConfig:
    """The configuration with `runs_dir` and `cache_dir` given: what is null becomes the default.

    Args:
        config: A composed configuration.
        base: The user's working directory, in which `runs` is; None in a running app: `runs` in fedrec's own folder.
    """
    runs = config.runs_dir or default_runs_dir(base)
    cache = config.cache_dir or home() / "cache"
    return dataclasses.replace(config, runs_dir=runs, cache_dir=cache)


def default_runs_dir(base: Path | None) -> Path:
    """Where runs are if nobody says: see `settle`."""
    return (home() if base is None else base) / "runs"


def anchor(section: T, base: Path | None, validator: Validator, at: str = "") -> T:
    """A configuration whose relative paths are made absolute against `base`.

    With `base` None (inside a running app) a relative path is a problem that shows the absolute form.
    """

    def anchored(value: Any, key: str) -> Any:
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            return anchor(value, base, validator, key)
        if isinstance(value, tuple):
            return tuple(anchored(item, key) for item in value)
        if not isinstance(value, Path) or value.is_absolute():
            return value
        absolute = make_absolute(base or Path.cwd(), expanded(value))
        if base is None:
            came = f"the relative path {str(value)!r} means nothing in a running app"
            validator.add(key, f"{came}; give it absolute: {assign(key, absolute)}")
        return absolute

    changed: dict[str, Any] = {}
    for field in dataclasses.fields(section):
        before = getattr(section, field.name)
        after = anchored(before, f"{at}.{field.name}" if at else field.name)
        if after is not before:
            changed[field.name] = after
    return dataclasses.replace(section, **changed) if changed else section


def expanded(path: Path) -> Path:
    """The path with the home folder in the place of a `~`; as it is if there is no such account, or it has none."""
    try:
        return path.expanduser()
    except RuntimeError:
        return path


def portable(overrides: Sequence[str], config: RunConfig) -> list[str]:
    """The overrides so that they mean the same in any working directory: every path in them given absolute.

    Args:
        overrides: What the user typed and `compose` accepted.
        config: What `compose` made of it, then `settle`d.
    """
    paths = dict(paths_in(config))
    kept = [override for override in overrides if key_of(override) not in paths]
    return kept + [assign(key, path) for key, path in paths.items()]


def make_absolute(base: Path, path: Path) -> Path:
    """The path taken against `base`, without following links."""
    return Path(os.path.abspath(base / path))  # noqa: PTH100 - `resolve` would follow the user's links


def paths_in(section: Any, at: str = "") -> Iterator[tuple[str, Path]]:
    """Every path of a configuration by its dotted key."""
    for field in dataclasses.fields(section):
        value, key = getattr(section, field.name), f"{at}.{field.name}" if at else field.name
        if isinstance(value, Path):
            yield key, value
        elif dataclasses.is_dataclass(value):
            yield from paths_in(value, key)


def key_of(override: str) -> str:
    """The dotted key that an override gives a value."""
    return override.partition("=")[0].strip()


def assign(key: str, value: str | Path) -> str:
    """The override that gives a key this text, quoted only where Hydra's grammar needs it."""
    text = str(value)
    if _BARE.fullmatch(text) and text.lower() not in _WORDS:
        return f"{key}={text}"
    # Within quotes only these are special: a backslash before a quote (or at the end), the quote, and `${` with the
    # backslashes before it.
    text = re.sub(r"(\\*)\$\{", lambda found: f"{2 * found[1]}\\${{", text)
    escaped = ""
    for position, character in enumerate(text):
        following = text[position + 1 :]
        run = len(following) - len(following.lstrip("\\"))
        if character == "\\" and (run == len(following) or following[run] == "'"):
            escaped += "\\\\"
        elif character == "'":
            escaped += "\\'"
        else:
            escaped += character
    return f"{key}='{escaped}'"
