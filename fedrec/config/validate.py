"""Strict validation of plain data against the configuration's dataclasses.

Light on purpose: a client validates what came over the network with it, so it imports no hydra, and of the members
only those that are named. Values are judged as JSON is: a list is a tuple, a text can be a path, an integer is a
number; nothing else is converted.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping, Sequence, Set
from functools import cache
from typing import TYPE_CHECKING, Any, TypeVar, get_type_hints

from pydantic import ConfigDict, TypeAdapter, ValidationError

from fedrec.config.explain import expected, got, unknown_key
from fedrec.config.schema import RunConfig
from fedrec.core.errors import ConfigError
from fedrec.core.registry import FAMILIES, MemberConfig

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

MISSING = "???"
"""The value that Hydra's yaml files give to a key that has no default: the user must."""

T = TypeVar("T", bound="DataclassInstance")

# What pydantic's own sentence says better than the type does.
_TELLING = ("value_error", "assertion_error", "predicate_failed", "string_pattern_mismatch", "json_invalid")


@cache
def field_types(cls: type[DataclassInstance]) -> Mapping[str, Any]:
    """Name and resolved type of every field of a configuration dataclass."""
    hints = get_type_hints(cls, include_extras=True)
    return {field.name: hints[field.name] for field in dataclasses.fields(cls)}


def legal_keys(cls: type[DataclassInstance], at: str = "") -> list[str]:
    """All dotted keys below `at` that can be set to a value; `name` cannot, a member is chosen by its group."""
    keys: list[str] = []
    for name, hint in field_types(cls).items():
        key = f"{at}.{name}" if at else name
        if _is_section(hint):
            keys += legal_keys(hint, key)
        elif not (name == "name" and issubclass(cls, MemberConfig)):
            keys.append(key)
    return keys


class Validator:
    """Builds configuration dataclasses from nested mappings and gathers all problems instead of stopping at one.

    Attributes:
        problems: One line for each problem so far.
    """

    def __init__(self, typed: Mapping[str, str] | None = None) -> None:
        """`typed`: dotted key -> the override as the user typed it, which then begins the line about that key."""
        self.problems: list[str] = []
        self._typed = typed or {}

    def add(self, key: str, problem: str) -> None:
        """Add a problem about one key, as the user knows it."""
        self.problems.append(f"{self._typed.get(key, key)}: {problem}")

    def run_config(self, values: object) -> RunConfig | None:
        """The whole configuration, every member of the class that its `name` says; None if it cannot be built."""
        return self.build(RunConfig, values, "")

    def look(self, values: Mapping[str, Any], sections: Set[str]) -> None:
        """Gather the problems of the values of these sections, and of all that belong to no member or lack a value.

        The members of other families are as their files have them.
        """
        for name, hint in field_types(RunConfig).items():
            found = values.get(name, MISSING)
            given = name in values or not _has_default(_fields(RunConfig)[name])
            asked = hint is not MemberConfig or name in sections or MISSING in json.dumps(found, default=os.fspath)
            if given and asked:
                self._field(RunConfig, name, name, found)

    def member(self, family: str, values: object) -> MemberConfig | None:
        """One member's configuration, of the class that its `name` says; None if it cannot be built."""
        if not isinstance(values, Mapping) or not isinstance(values.get("name"), str):
            self.add(family, f"expected the keys of a member, `name` among them, got {got(values)}")
            return None
        config_class = self.config_class(family, values["name"])
        return None if config_class is None else self.build(config_class, values, family)

    def config_class(self, family: str, name: str) -> type[MemberConfig] | None:
        """The configuration dataclass of a member; None (and a problem) if there is no such member."""
        try:
            found: type[MemberConfig] = FAMILIES[family].get(name).config_class
        except ConfigError as error:
            self.problems += error.problems
        except ModuleNotFoundError as error:
            self.problems.append(f"{family}={name}: it needs the package {error.name!r}; install it ({error})")
        else:
            return found
        return None

    def build(self, cls: type[T], values: object, at: str) -> T | None:
        """An instance of the dataclass `cls` from the mapping found at the dotted key `at`; None if it cannot be."""
        if not isinstance(values, Mapping):
            self.add(at or "configuration", f"expected a section with keys, got {got(values)}")
            return None
        prefix = f"{at}." if at else ""
        types = field_types(cls)
        for name in (name for name in values if name not in types):
            self.add(f"{prefix}{name}", unknown_key(f"{prefix}{name}", [prefix + known for known in types]))
        built: dict[str, Any] = {}
        before = len(self.problems)
        for field in dataclasses.fields(cls):
            value = values.get(field.name, MISSING)
            if field.name not in values and _has_default(field):
                continue
            built[field.name] = self._field(cls, field.name, prefix + field.name, value)
        if len(self.problems) > before:
            return None
        try:
            return cls(**built)
        except ValueError as error:  # a dataclass may check its fields against each other
            self.add(at or "configuration", str(error))
            return None

    def _field(self, cls: type[DataclassInstance], name: str, key: str, value: object) -> Any:
        hint = field_types(cls)[name]
        if _is_section(hint):
            if value == MISSING:
                self.add(key, "the section is missing")
                return None
            return self.member(name, value) if hint is MemberConfig else self.build(hint, value, key)
        if value == MISSING:
            self.add(key, f"has no default and needs a value: give {key}=... ({expected(hint)})")
            return None
        try:
            return _adapters(cls)[name].validate_json(json.dumps(value, default=os.fspath))
        except ValidationError as error:
            self.add(key, _reason(hint, value, error, key, self._as_typed(key, value)))
            return None

    def _as_typed(self, key: str, value: object) -> str:
        """The value as it stands in the override; a text such as 2024_01_01 is a number for Hydra's grammar."""
        return self._typed[key].partition("=")[2].strip() if key in self._typed else str(value)


