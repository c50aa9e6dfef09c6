"""The digest of a client's code covers what a client can import, and nothing else."""

from __future__ import annotations

import shutil
from pathlib import Path

import grimp
import pytest

from fedrec.core.registry import (
    aggregations,
    backbones,
    codecs,
    downlinks,
    embeddings,
    groupings,
    networks,
    optims,
    privacies,
    uplinks,
)
from fedrec.wire import code
from fedrec.wire.code import CLIENT_PACKAGES, SERVER_ONLY, code_digest

ROOT = Path(code.__file__).resolve().parents[2]


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    for package in (*CLIENT_PACKAGES, "server_app", "federation"):
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


def test_the_same_code_in_another_folder_is_the_same_code(copy: Path) -> None:
    assert code_digest(copy) == code_digest()
    assert len(code_digest()) == 16


@pytest.mark.parametrize(
    "name",
    ["client_app/answers/node.py", "fedrec/core/rng.py", "exchanges/records.py", "peft_embeddings/lora.py"],
)
def test_it_changes_with_any_file_that_a_client_imports(copy: Path, name: str) -> None:
    (copy / name).write_text((copy / name).read_text() + "\n")
    assert code_digest(copy) != code_digest()


def test_it_changes_with_a_new_file_and_with_its_name(copy: Path) -> None:
    new = copy / "fedrec/backbones/new.py"
    new.write_text("")
    first = code_digest.__wrapped__(copy)
    new.rename(new.with_name("newer.py"))
    assert len({code_digest(), first, code_digest.__wrapped__(copy)}) == 3


def test_what_no_client_imports_does_not_matter(copy: Path) -> None:
    for name in (*SERVER_ONLY, "server_app/run.py", "federation/meter.py"):
        (copy / name).write_text((copy / name).read_text() + "# another comment\n")
    (copy / "fedrec/notes.txt").write_text("not code")
    assert code_digest(copy) == code_digest()


def test_the_list_of_server_only_files_is_that_of_the_imports() -> None:
    others = ("federation", "strategies", "server_app")
    graph = grimp.build_graph(*CLIENT_PACKAGES, *others, exclude_type_checking_imports=True, cache_dir=None)
    families = (aggregations, backbones, codecs, downlinks, embeddings, groupings, networks, optims, privacies, uplinks)
    members = {f"{family.package}.{name}" for family in families for name in family.names()}
    begin = {"client_app.entry", "client_app.answers.app"} | members
    reached = begin | {module for first in begin for module in graph.find_upstream_modules(first)}
    assert {module.partition(".")[0] for module in reached} == set(CLIENT_PACKAGES)
    unreached = {
        path.relative_to(ROOT).as_posix()
        for package in CLIENT_PACKAGES
        for path in (ROOT / package).rglob("*.py")
        if path.name != "__init__.py" and ".".join(path.relative_to(ROOT).with_suffix("").parts) not in reached
    }
    assert unreached == SERVER_ONLY
