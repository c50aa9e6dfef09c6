"""A run's folder: whole files, one run each, and nothing in it that executes."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import re
import resource
import signal
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from exchanges.records import wrap
from federation.base import ServerState
from federation.best_round import BestRound
from federation.checkpoint import Checkpoint
from federation.exchange import Ledger
from federation.meter import Meter
from federation.versions import FrozenBytes, Merged, Merges
from fedrec.core.errors import StoreError
from fedrec.evaluation.curves import METRICS
from server_app import checkpoints
from server_app.run_folder import RunFolder
from server_app.watching import Recorder


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder.new(tmp_path / "runs" / "r")


def state() -> ServerState:
    table = torch.arange(12.0).reshape(3, 4)
    return ServerState(
        1,
        {"embedding.A": table.T, "b": torch.tensor(2.0)},
        {"base": table[:2]},
        "c",
        {"m": torch.ones(2)},
        merges=Merges(5, 90, (Merged("a", "b", wrap(b"from a")), Merged("b", "c", wrap(b"from b")))),
    )


def meter() -> Meter:
    made = Meter(["warmup", "peft"])
    made.grow(3, 10)
    made.downloaded(Ledger.TRAINING, 1, 200)
    made.froze(Ledger.TRAINING, 1, np.array([0, 2]), FrozenBytes(7))
    made.uploaded(Ledger.TRAINING, 1, 50)
    made.froze(Ledger.EVALUATION, 1, np.arange(3), FrozenBytes(7))
    made.uploaded(Ledger.EVALUATION, 1, 24)
    return made


def checkpoint(round: int) -> Checkpoint:
    users = np.array([3, 2**63 + 1, 0], dtype=np.uint64)
    groups, reports = np.array([0, 1, 0]), {"": {"warmup": {"mse": 0.1}}, "north": {}}
    record = {"round": round, "loss": 0.5}
    states = {"": state(), "north": dataclasses.replace(state(), trainable={"b": torch.tensor(3.0)})}
    return Checkpoint(round, states, meter().state(), users, groups, torch.arange(3.0).double(), reports, record)


def everything(folder: RunFolder) -> set[str]:
    return {str(path.relative_to(folder.path)) for path in folder.path.rglob("*") if path.is_file()}


def test_a_new_folder_is_made_with_its_parents(folder: RunFolder) -> None:
    assert (folder.path / "checkpoints").is_dir()
    assert folder.state_dir.is_dir()
    assert everything(folder) == set()


def test_files_are_written_whole(folder: RunFolder) -> None:
    folder.write_text("config.yaml", "seed: 0\n# größer\n")
    folder.write_json("manifest.json", {"b": 1, "a": [1.5, None]})
    folder.write_json("manifest.json", {"b": 2})
    assert (folder.path / "config.yaml").read_text(encoding="utf-8") == "seed: 0\n# größer\n"
    assert json.loads((folder.path / "manifest.json").read_text()) == {"b": 2}
    assert everything(folder) == {"config.yaml", "manifest.json"}


def test_a_write_that_breaks_off_leaves_what_was_there(folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    folder.write_text("config.yaml", "seed: 0\n")
    folder.write_json("summary.json", {"old": 1})
    folder.checkpoints.write(checkpoint(5))
    before = {name: (folder.path / name).read_bytes() for name in everything(folder)}

    def refuse(self: Path, target: Path) -> Path:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", refuse)
        with pytest.raises(StoreError, match=r"the run folder .* cannot be written \(Input/output.*resume=r goes on"):
            folder.write_json("summary.json", {"new": 2})
        with pytest.raises(OSError, match="Input/output"):
            folder.checkpoints.write(checkpoint(5))
    assert {name: (folder.path / name).read_bytes() for name in before} == before


def test_a_folder_is_for_one_run(folder: RunFolder) -> None:
    RunFolder.new(folder.path)
    folder.write_text("config.yaml", "a run that failed before it began\n")
    RunFolder.new(folder.path)
    folder.add_metrics({"round": 1})
    with pytest.raises(StoreError, match="already holds a run: choose another run_id"):
        RunFolder.new(folder.path)


def test_private_tensors_of_an_earlier_run_are_never_taken_over(folder: RunFolder) -> None:
    """A run may have ended in its first round, with users' tensors written and no metrics yet."""
    (folder.state_dir / "users.sqlite").write_bytes(b"")
    with pytest.raises(StoreError, match="already holds a run"):
        RunFolder.new(folder.path)


