"""The families of plug-ins: every file is a member, no name is taken twice, and a typo is answered."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from fedrec.config.compose import compose
from fedrec.config.describe import differences, load_member
from fedrec.config.validate import MISSING, Validator, field_types
from fedrec.core import registry
from fedrec.core.errors import ConfigError, FedrecError
from fedrec.core.registry import FAMILIES, Family, MemberConfig, embeddings

MEMBERS = [(family.name, name) for family in FAMILIES.values() for name in family.names()]
YAMLS = sorted(path.relative_to(registry.CONF) for path in registry.CONF.glob("*/*.yaml"))


@pytest.mark.parametrize(("family", "name"), MEMBERS)
def test_every_member_registers_a_frozen_configuration(family: str, name: str) -> None:
    config_class: Any = FAMILIES[family].get(name).config_class
    assert issubclass(config_class, MemberConfig)
    assert config_class.__dataclass_params__.frozen


@pytest.mark.parametrize(("family", "name"), MEMBERS)
def test_every_yaml_gives_every_value_and_is_valid(family: str, name: str) -> None:
    values = yaml.safe_load((registry.CONF / family / f"{name}.yaml").read_text())
    values.pop("defaults", None)
    assert values["name"] == name
    config_class = FAMILIES[family].get(name).config_class
    assert values.keys() == field_types(config_class).keys()
    validator = Validator()
    validator.member(family, values)
    # A value that only the user knows is the one thing that a file may leave open.
    assert [line for line in validator.problems if "has no default and needs a value" not in line] == []
    assert len(validator.problems) == sum(value == MISSING for value in values.values())


@pytest.mark.parametrize("path", YAMLS, ids=str)
def test_every_folder_of_the_tree_is_a_family(path: Path) -> None:
    assert path.parent.name in {*FAMILIES, "experiment"}


def test_the_defaults_compose_and_the_full_table_brings_its_embedding() -> None:
    assert compose([], base=None).embedding.name == "lora"
    assert compose(["strategy=full"], base=None).embedding.name == "full"


def test_a_strategy_and_an_embedding_that_do_not_fit_are_a_problem() -> None:
    for overrides in (["strategy=fedpeft", "embedding=full"], ["strategy=full", "embedding=lora"]):
        with pytest.raises(ConfigError):
            compose(overrides, base=None)


def test_a_second_class_of_the_same_name_is_refused() -> None:
    family = Family("embedding", "peft_embeddings")

    class First:
        config_class = MemberConfig

    class Second:
        config_class = MemberConfig

    family.register("same")(First)
    assert family.register("same")(First) is First
    with pytest.raises(FedrecError, match=r"'same' is registered twice: .*First and .*Second"):
        family.register("same")(Second)


def test_a_class_without_a_configuration_is_refused() -> None:
    class Bare:
        pass

    with pytest.raises(FedrecError, match="needs `config_class`"):
        Family("embedding", "peft_embeddings").register("bare")(Bare)


def test_a_file_that_does_not_register_its_name_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "embedding").mkdir()
    (tmp_path / "embedding" / "base.yaml").write_text("name: base\n")
    monkeypatch.setattr(registry, "CONF", tmp_path)
    with pytest.raises(FedrecError, match=r"peft_embeddings/base.py does not register embedding 'base'"):
        Family("embedding", "peft_embeddings").get("base")


def test_an_unknown_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"embedding=lroa: there is no such embedding; did you mean lora\?"):
        embeddings.get("lroa")
    with pytest.raises(ConfigError, match=r"legal are .*full.*lora"):
        embeddings.get("zzzzzzzzz")


BROUGHT = """
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated
from annotated_types import Ge
from fedrec.core.registry import MemberConfig

@dataclass(frozen=True)
class Config(MemberConfig):
    width: Annotated[int, Ge(1)] = 8
    sizes: tuple[int, ...] = (1, 2)
    where: Path | None = None

@dataclass(frozen=True)
class Open(MemberConfig):
    width: Annotated[int, Ge(1)]

class Brought:
    config_class = Config

class Asking:
    config_class = Open
"""


@pytest.fixture
def brought(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Another installed distribution; returns the file in which it says what it brings."""
    (tmp_path / "brought_members.py").write_text(BROUGHT)
    info = tmp_path / "brought_members-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: brought-members\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[fedrec.embedding]\nbrought = brought_members:Brought\nasking = brought_members:Asking\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(embeddings, "_classes", dict(embeddings._classes))
    registry._entry_points.cache_clear()
    yield info / "entry_points.txt"
    registry._entry_points.cache_clear()
    sys.modules.pop("brought_members", None)


@pytest.mark.usefixtures("brought")
def test_a_member_of_another_package_is_one_like_ours() -> None:
    assert {"brought", "lora"} <= set(embeddings.names())
    overrides = ["embedding=brought", "embedding.width=3", "embedding.sizes=[4]", "embedding.where=x"]
    config = compose(overrides, base=Path("/b"))
    assert type(config.embedding).__name__ == "Config"
    assert vars(config.embedding) == {"name": "brought", "width": 3, "sizes": (4,), "where": Path("/b/x")}
    assert load_member("embedding", "brought", width=5).width == 5  # type: ignore[attr-defined]
    default, chosen = (compose(typed, base=Path("/b")) for typed in ([], ["embedding=brought"]))
    found = {change.key: change.value for change in differences(default, chosen)}
    assert (found["embedding"], found["embedding.width"], found["embedding.sizes"]) == ("brought", 8, [1, 2])


@pytest.mark.usefixtures("brought")
@pytest.mark.parametrize(
    ("overrides", "problem"),
    [
        (["embedding=brought", "embedding.width=0"], "embedding.width=0: expected an integer >= 1, got the integer 0"),
        (["embedding=brougt"], "embedding=brougt: there is no such embedding; did you mean brought?"),
        (["embedding=asking"], "embedding.width: has no default and needs a value: give embedding.width=... "
         "(an integer >= 1)"),
    ],
)  # fmt: skip
def test_its_problems_are_reported_like_ours(overrides: list[str], problem: str) -> None:
    with pytest.raises(ConfigError) as caught:
        compose(overrides, base=None)
    assert problem in caught.value.problems


def test_a_brought_member_may_not_take_one_of_our_names(brought: Path) -> None:
    brought.write_text("[fedrec.embedding]\nlora = brought_members:Brought\n")
    registry._entry_points.cache_clear()
    with pytest.raises(FedrecError, match=r"another package brings embedding \['lora'\], which fedrec has"):
        embeddings.names()


@dataclass(frozen=True)
class _Unused(MemberConfig):
    """A dataclass without a family: only to show that the base refuses to be changed."""


def test_a_configuration_cannot_be_changed() -> None:
    with pytest.raises(AttributeError):
        _Unused("x").name = "y"  # type: ignore[misc]
