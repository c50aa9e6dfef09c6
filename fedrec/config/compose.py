"""Overrides to a configuration, with all their errors at once. The only file that imports hydra and omegaconf.

Hydra alone stops at the first error and lets wrong types pass. So it only does what it is good at: it parses one
override at a time, and it composes the groups that were chosen. Keys and types are judged here, by the dataclasses.
"""

from __future__ import annotations

import difflib
import re
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from functools import lru_cache
from pathlib import Path
from typing import Any

import hydra
import yaml
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType, ValueType
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from fedrec.config.check import check
from fedrec.config.explain import unknown_key
from fedrec.config.paths import anchor
from fedrec.config.resume import PLACES, RESUME, resumed
from fedrec.config.schema import RunConfig
from fedrec.config.validate import Validator, legal_keys, member_defaults
from fedrec.core import registry
from fedrec.core.errors import ConfigError
from fedrec.core.registry import FAMILIES, nearest

EXPERIMENT = "experiment"
"""The optional group of files that each change several values (and choices) at once."""

_LOCK = threading.Lock()  # hydra keeps its state in a process-wide singleton


def compose(overrides: Sequence[str], *, base: Path | None) -> RunConfig:
    """The configuration that the overrides make of the defaults. Raises ConfigError with all problems.

    If they name a run to resume, it is the configuration of that run, which no other override may contradict.

    Args:
        overrides: `group=member` and `section.key=value`, each at most once.
        base: Absolute directory that relative paths are taken against; None inside a running app, where a
            relative path is an error.
    """
    typed = _Typed(overrides)
    if typed.values.get(RESUME) is not None:
        return resumed(typed.values | typed.choices | typed.names(PLACES), typed.lines, typed.problems, base)
    validator = Validator(typed.lines)
    validator.problems += typed.problems
    tree = _compose_groups(typed.choices, validator)
    values = _apply(tree, typed, validator)
    # First what was typed: a mistake there is told before the members are imported, whose libraries take seconds.
    validator.look(values, {key.partition(".")[0] for key in typed.values})
    if validator.problems:
        raise ConfigError(validator.problems)
    config = validator.run_config(values)
    if config is not None:
        config = anchor(config, base, validator)
        # Checks of the whole: of a configuration with something left out they would only confuse.
        if not validator.problems:
            validator.problems += check(config)
    if config is None or validator.problems:
        raise ConfigError(validator.problems)
    return config


class _Typed:
    """Overrides parsed one by one, and sorted.

    Attributes:
        choices: Group -> chosen name.
        values: Dotted key -> parsed value.
        lines: Dotted key or group -> the override as typed.
        undecided: Groups whose choice is not legal: whether a key below exists cannot be said.
        problems: What is wrong with the overrides themselves.
    """

    def __init__(self, overrides: Sequence[str]) -> None:
        self.choices: dict[str, str] = {}
        self.values: dict[str, Any] = {}
        self.lines: dict[str, str] = {}
        self.undecided: set[str] = set()
        self.problems: list[str] = []
        parser = OverridesParser.create()
        for text in overrides:
            problem = self._add(text.strip(), parser)
            if problem:
                self.problems.append(problem)

    def _add(self, text: str, parser: OverridesParser) -> str | None:
        try:
            override = parser.parse_override(text)
        except (HydraException, ValueError, RecursionError) as error:  # a number of thousands of digits, lists in lists
            return _syntax(text, error)
        key = override.key_or_group
        problem = _unsupported(override, text)
        if not problem and key in self.lines:
            problem = f"{text}: {key} was given before ({self.lines[key]}); give it once"
        if not problem and (key in FAMILIES or key == EXPERIMENT):
            problem = self._choose(key, text, override.value())
        elif not problem:
            self.values[key] = override.value()
        self.lines.setdefault(key, text)
        if problem and key in FAMILIES:
            self.undecided.add(key)
        return problem

    def names(self, keys: Sequence[str]) -> dict[str, str]:
        """Of these keys, which name files or folders, those that Hydra's grammar took for a number: as typed."""
        numbers = [key for key in keys if isinstance(self.values.get(key), int | float)]
        return {key: self.lines[key].partition("=")[2].strip() for key in numbers}

    def _choose(self, group: str, text: str, value: object) -> str | None:
        legal = FAMILIES[group].names() if group in FAMILIES else experiments()
        if isinstance(value, dict | list) or value is None:
            keys = f"; set its values by their keys, {group}.<key>=..." if isinstance(value, dict) else ""
            return f"{text}: expected the name of one {group}{keys}; {nearest('', legal)}"
        if str(value) not in legal:
            hint = nearest(str(value), legal) if legal else f"there are no files in conf/{group}"
            # The values below are judged as the likeliest member has them, so that their errors show now as well.
            if guess := difflib.get_close_matches(str(value), legal, n=1):
                self.choices[group] = guess[0]
            return f"{text}: there is no such {group}; {hint}"
        self.choices[group] = str(value)
        return None


def _syntax(text: str, error: Exception) -> str:
    key, equals, value = text.partition("=")
    if not text or not equals or not key:
        return f"{text or 'an empty override'}: expected key=value or group=member"
    reason = str(error).splitlines()[0]
    if re.fullmatch(r"[\w.]+", key) and "'" not in value:
        return f"{text}: cannot be read ({reason}); quote the value: \"{key}='{value}'\""
    return f"{text}: cannot be read ({reason}); expected key=value, with special characters quoted: \"key='a (b)'\""