def test_a_folder_that_cannot_be_made_names_the_setting(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="set runs_dir="):
        RunFolder.new(tmp_path / "file" / "r")


def test_metrics_grow_by_whole_lines(folder: RunFolder) -> None:
    for round in (1, 2, 3):
        folder.add_metrics({"round": round, "validation": {"hr@10": 0.5}})
        lines = (folder.path / METRICS).read_text().splitlines()
        assert [json.loads(line)["round"] for line in lines] == list(range(1, round + 1))


def test_a_line_that_the_disk_refuses_leaves_no_half_of_it(folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    """As much of a line is written as there is room for; then the disk is full."""
    folder.write_text("config.yaml", "seed: 0\n")
    folder.add_metrics({"round": 1})
    before, after = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, ((folder.path / METRICS).stat().st_size + 7, after))
        with pytest.raises(StoreError, match=r"\(File too large\): make room on that disk, or .*resume=r goes on"):
            folder.add_metrics({"round": 2, "loss": 0.5})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (before, after))
        signal.signal(signal.SIGXFSZ, handler)
    assert (folder.path / METRICS).read_text() == '{"round": 1}\n'
    folder.add_metrics({"round": 2, "loss": float("nan")})
    assert (folder.path / METRICS).read_text() == '{"round": 1}\n{"round": 2, "loss": null}\n'


def test_a_log_that_cannot_be_written_is_said_once_and_ends_nothing(
    folder: RunFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    before, after = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        with folder.logged("the run"):
            resource.setrlimit(resource.RLIMIT_FSIZE, (10, after))
            for _ in range(3):
                logging.getLogger("fedrec").info("a line")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (before, after))
        signal.signal(signal.SIGXFSZ, handler)
    said = capsys.readouterr().err
    assert said.count("log.txt cannot be written (File too large)") == 1
    assert "Traceback" not in said


def test_the_log_is_plain_lines_in_utc(folder: RunFolder) -> None:
    with folder.logged("the run"):
        log = logging.getLogger("fedrec")
        record = log.makeRecord(log.name, logging.INFO, __file__, 1, "round %d", (3,), None)
        record.created = 0.0
        log.handle(record)
    log.error("after it")
    assert (folder.path / "log.txt").read_text() == "1970-01-01T00:00:00Z INFO round 3\n"


def test_the_log_ends_with_what_failed(folder: RunFolder) -> None:
    handlers, level = list(logging.getLogger("fedrec").handlers), logging.getLogger("fedrec").level
    with pytest.raises(KeyboardInterrupt), folder.logged("the run"):
        raise KeyboardInterrupt
    assert (folder.path / "log.txt").read_text().endswith("ERROR the run has failed: KeyboardInterrupt: \n")
    assert (logging.getLogger("fedrec").handlers, logging.getLogger("fedrec").level) == (handlers, level)


