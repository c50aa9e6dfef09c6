"""The register of language models: a digest leads to a folder of this machine's own, and to nothing else."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch

from commands.models import add_model
from fedrec.core.errors import ConfigError, DataError, FedrecError, StoreError
from fedrec.language.loading import Lora, loaded, weight_files
from fedrec.language.models import folder_of, lora_spec, register, registered, sizes_of
from fedrec.language.tokens import Frame, frame_of, table_problem, text_of, token_table
from fedrec.testing.language import tiny


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FEDREC_HOME", str(tmp_path / "home"))
    return tiny("bert", tmp_path / "model", 8).folder


def test_a_model_is_named_by_what_is_in_its_files_wherever_they_are(folder: Path, tmp_path: Path) -> None:
    digest = register(folder)
    assert len(digest) == 64
    assert registered() == {digest: folder}
    assert folder_of(digest) == folder
    moved = folder.rename(tmp_path / "elsewhere")
    with pytest.raises(ConfigError, match="no longer those of this model"):
        folder_of(digest)
    assert register(moved) == digest
    assert folder_of(digest) == moved
    (moved / "README.md").write_text("what is no part of the model")
    assert register(moved) == digest


def test_files_that_have_changed_are_no_longer_the_model(folder: Path) -> None:
    digest = register(folder)
    config = folder / "config.json"
    text = config.read_text()
    os.utime(config, (1, 1))  # the same content at another time is the same model
    assert folder_of(digest) == folder
    config.write_text(text + " ")
    with pytest.raises(ConfigError, match="put them back"):
        folder_of(digest)
    config.write_text(text)
    assert folder_of(digest) == folder
    (folder / "added_tokens.json").write_text("{}")
    with pytest.raises(ConfigError, match="put them back"):
        folder_of(digest)


def test_what_the_register_does_not_have_is_refused_and_no_path_is_opened(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"does not have this language model.*fedrec model FOLDER"):
        folder_of(64 * "0")
    for name in (str(folder), "../models/" + 64 * "0", register(folder).upper(), ""):
        with pytest.raises(ConfigError, match="expected the 64 hexadecimal digits"):
            folder_of(name)


def test_a_damaged_entry_says_so(folder: Path, tmp_path: Path) -> None:
    digest = register(folder)
    entry = tmp_path / "home" / "models" / f"{digest}.json"
    for text in ("{", json.dumps({"folder": 3, "files": {}})):
        entry.write_text(text)
        with pytest.raises(StoreError, match="register the model anew"):
            folder_of(digest)


def test_a_folder_without_a_model_is_none(folder: Path, tmp_path: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(DataError, match=r"there are no weights in it; .*pickled weights are never read"):
        register(folder)
    with pytest.raises(DataError, match="there is no such folder"):
        add_model(str(tmp_path / "nothing"), None)


@pytest.mark.parametrize("name", ["sub/x.safetensors", "../x.safetensors", ".x.safetensors", "x.bin"])
def test_an_index_names_no_weights_that_the_digest_does_not_cover(folder: Path, name: str) -> None:
    (folder / "model.safetensors").rename(folder / "a.safetensors")
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"one": "a.safetensors"}}))
    register(folder)
    assert weight_files(folder) == [folder / "a.safetensors"]
    index.write_text(json.dumps({"weight_map": {"one": "a.safetensors", "other": name}}))
    for read in (register, lambda there: loaded(there, Lora(2, 4.0, ("query",)), 0)):
        with pytest.raises(FedrecError, match=r"right in the folder"):
            read(folder)
    index.write_text("[]")
    with pytest.raises(FedrecError, match="no index of weights"):
        register(folder)


def test_the_command_prints_the_digest_that_a_configuration_names(folder: Path) -> None:
    assert add_model(str(folder), None) == {"digest": register(folder), "folder": str(folder)}


def test_sizes_and_what_is_trained_follow_from_the_configuration_alone(folder: Path) -> None:
    digest = register(folder)
    sizes = sizes_of(digest)
    assert (sizes.width, sizes.layers, sizes.heads, sizes.positions, sizes.vocabulary) == (8, 4, 2, 64, 50)
    spec = lora_spec(digest, Lora(2, 4.0, ("query", "value")))
    assert len(spec) == 4 * 2 * 2
    assert sum(each.size for each in spec.values()) == 4 * 2 * 2 * 2 * 8


def test_item_texts_become_rows_of_tokens_and_rows_a_text(folder: Path) -> None:
    digest = register(folder)
    table = token_table(digest, ["abc", "", "ab cdef"], 4)
    assert table.dtype == torch.int32
    assert table.tolist() == [[4, 5, 6, -1], [-1, -1, -1, -1], [4, 5, 1, 6]]
    frame = frame_of(digest)
    assert [part.tolist() for part in (frame.before, frame.after)] == [[2], [3]]
    assert text_of(table[[2, 1, 0]], frame, 64).tolist() == [2, 4, 5, 1, 6, 4, 5, 6, 3]
    assert text_of(table[[2, 1, 0]], frame, 8).tolist() == [2, 4, 5, 1, 6, 4, 5, 3], "the end of a text is kept"
    assert text_of(table[:0], frame, 8).tolist() == [2, 3]
    assert text_of(table[[0]], Frame(torch.tensor([7, 7]), torch.tensor([], dtype=torch.int64)), 4).tolist() == [
        7,
        7,
        4,
        5,
    ]


def test_no_text_is_empty(folder: Path) -> None:
    nothing = torch.tensor([], dtype=torch.int64)
    table = torch.full((1, 3), -1, dtype=torch.int32)
    for rows in (table, table[:0]):
        text = text_of(rows, Frame(nothing, nothing, 5), 8)
        assert (text.tolist(), text.dtype) == ([5], torch.int64)
    assert frame_of(register(folder)).nothing == 0, "it has no end of a text, but padding"
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "eos_token": "[SEP]"}))
    assert frame_of(register(folder)).nothing == 3


@pytest.mark.parametrize(("token", "known"), [(-1, True), (0, True), (49, True), (50, False), (-2, False)])
def test_tokens_that_no_model_has_are_found(token: int, known: bool) -> None:
    table = torch.zeros(3, 2, dtype=torch.int32)
    table[1, 1] = token
    assert (table_problem(table, 50) is None) == known