def _unsupported(override: Override, text: str) -> str | None:
    """What Hydra's grammar allows, but one run of a typed configuration has no use for."""
    key = override.key_or_group
    if override.type is OverrideType.DEL:
        return f"{text}: keys cannot be removed; give {key} a value (null where it may be empty)"
    if override.type is not OverrideType.CHANGE:
        return f"{text}: keys cannot be added; to set {key}, leave out the '+'"
    if key == "hydra" or override.is_hydra_override():
        return f"{text}: hydra only composes the configuration here, its own settings have no effect; leave it out"
    if override.package is not None:
        return f"{text}: a group cannot be put elsewhere; leave out '@{override.package}'"
    if not key:
        return f"{text}: expected key=value or group=member"
    if override.is_sweep_override():
        listed = override.value_type is ValueType.SIMPLE_CHOICE_SWEEP and key not in FAMILIES
        hint = f"a list is written {key}=[{text.partition('=')[2]}]; " if listed else ""
        return f"{text}: {hint}expected one value: start one run for each value of a sweep"
    return None


def experiments() -> list[str]:
    """Names of all experiments; a file whose name begins with `_` is a part that several of them share."""
    return sorted(path.stem for path in (registry.CONF / EXPERIMENT).glob("[!_]*.yaml"))


def _compose_groups(choices: Mapping[str, str], validator: Validator) -> DictConfig:
    """The tree that the chosen groups make, before any value is overridden."""
    texts = [f"+{group}={name}" if group == EXPERIMENT else f"{group}={name}" for group, name in choices.items()]
    brought = _brought_members()
    try:
        return deepcopy(_composed(registry.CONF, tuple(texts), tuple(brought), _state_of(registry.CONF)))
    except (HydraException, OmegaConfBaseException, yaml.YAMLError) as error:
        # Nothing below can be judged without a tree: what was found so far is all there is.
        raise ConfigError([*validator.problems, f"the files in conf/ do not compose: {_one_line(error)}"]) from error


@lru_cache(maxsize=256)
def _composed(
    conf: Path, texts: tuple[str, ...], brought: tuple[tuple[str, str, type], ...], state: tuple[object, ...]
) -> DictConfig:
    """What Hydra makes of the files, which takes it a tenth of a second; kept while they are in this `state`."""
    with _hydra(conf, brought):
        return hydra.compose("config", overrides=list(texts))


def _state_of(conf: Path) -> tuple[object, ...]:
    """Which files there are, when each was written, and how long it is."""
    found = ((path, path.stat()) for path in sorted(conf.glob("**/*.yaml")))
    return tuple((path, stat.st_mtime_ns, stat.st_size) for path, stat in found)


@contextmanager
def _hydra(conf: Path, brought: Iterable[tuple[str, str, type]]) -> Iterator[None]:
    """Hydra set up on a folder, for one thread at a time; one that the calling program had set up comes back after."""
    with _LOCK:
        for family, name, config_class in brought:
            node = member_defaults(config_class, name)
            ConfigStore.instance().store(name, node, group=family, provider="entry point")
        outer = GlobalHydra.instance().hydra
        GlobalHydra.instance().clear()
        try:
            with hydra.initialize_config_dir(str(conf), version_base=None):
                yield
        finally:
            GlobalHydra.instance().hydra = outer


def _brought_members() -> Iterator[tuple[str, str, type]]:
    """Members of other packages have no yaml file here: their dataclass' defaults stand in for it."""
    for family in FAMILIES.values():
        for name in family.names():
            if not (registry.CONF / family.name / f"{name}.yaml").exists():
                yield family.name, name, family.get(name).config_class


def _apply(tree: DictConfig, typed: _Typed, validator: Validator) -> Any:
    """Plain nested values: the tree with the overridden ones, as far as there are such keys."""
    legal = legal_keys(RunConfig)
    for family in FAMILIES:
        legal += [key for key in _keys_below(OmegaConf.to_container(tree[family]), family) if key != f"{family}.name"]
    try:
        for key, value in typed.values.items():
            section = key.partition(".")[0]
            if key == f"{section}.name" and section in FAMILIES:
                validator.add(key, f"the {section} is chosen by its group; write {section}={value}")
            elif key in legal:
                OmegaConf.update(tree, key, value, merge=False, force_add=True)
            elif section in FAMILIES and not any(name.startswith(f"{section}.") for name in legal):
                if section not in typed.undecided:
                    validator.add(key, _without_values(section, tree[section].name, key))
            elif key.isidentifier() and (groups := difflib.get_close_matches(key, FAMILIES, n=1, cutoff=0.7)):
                validator.add(key, f"there is no group {key}; did you mean {groups[0]}?")
            elif section not in typed.undecided:
                validator.add(key, unknown_key(key, legal))
        return OmegaConf.to_container(tree, resolve=True)
    except OmegaConfBaseException as error:
        where = str(getattr(error, "full_key", None) or "interpolation")
        validator.add(where, _one_line(error))
        raise ConfigError(validator.problems) from error


def _keys_below(values: Any, at: str) -> list[str]:
    """Dotted keys of all values below `at`: a member's file gives every one that it has."""
    if not isinstance(values, dict) or not values:
        return [at]
    return [key for name, inner in values.items() for key in _keys_below(inner, f"{at}.{name}")]


def _without_values(section: str, chosen: str, key: str) -> str:
    """Says that the chosen member has nothing to set, and which other one of its family has this key."""
    members = {name: Validator().config_class(section, name) for name in FAMILIES[section].names()}
    having = [name for name, kind in members.items() if kind is not None and key in legal_keys(kind, section)]
    choose = f"; give {' or '.join(f'{section}={name}' for name in having)} with it" if having else ""
    return f"there is no key {key}: {section}={chosen} has no values to set{choose}"


def _one_line(error: Exception) -> str:
    """The error without Hydra's list of places or OmegaConf's list of details."""
    return " ".join(re.split(r"\n\nConfig search path|\n\s+full_key:", str(error))[0].split())