def test_a_checkpoint_holds_the_model_the_optimiser_and_the_meter(folder: RunFolder) -> None:
    folder.checkpoints.write(checkpoint(100))
    assert everything(folder) == {"checkpoints/round-000100.safetensors", "checkpoints/round-000100.json"}
    tensors = load_file(folder.path / "checkpoints/round-000100.safetensors")
    expected = state()
    assert torch.equal(tensors["trainable.embedding.A"], expected.trainable["embedding.A"])
    assert torch.equal(tensors["trainable.b"], torch.tensor(2.0))
    assert torch.equal(tensors["frozen.base"], expected.frozen["base"])
    assert torch.equal(tensors["optimiser.m"], torch.ones(2))
    counted = meter().state()
    assert {name for name in tensors if name.startswith("meter.")} == {
        f"meter.{name}" for name in (*counted, "users", "groups")
    }
    for name, counts in counted.items():
        np.testing.assert_array_equal(tensors[f"meter.{name}"].numpy(), counts)
    where = json.loads((folder.path / "checkpoints/round-000100.json").read_text())
    assert where["round"] == 100
    here = where["groups"][""]
    assert (here["phase"], here["frozen_digest"]) == (1, "c")
    assert torch.equal(tensors["trainable@north.b"], torch.tensor(3.0))
    plain = {"merges": 5, "merged_round": 90, "versions": ["a", "b", "c"]}
    packets = {name.removeprefix("merged."): tensor for name, tensor in tensors.items() if name.startswith("merged.")}
    restored = Merges.restored(here, packets)
    assert restored.state()[0] == plain
    assert [each.packet.numpy().tobytes() for each in restored.since({"a"})] == [b"from a", b"from b"]


def test_a_checkpoint_is_read_as_it_was_written(folder: RunFolder) -> None:
    assert folder.checkpoints.newest() == (None, [])
    for round in (7, 100):
        folder.checkpoints.write(checkpoint(round))
    found, kept = folder.checkpoints.newest()
    assert found is not None
    assert (found.round, kept) == (100, [7, 100])
    expected = checkpoint(100)
    assert found.facts() == expected.facts()
    assert found.tensors().keys() == expected.tensors().keys()
    for name, tensor in expected.tensors().items():
        assert torch.equal(found.tensors()[name], tensor), name
        assert found.tensors()[name].dtype == tensor.dtype, name
    np.testing.assert_array_equal(found.users, expected.users)
    np.testing.assert_array_equal(found.groups, expected.groups)
    assert found.states.keys() == expected.states.keys()
    for group, there in expected.states.items():
        for part in ("trainable", "frozen", "kept", "optimiser"):
            assert getattr(found.states[group], part).keys() == getattr(there, part).keys()
    counting, again = Meter(["warmup", "peft"]), meter()
    counting.restore(found.meter)
    assert counting.per_user() == again.per_user()
    for one in (counting, again):  # and it counts on alike
        one.grow(4, 10)
        one.froze(Ledger.TRAINING, 0, np.array([0, 3]), FrozenBytes(7))
        one.froze(Ledger.TRAINING, 1, np.array([0, 3]), FrozenBytes(7))
        one.froze(Ledger.EVALUATION, 1, np.arange(4), FrozenBytes(7))
    assert counting.per_user() == again.per_user()


def test_what_each_kept_checkpoint_needs_is_told(folder: RunFolder) -> None:
    for round, best in ((7, 2), (9, 9), (11, 10)):
        state = checkpoint(round)
        folder.checkpoints.write(dataclasses.replace(state, best=BestRound(best, {"ndcg@10": 0.1}, state.states)))
    assert folder.checkpoints.newest()[1] == [2, 9, 10]
    (folder.path / "checkpoints/round-000009.json").write_text("{")
    assert folder.checkpoints.newest()[1] == [2, 0, 10], "of a damaged one everything, for nobody knows"


@pytest.mark.parametrize("flipped", [0, 9, 200, -1])
def test_one_wrong_byte_is_noticed(folder: RunFolder, flipped: int) -> None:
    for round in (1, 2):
        folder.checkpoints.write(checkpoint(round))
    path = folder.path / "checkpoints/round-000002.safetensors"
    content = bytearray(path.read_bytes())
    content[flipped] ^= 1
    path.write_bytes(content)
    found, kept = folder.checkpoints.newest()
    assert found is not None
    assert (found.round, kept) == (1, [1])


