"""Secure sums of sites: what a site's policy has a say in, and what is on its disk."""

from __future__ import annotations

import json
import stat
from typing import Any

import numpy as np
import pytest
from flwr.app import Message

from client_app.stores import stages
from client_app.stores.stages import StageStore
from exchanges import records
from exchanges.records import pack, unpack

Sites = Any  # of conftest.py


# The policy -----------------------------------------------------------------------------------------------------------


def test_a_site_is_in_no_sum_of_fewer_than_its_policy_says(sites: Sites) -> None:
    sites.policy("min_cohort = 6\n")
    found = sites.deploy()
    assert all("in none of fewer than 6" in problem for problem in sites.problems)
    assert [record["users"] for record in found] == [8, 8]


def test_updates_leave_in_secure_sums_only_if_the_policy_says_so(sites: Sites) -> None:
    sites.policy("only_masked = true\n")
    sites.deploy("aggregation=plain", "federation.min_nodes=4", "federation.node_timeout=0")
    assert "only_masked" in sites.problems[0]


def test_with_pins_a_site_deals_with_those_alone_whom_it_knows(sites: Sites) -> None:
    known = sites.pin()
    assert known[1] == (sites.state(1) / "identity.pub").read_text().strip()
    found = sites.deploy("aggregation.server=lying")
    assert [record["users"] for record in found] == [10, 10]
    sites.policy(f"pins = {json.dumps(known[:-1])}\n")
    found = sites.deploy("aggregation.server=lying", "run_id=s", "federation.min_users=0")
    assert known[-1] in sites.problems[0]
    assert "is not among this site's pins" in sites.problems[0]
    assert [record["users"] for record in found] == [0, 0], "and so not all have shared their secrets"


def test_pins_want_a_run_that_reckons_with_a_lying_server(sites: Sites) -> None:
    sites.policy(f'pins = ["{"0" * 64}"]\n')
    sites.deploy("federation.min_nodes=4", "federation.node_timeout=0")
    assert "aggregation.server=lying" in sites.problems[0]


@pytest.mark.parametrize("aggregation", ["plain", "grid"])
def test_and_one_whose_sums_are_secure(sites: Sites, aggregation: str) -> None:
    sites.policy(f'pins = ["{"0" * 64}"]\n')
    sites.deploy(f"aggregation={aggregation}", "federation.min_nodes=4", "federation.node_timeout=0")
    assert "in secure sums" in sites.problems[0]
    assert (records.TRAIN, 1) not in sites.first or records.UPDATE not in unpack(
        sites.first[records.TRAIN, 1][1].content
    ).arrays


# The disk -------------------------------------------------------------------------------------------------------------


def test_what_is_kept_is_for_its_owner_alone_and_the_secrets_are_gone_when_they_were_told(sites: Sites) -> None:
    seen: list[dict[str, Any]] = []

    def look(message: Message, ask: Any) -> Message:
        found: Message = ask(message)
        for path in (sites.state() / "secure").rglob("record.json"):
            seen.append(json.loads(path.read_text()))
        return found

    sites.deploy(change=look)
    by_stage = {record["stage"]: record for record in seen}
    assert all(by_stage[stage][name] for stage in ("announce", "share", "train") for name in ("own", "mask"))
    assert by_stage["announce"]["channel"]
    assert not any(by_stage["unmask"][name] for name in ("own", "mask", "channel", "opening", "held"))
    files = [path for path in (sites.state() / "secure").rglob("*") if path.is_file()]
    files.append(sites.state() / "identity")
    assert len(files) == 2
    record = json.loads(files[0].read_text())
    assert record["round"] == 2
    assert not any(record[name] for name in ("own", "mask", "held", "answer")), "nor is the last answer, at the end"
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o600}


def test_when_it_joins_another_run_secrets_are_deleted_and_its_sums_remembered(sites: Sites) -> None:
    """Or else a server could start another run only to have a round of this one again."""
    sites.deploy()
    (path,) = (sites.state() / "secure").rglob("record.json")
    asked, context = pack({"phase": 1, "round": 2}, arrays={"slots": np.array([0, 1], np.int32)}), sites.context()
    path.write_text(json.dumps({**json.loads(path.read_text()), "own": "00", "stage": "train", "answer": "00"}))
    sites.deploy("run_id=s")
    assert json.loads(path.read_text())["own"] == json.loads(path.read_text())["answer"] == ""
    assert "is in no second one" in sites.ask(records.ANNOUNCE, asked, context)[records.PROBLEM]


def test_a_disk_on_which_nothing_can_be_written_takes_the_test_from_nobody(
    sites: Sites, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(message: Message, ask: Any) -> Message:
        if message.metadata.message_type != records.EVALUATE:
            return ask(message)

        def fail(*_: object, **__: object) -> None:
            raise OSError(28, "No space left on device")

        with monkeypatch.context() as patched:
            patched.setattr(StageStore, "_write", fail)
            patched.setattr(StageStore, "_overwrite", fail)
            found: Message = ask(message)
        assert records.METRICS in "".join(unpack(found.content).arrays)
        seen.append(found)
        return found

    seen: list[Message] = []
    sites.deploy(change=full)
    assert seen


def test_a_crash_leaves_no_answer_under_another_question(sites: Sites, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever asks again for a part, when the shares were ready and not told, gets the part, and no share."""
    seen = []

    def crash(message: Message, ask: Any) -> Message:
        def fail(*_: object, **__: object) -> None:
            raise OSError("power")

        with monkeypatch.context() as patched:
            patched.setattr(stages, "write_text", fail)
            ask(message)
        training, part = sites.first[records.TRAIN, 1]
        seen.append([unpack(each.content).packet(records.UPDATE) for each in (part, ask(training))])
        found: Message = ask(message)
        return found

    sites.deploy(change=sites.only(records.UNMASK, crash))
    assert seen[0][0] == seen[0][1]
