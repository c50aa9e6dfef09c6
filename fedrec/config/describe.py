"""A configuration as text and plain data, there and back; and what overrides changed."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from fedrec.config.check import check
from fedrec.config.paths import anchor
from fedrec.config.schema import FederationConfig, RunConfig
from fedrec.config.validate import MISSING, Validator, member_config, member_defaults, plain
from fedrec.core import registry
from fedrec.core.errors import ConfigError
from fedrec.core.registry import FAMILIES, MemberConfig


class Absent(Enum):
    """The value of a key that one of two configurations does not have."""

    ABSENT = "-"


ABSENT = Absent.ABSENT


class Change(NamedTuple):
    """One value that differs from the default; ABSENT where the choice of a member brought or took the key."""

    key: str
    default: Any
    value: Any


class _Dumper(yaml.SafeDumper):
    """Block style, with lists on one line."""


def _in_line(dumper: _Dumper, data: list[Any]) -> yaml.Node:
    return dumper.represent_sequence("tag:yaml.org,2002:seq", data, flow_style=True)


_Dumper.add_representer(list, _in_line)


def to_dict(config: RunConfig) -> dict[str, Any]:
    """The configuration as nested plain data that survives JSON and YAML."""
    result: dict[str, Any] = plain(config)
    return result


def from_dict(values: Mapping[str, Any]) -> RunConfig:
    """The configuration that `to_dict` made the data of, checked as strictly. Raises ConfigError with all problems."""
    validator = Validator()
    config = validator.run_config(_without_expansion(_with_uplink(_with_federation(values))))
    if config is not None:
        config = anchor(config, None, validator)
        if not validator.problems:
            validator.problems += check(config)
    if config is None or validator.problems:
        raise ConfigError(validator.problems)
    return config


def _with_federation(values: Mapping[str, Any]) -> Mapping[str, Any]:
    """Data that was written when the keys of the section `federation` were the strategy's, as it is written now."""
    strategy = values.get("strategy")
    if "federation" in values or not isinstance(strategy, Mapping):
        return values
    keys = {field.name for field in dataclasses.fields(FederationConfig)}
    moved = {key: value for key, value in strategy.items() if key in keys}
    rest = {key: value for key, value in strategy.items() if key not in keys}
    return {**values, "strategy": rest, "federation": moved}


def _with_uplink(values: Mapping[str, Any]) -> Mapping[str, Any]:
    """Data that was written when the uplink was a key of the section `federation`, as it is written now."""
    federation = values.get("federation")
    if not isinstance(federation, Mapping) or "uplink" not in federation:
        return values
    rest = {key: value for key, value in federation.items() if key != "uplink"}
    return {**values, "federation": rest, "uplink": {"name": federation["uplink"]}}


def _without_expansion(values: Mapping[str, Any]) -> Mapping[str, Any]:
    """Data that was written when `fedpergnn` had a graph expansion, if it was off; raises ConfigError if it was on."""
    backbone = values.get("backbone")
    if not isinstance(backbone, Mapping) or "expand_every" not in backbone:
        return values
    if backbone["expand_every"] != 0:
        raise ConfigError(
            [
                f"backbone.expand_every={backbone['expand_every']}: fedpergnn has no graph expansion any more; read "
                "this run with the fedrec that made it, or start one without it"
            ]
        )
    rest = {key: value for key, value in backbone.items() if not key.startswith("expand_")}
    return {**values, "backbone": rest}


def to_yaml(config: RunConfig) -> str:
    """The configuration as YAML text, in the order of the schema."""
    text: str = yaml.dump(to_dict(config), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=1000)
    return text


def flat(values: Mapping[str, Any], at: str = "") -> dict[str, Any]:
    """Nested data as dotted keys."""
    result: dict[str, Any] = {}
    for name, value in values.items():
        key = f"{at}.{name}" if at else name
        # A member's name is what its group was set to: shown as the choice it is.
        key = at if name == "name" and at in FAMILIES else key
        result.update(flat(value, key) if isinstance(value, Mapping) else {key: value})
    return result


def of_this_machine(config: RunConfig) -> set[str]:
    """The dotted keys that say what a run is called, or where something is on this machine.

    Nobody elsewhere has use for them, and they may tell of the machine's owner.
    """
    found = {"run_id", "resume"}
    for key, value in flat(to_dict(config)).items():
        if isinstance(value, str) and (Path(value).is_absolute() or "://" in value):
            found.add(key)
    return found


def differences(default: RunConfig, config: RunConfig) -> list[Change]:
    """Every key whose value differs between two configurations, in the order of the schema."""
    before, after = flat(to_dict(default)), flat(to_dict(config))
    return [
        Change(key, before.get(key, ABSENT), after.get(key, ABSENT))
        for key in _in_order(after, before)
        if before.get(key, ABSENT) != after.get(key, ABSENT)
    ]


def _in_order(after: Mapping[str, Any], before: Mapping[str, Any]) -> list[str]:
    sections: dict[str, list[str]] = {}
    for key in [*after, *(key for key in before if key not in after)]:
        sections.setdefault(key.partition(".")[0], []).append(key)
    return [key for keys in sections.values() for key in keys]


def load_member(family: str, name: str, **values: Any) -> MemberConfig:
    """A member's configuration as its yaml file has it, with some values replaced; for tests and scripts."""
    return member_config(family, {**_defaults(family, name), **values})


def complete_members(family: str) -> list[str]:
    """Members that need no value which only the user knows; for tests and scripts."""
    return [name for name in FAMILIES[family].names() if MISSING not in _defaults(family, name).values()]


def _defaults(family: str, name: str) -> dict[str, Any]:
    path = registry.CONF / family / f"{name}.yaml"
    if not path.exists():
        return member_defaults(FAMILIES[family].get(name).config_class, name)
    defaults: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    defaults.pop("defaults", None)
    return defaults