def test_metrics_are_cut_only_where_they_are_whole(folder: RunFolder) -> None:
    for round in (1, 2, 3):
        folder.add_metrics({"round": round})
    folder.cut_metrics(3)
    assert everything(folder) == {METRICS}
    with (folder.path / METRICS).open("a") as file:
        file.write('{"round": 4, "loss"')
    folder.cut_metrics(2)
    assert (folder.path / METRICS).read_text() == '{"round": 1}\n{"round": 2}\n'
    assert (folder.path / "cut-1.jsonl").read_text() == '{"round": 3}\n{"round": 4, "loss"'
    with pytest.raises(StoreError, match=r"should begin with the rounds 1 to 3, its lines are of the rounds \[1, 2\]"):
        folder.cut_metrics(3)


def test_the_json_of_a_checkpoint_comes_last(folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever finds it finds the tensors."""

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoints, "save_file", fail)
    with pytest.raises(OSError, match="No space"):
        folder.checkpoints.write(checkpoint(1))
    assert not list((folder.path / "checkpoints").glob("*.json"))
    assert not list((folder.path / "checkpoints").glob("*.safetensors"))


def rounds(folder: RunFolder) -> list[int]:
    """Rounds of the whole checkpoints, both files there."""
    names = everything(folder)
    return [n for n in range(100) if {f"checkpoints/round-{n:06d}.{end}" for end in ("json", "safetensors")} <= names]


@pytest.mark.parametrize("kept", [1, 2, 3])
def test_the_newest_checkpoints_are_kept(folder: RunFolder, kept: int) -> None:
    for number in range(1, 7):
        folder.checkpoints.write(checkpoint(number))
        folder.checkpoints.prune(number, kept)
        assert rounds(folder) == list(range(max(1, number - kept + 1), number + 1))
    assert len(everything(folder)) == 2 * kept


def test_what_a_killed_run_left_half_done_goes_and_later_rounds_stay(folder: RunFolder) -> None:
    for number in (2, 4, 6, 8):
        folder.checkpoints.write(checkpoint(number))
    (folder.path / "checkpoints/round-000004.json").unlink()
    (folder.path / "checkpoints/round-000005.part").write_bytes(b"half")
    folder.checkpoints.prune(6, 2)
    assert rounds(folder) == [2, 6, 8]
    assert len(everything(folder)) == 6


def test_nothing_is_deleted_before_the_new_checkpoint_is_on_the_disk(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    fsync, unlink, replace = os.fsync, Path.unlink, Path.replace

    def synced(handle: int) -> None:
        name = Path(f"/proc/self/fd/{handle}").readlink().name
        told.append(f"sync {re.sub('[.][0-9a-f]{8}[.]part$', '.part', name)}")
        fsync(handle)

    def named(self: Path, target: Path) -> Path:
        told.append(f"name {target.name}")
        return replace(self, target)

    def deleted(self: Path, missing_ok: bool = False) -> None:
        told.append(f"delete {self.name}")
        unlink(self, missing_ok)

    recorder = Recorder(folder, cast(Any, None), checkpoints_kept=1, ledger=None, tracking=cast(Any, None))
    recorder.on_checkpoint(checkpoint(1))
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", synced)
        patch.setattr(Path, "unlink", deleted)
        patch.setattr(Path, "replace", named)
        recorder.on_checkpoint(checkpoint(2))
    written = [
        step
        for end in ("safetensors", "json")
        for step in (f"sync round-000002.{end}.part", f"name round-000002.{end}", "sync checkpoints")
    ]
    assert told == [*written, "delete round-000001.json", "delete round-000001.safetensors"]


def test_there_is_no_pickle_in_it(folder: RunFolder) -> None:
    folder.checkpoints.write(checkpoint(1))
    folder.write_json("summary.json", {"a": 1})
    for name in everything(folder):
        content = (folder.path / name).read_bytes()
        if not name.endswith(".safetensors"):
            assert not content.startswith((b"\x80", b"PK")), f"{name} is a pickle, or an archive that may hold one"
        else:  # it begins with a length, which may be any number, and is nothing but a header and the tensors
            header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
            assert len(content) == 8 + int.from_bytes(content[:8], "little") + max(
                entry["data_offsets"][1] for key, entry in header.items() if key != "__metadata__"
            )
