"""Every number of a configuration has an upper bound: a huge one is refused with the others, and crashes no run."""

from __future__ import annotations

import dataclasses
import json
import types
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Union, get_args, get_origin

import annotated_types as at
import pytest
from pydantic.fields import FieldInfo

from fedrec.config.compose import compose
from fedrec.config.describe import to_dict
from fedrec.config.schema import RunConfig
from fedrec.config.validate import field_types
from fedrec.core.errors import ConfigError
from fedrec.core.registry import FAMILIES, MemberConfig


def limits(metadata: Sequence[Any]) -> Iterator[Any]:
    for item in metadata:
        if isinstance(item, FieldInfo | at.GroupedMetadata):
            yield from limits(item.metadata if isinstance(item, FieldInfo) else list(item))
        else:
            yield item


def numbers(hint: Any, metadata: Sequence[Any] = ()) -> Iterator[list[Any]]:
    """The limits of every number in a type."""
    if get_origin(hint) is Annotated:
        inner, *outer = get_args(hint)
        yield from numbers(inner, outer)
    elif hint in (int, float):
        yield list(limits(metadata))
    elif get_origin(hint) in (Union, types.UnionType, tuple, list):
        for argument in get_args(hint):
            yield from numbers(argument)


def fields(cls: Any, before: str) -> Iterator[tuple[str, list[Any], bool]]:
    for name, hint in field_types(cls).items():
        if isinstance(hint, type) and dataclasses.is_dataclass(hint):
            if hint is not MemberConfig:
                yield from fields(hint, f"{before}{name}.")
        else:
            listed = "tuple" in str(hint)
            for found in numbers(hint):
                yield f"{before}{name}", found, listed


MEMBERS = [(family.name, name) for family in FAMILIES.values() for name in family.names()]
RUN = list(fields(RunConfig, ""))


def test_every_number_has_an_upper_bound() -> None:
    found = RUN + [
        (f"{family}={name} {key}", bounds, listed)
        for family, name in MEMBERS
        for key, bounds, listed in fields(FAMILIES[family].get(name).config_class, "")
    ]
    assert len(found) > 90
    unbounded = [key for key, bounds, _ in found if not any(isinstance(bound, at.Le | at.Lt) for bound in bounds)]
    assert unbounded == []


HUGE = ["1" + 30 * "0", "1e400", 400 * "9"]


@pytest.mark.parametrize("huge", HUGE, ids=["10**30", "1e400", "400 digits"])
def test_huge_numbers_are_refused_together(tmp_path: Path, huge: str) -> None:
    keys = {key: listed for key, _, listed in RUN}
    typed = [f"{key}=[{huge}]" if listed else f"{key}={huge}" for key, listed in keys.items()]
    with pytest.raises(ConfigError) as caught:
        compose(typed, base=tmp_path)
    assert {problem.partition("=")[0] for problem in caught.value.problems} == set(keys)


@pytest.mark.parametrize(("family", "name"), MEMBERS)
def test_huge_numbers_of_a_member_are_refused_together(tmp_path: Path, family: str, name: str) -> None:
    keys = {f"{family}.{key}": listed for key, _, listed in fields(FAMILIES[family].get(name).config_class, "")}
    typed = [f"{key}=[{HUGE[0]},{HUGE[0]}]" if listed else f"{key}={HUGE[0]}" for key, listed in keys.items()]
    chosen = [f"{family}={name}"] + (["embedding=full"] if (family, name) == ("strategy", "full") else [])
    try:
        compose([*chosen, *typed], base=tmp_path)
    except ConfigError as error:
        refused = {problem.partition("=")[0] for problem in error.problems}
        assert set(keys) <= refused
    else:
        assert not keys


def test_a_number_that_python_will_not_read_is_a_problem_like_others(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        compose([f"seed={5000 * '9'}", "embedding.rank=x"], base=tmp_path)
    assert len(caught.value.problems) == 2


NAMES = ["2024_01_01", "1.10", "1e5", "true"]


@pytest.mark.parametrize("key", ["run_id", "dataset.user_column"])
@pytest.mark.parametrize("name", NAMES)
def test_a_name_that_looks_like_a_number_is_kept_as_typed(tmp_path: Path, key: str, name: str) -> None:
    """The hint names what was typed; and what it says to type is the name."""
    data = ["dataset=table", "dataset.interactions=a.csv"]
    with pytest.raises(ConfigError) as caught:
        compose([*data, f"{key}={name}"], base=tmp_path)
    assert f"\"{key}='{name}'\"" in str(caught.value)
    part: Any = to_dict(compose([*data, f"{key}='{name}'"], base=tmp_path))
    for step in key.split("."):
        part = part[step]
    assert part == name


@pytest.mark.parametrize("name", NAMES)
def test_a_run_of_such_a_name_is_resumed_by_it(tmp_path: Path, name: str) -> None:
    folder = tmp_path / name / name
    folder.mkdir(parents=True)
    plain = to_dict(compose([f"run_id='{name}'"], base=tmp_path))
    (folder / "config.yaml").write_text(json.dumps(plain))
    config = compose([f"resume={name}", f"runs_dir={name}"], base=tmp_path)
    assert (config.run_id, config.resume, config.runs_dir) == (name, name, tmp_path / name)