def _fields(cls: type[DataclassInstance]) -> Mapping[str, dataclasses.Field[Any]]:
    return {field.name: field for field in dataclasses.fields(cls)}


def _has_default(field: dataclasses.Field[Any]) -> bool:
    return field.default is not dataclasses.MISSING or field.default_factory is not dataclasses.MISSING


@cache
def _adapters(cls: type[DataclassInstance]) -> Mapping[str, TypeAdapter[Any]]:
    """A judge for each value of a dataclass; its sections are built field by field and have none."""
    strict = ConfigDict(strict=True, allow_inf_nan=False)
    types = {name: hint for name, hint in field_types(cls).items() if not _is_section(hint)}
    return {name: TypeAdapter(hint, config=strict) for name, hint in types.items()}


def _is_section(hint: Any) -> bool:
    return isinstance(hint, type) and dataclasses.is_dataclass(hint)


def _reason(hint: Any, value: object, error: ValidationError, key: str, typed: str) -> str:
    """Why a value is refused, and how to mend what is easily mended."""
    text = f"expected {expected(hint)}, got {got(value)}"
    telling = [str(part["msg"]) for part in error.errors() if part["type"] in _TELLING]
    if telling:
        return f"{text} ({'; '.join(telling)})"
    if "text" not in expected(hint) and "a path" not in expected(hint):
        return text
    if isinstance(value, int | float):
        return f"{text}; to mean a text, quote it inside the override: \"{key}='{typed}'\""
    if isinstance(value, list) and any(isinstance(item, int | float) for item in value):
        return f"{text}; to mean texts, quote each that looks like a number, as in \"{key}=['2024',title]\""
    return text


def member_config(family: str, values: object) -> MemberConfig:
    """One member's configuration from plain data, checked strictly. Raises ConfigError with all problems."""
    validator = Validator()
    config = validator.member(family, values)
    if config is None or validator.problems:
        raise ConfigError(validator.problems)
    return config


def member_defaults(config_class: type[MemberConfig], name: str) -> dict[str, Any]:
    """The dataclass' own defaults as plain data: the values of a member that brings no yaml file."""
    values: dict[str, Any] = {}
    for field in dataclasses.fields(config_class):
        if field.default is not dataclasses.MISSING:
            values[field.name] = plain(field.default)
        elif field.default_factory is not dataclasses.MISSING:
            values[field.name] = plain(field.default_factory())
        else:
            values[field.name] = MISSING
    return {**values, "name": name}


def plain(value: Any) -> Any:
    """A configuration (or a part of one) as plain data that JSON and YAML can hold."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [plain(item) for item in value]
    return value
