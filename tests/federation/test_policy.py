"""A site's own say: what a server may not do to it, whatever it sends, and the log of what left."""

from __future__ import annotations

import json
import logging
import stat
import time
from collections.abc import Callable
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from client_app.answers import app as app_module
from client_app.answers.app import app as client_app
from client_app.homes import policy as policy_module
from client_app.homes.policy import EXCHANGES, Policy, policy_of
from client_app.homes.site import site_of
from client_app.stores.pieces import close_file
from client_app.stores.store import PrivateStore
from commands.local_grid import LocalGrid
from commands.recommend import recommend
from exchanges import records
from exchanges.records import pack, unpack
from fedrec.config.compose import compose
from fedrec.config.paths import settle
from fedrec.core.errors import ConfigError, FederationError
from fedrec.core.tensors import TensorSpec
from server_app.run import run

USERS, ITEMS = 12, 30
SMALL = ["base_table.start=random", "base_table.dim=4", "embedding.rank=2", "strategy.rounds=4"]
SMALL += ["strategy.warmup_rounds=2", "federation.fraction=1.0", "evaluation.every=2", "simulation.nodes=1"]
GRAPH = ["backbone=fedpergnn", "backbone.layers=2"]
Change = Callable[[Message], Message | None]


class Shop:
    """One site in a federation whose server may be told to misbehave, and another that has no say."""

    def __init__(self, folder: Path) -> None:
        TaskIdentity.run_id = TaskIdentity.task_id = TaskIdentity.node_id = 1
        self.folder, self.state = folder, folder / "state0"
        rng = np.random.default_rng(0)
        (folder / "items.csv").write_text("item_id,title\n" + "".join(f"i{n},Item {n}\n" for n in range(ITEMS)))
        self.configs = []
        for site in range(2):
            lines = [
                f"u{user},i{item},{place}"
                for user in range(site, USERS, 2)
                for place, item in enumerate(rng.permutation(ITEMS)[:6].tolist())
            ]
            (folder / f"site{site}.csv").write_text("user_id,item_id,timestamp\n" + "\n".join(lines) + "\n")
            self.configs.append({"interactions": f"{folder}/site{site}.csv", "state-dir": f"{folder}/state{site}"})

    def policy(self, text: str) -> Path:
        self.state.mkdir(mode=0o700, exist_ok=True)
        (self.state / "policy.toml").write_text(text)
        (self.state / "policy.toml").chmod(0o600)
        return self.state / "policy.toml"

    def deploy(self, *more: str, change: Change | None = None, run_id: str = "r") -> list[dict[str, Any]]:
        """The records of a run; `change` may give another message for the first site in the place of one."""

        class Hostile(LocalGrid):
            def answer(self, message: Message) -> Message:
                app_module._node.cache_clear()
                first = message.metadata.dst_node_id == min(self.get_node_ids())
                told = change(message) if change and first else None
                if told is not None:
                    told.metadata.__dict__["_message_id"] = message.metadata.message_id
                return super().answer(told or message)

        texts = ["runtime=deployment", "dataset=table", f"dataset.item_table={self.folder}/items.csv", *SMALL]
        texts += [f"runs_dir={self.folder}/runs", f"cache_dir={self.folder}/cache", f"run_id={run_id}", *more]
        of = {text.partition("=")[0]: text for text in texts}
        run(settle(compose(list(of.values()), base=None), None), texts, Hostile(client_app, self.configs))
        lines = (self.folder / "runs" / run_id / "metrics.jsonl").read_text().splitlines()
        return [json.loads(line) for line in lines]

    def sent(self, site: int = 0) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.folder / f"state{site}/sent.jsonl").read_text().splitlines()]

    def context(self) -> Context:
        """That of a SuperNode whose process has just begun."""
        return Context(run_id=1, node_id=2, node_config=self.configs[0], state=RecordDict(), run_config={})

    def ask(self, kind: str, content: RecordDict, context: Context | None = None) -> dict[str, Any]:
        """The fields of the answer to a message, by a new process."""
        app_module._node.cache_clear()
        message = Message(content, 2, kind)
        message.metadata.__dict__["_message_id"] = "m"
        return dict(unpack(client_app(message, context or self.context()).content).fields)

    def setup(self, run_id: str = "r") -> dict[str, Any]:
        told: dict[str, Any] = json.loads((self.folder / "runs" / run_id / "setup.json").read_text())
        return told

    def trained(self) -> int:
        """Users of the first site who have private tensors of the run."""
        close_file(self.state / "users.sqlite", synced=True)
        store = PrivateStore(self.state, str(self.setup()["run_key"]), {"user": TensorSpec((4,))})
        keys = np.concatenate([index.users for _, index in store_indexes(store)] or [np.zeros(0, np.uint64)])
        return len(np.unique(keys))


def store_indexes(store: PrivateStore) -> list[Any]:
    with store._transaction(writing=False) as (file, index):
        return [(file, index)]


@pytest.fixture
def shop(tmp_path: Path) -> Shop:
    return Shop(tmp_path)


def counted(found: list[dict[str, Any]], name: str) -> int:
    return sum(int(record["dropped_replies"].get(name, 0)) for record in found)


def changed(message: Message, fields: dict[str, Any], arrays: dict[str, Any] | None = None) -> Message:
    content = unpack(message.content)
    told = pack({**content.fields, **fields}, arrays={**content.arrays, **(arrays or {})})
    return Message(told, message.metadata.dst_node_id, message.metadata.message_type)


# ---- the file --------------------------------------------------------------------------------------------------------


def test_without_a_file_honest_runs_are_granted_and_a_file_says_what_it_says(shop: Shop) -> None:
    site = site_of(shop.configs[0])
    assert policy_of(site) == Policy()
    shop.policy('max_steps = 7\nruns = ["0123456789abcdef"]\nexchanges = ["enroll", "train"]\n')
    read = policy_of(site)
    assert (read.max_steps, read.runs, read.exchanges) == (7, ("0123456789abcdef",), ("enroll", "train"))
    elsewhere = shop.folder / "elsewhere.toml"
    elsewhere.write_text("max_seconds = 3.5\n")
    elsewhere.chmod(0o600)
    assert policy_of(site_of({**shop.configs[0], "policy": str(elsewhere)})).max_seconds == 3.5


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("max_steps = 'many'", "max_steps: Input should be a valid integer"),
        ("max_stepz = 3", "max_stepz: Unexpected keyword argument"),
        ("max_steps", "cannot be read"),
        ("max_items = 0", "max_items: Input should be greater than or equal to 1"),
        ("exchanges = ['training']", r"exchanges are among .*enroll.*, not \['training'\]"),
        ("max_seconds = nan", "max_seconds: Input should be a finite number"),
        ("exchanges = 5", "exchanges"),
    ],
)
def test_a_policy_that_says_nothing_clear_lets_nothing_happen(shop: Shop, text: str, said: str) -> None:
    shop.policy(text)
    with pytest.raises(ConfigError, match=said):
        policy_of(site_of(shop.configs[0]))
    fields = shop.ask("query.enroll", pack({"setup": "{}"}))
    assert fields[records.REASON] == "misconfigured"


@pytest.mark.parametrize("mode", [0o620, 0o602, 0o666])
def test_a_policy_that_others_may_write_is_none(shop: Shop, mode: int) -> None:
    shop.policy("max_steps = 7").chmod(mode)
    with pytest.raises(ConfigError, match="may be written by others"):
        policy_of(site_of(shop.configs[0]))


def test_a_policy_that_is_named_has_to_be_there(shop: Shop) -> None:
    with pytest.raises(ConfigError, match="there is no such file"):
        policy_of(site_of({**shop.configs[0], "policy": "/nowhere/policy.toml"}))


# ---- what is granted -------------------------------------------------------------------------------------------------

REFUSED: dict[str, tuple[str, list[str], str]] = {
    "items": ("max_items = 29", [], "items=30, max_items=29"),
    "negatives": ("max_negatives = 3", ["optim.negatives=4"], "negatives=4, max_negatives=3"),
    "sampled": ("max_negatives = 3", ["evaluation.sampled_negatives=5"], "negatives=5, max_negatives=3"),
    "steps": ("max_steps = 3", ["optim.local_epochs=4", "optim.solve_epochs=1"], "steps=4, max_steps=3"),
    "contexts": (
        "max_steps = 11",
        ["optim=fast", "optim.contexts=3", "optim.private_anew=true", "optim.solve_steps=1"],
        "steps=12, max_steps=11",
    ),
    "solving": ("max_steps = 3", ["optim.solve_epochs=5"], "steps=5, max_steps=3"),
    "layers": ("max_layers = 2", ["backbone=fedncf"], "layers=3, max_layers=2"),
    "cut-offs": ("max_cut_offs = 1", ["evaluation.ks=[1,2]"], "cut_offs=2, max_cut_offs=1"),
    "another run": ("runs = ['0123456789abcdef']", [], "is not among this site's runs"),
    "no joining": ("exchanges = ['train']", [], "this site answers no enroll"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_site_does_not_take_part_in_what_it_does_not_grant(
    shop: Shop, case: str, caplog: pytest.LogCaptureFixture
) -> None:
    text, overrides, said = REFUSED[case]
    shop.policy(text)
    with caplog.at_level(logging.WARNING, "fedrec"):
        found = shop.deploy(*overrides)
    assert counted(found, "refused_by_site") == 1
    assert said in caplog.text
    assert not (shop.state / "users.sqlite").exists()
    assert said in str(shop.sent()[-1]["problem"])
    assert {record["users"] for record in found} == {USERS // 2}, "the other site takes part"


def test_at_the_edge_it_does(shop: Shop) -> None:
    shop.policy("max_items = 30\nmax_negatives = 4\nmax_steps = 20\nmax_layers = 1\nmax_cut_offs = 3")
    assert counted(shop.deploy("optim.negatives=4"), "refused_by_site") == 0


def test_an_exchange_that_a_site_does_not_answer_is_refused_and_the_others_go_on(shop: Shop) -> None:
    shop.policy(f"exchanges = {[name for name in EXCHANGES if name != 'count_items']}")
    found = shop.deploy(*GRAPH, "federation.max_failures=0.5")
    assert counted(found, "refused_by_site") == 1
    assert {record["users"] for record in found} == {USERS}


@pytest.mark.parametrize(("least", "sent"), [(USERS // 2, True), (USERS // 2 + 1, False)])
def test_no_update_of_fewer_users_leaves(shop: Shop, least: int, sent: bool) -> None:
    shop.policy(f"min_users_in_update = {least}\n")
    found = shop.deploy("federation.max_failures=0.5", "evaluation.every=0")
    updates = [line for line in shop.sent() if "update" in line["bytes"]]
    assert bool(updates) == sent
    assert counted(found, "refused_by_site") == (0 if sent else len(found))
    assert sent or not shop.trained(), "and nothing is kept of what did not count"


def test_an_update_in_which_too_few_have_remained_does_not_leave(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    """Users may be dropped from a sum: the least is of those who are in it."""
    shop.policy(f"min_users_in_update = {USERS // 2}\n")

    def diverged(self: Any, keys: Any, before: int) -> Any:
        private, found = honest(self, keys, before)
        if len(keys) == USERS // 2 and "state0" in str(self._home.state_dir):
            private["user"][0] = float("nan")
        return private, found

    honest = app_module.Node.private
    monkeypatch.setattr(app_module.Node, "private", diverged)
    rounds = ["strategy.rounds=2", "strategy.warmup_rounds=1"]
    found = shop.deploy("federation.max_failures=0.5", "evaluation.every=0", *rounds)
    assert counted(found, "refused_by_site") == 2
    assert not [line for line in shop.sent() if "update" in line["bytes"]]


def test_no_ranking_of_fewer_users_leaves(shop: Shop) -> None:
    shop.policy(f"min_users_in_ranking = {USERS // 2 + 1}\n")
    shop.deploy("federation.max_failures=0.5")
    assert not [line for line in shop.sent() if any("metrics" in name for name in line["bytes"])]
    assert [line for line in shop.sent(1) if any("metrics" in name for name in line["bytes"])]


def test_users_times_negatives_times_dimensions_are_bounded_together(
    shop: Shop, caplog: pytest.LogCaptureFixture
) -> None:
    """Each may be as large, and all together they would ask for gigabytes: refused before anything is made."""
    shop.policy("max_memory_mb = 64\n")
    wide = ["optim.negatives=2000", "base_table.dim=512", "embedding.rank=2", "evaluation.every=0"]
    started = time.monotonic()
    shop.configs.pop()
    with caplog.at_level(logging.WARNING, "fedrec"), pytest.raises(FederationError):
        shop.deploy(*wide)
    assert "max_memory_mb=64: users x negatives x steps x dimensions are too many together" in caplog.text
    assert time.monotonic() - started < 60


def test_work_that_takes_more_memory_or_time_than_granted_ends_by_name(
    shop: Shop, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever an estimate has missed."""
    work: list[Callable[[], Any]] = []
    honest = app_module.Node.train
    monkeypatch.setattr(app_module.Node, "train", lambda self, *args: (work[0](), honest(self, *args))[1])
    shop.policy("max_memory_mb = 300\nmax_seconds = 2.0\n")
    shop.configs.pop()
    cases: list[tuple[Callable[[], Any], str]] = [
        (lambda: torch.ones(2**31), "more memory than max_memory_mb=300"),
        (lambda: np.ones(2**31), "more memory than max_memory_mb=300"),
        (lambda: time.sleep(60), "more time than max_seconds=2"),
    ]
    for number, (act, said) in enumerate(cases):
        work[:] = [act]
        caplog.clear()
        with caplog.at_level(logging.WARNING, "fedrec"), pytest.raises(FederationError):
            shop.deploy("evaluation.every=0", "federation.repeats=0", run_id=f"r{number}")
        assert said in caplog.text
    assert torch.ones(10**8).sum() > 0, "afterwards the process has what it had"


# ---- what no message may do ------------------------------------------------------------------------------------------


def test_a_message_may_not_replace_the_setup_in_mid_run(shop: Shop) -> None:
    """Neither where the runtime remembers the setup, nor where it has forgotten it, nor by joining again."""
    shop.deploy()
    told = shop.setup()
    other = json.dumps({**told, "weight_cap": 7, "ks": [1, 2, 3]})
    for state in ({}, {"setup": ConfigRecord({"json": json.dumps(told)})}):
        for kind in ("query.enroll", "evaluate", "train", "query.count_items"):
            context = shop.context()
            context.state.update(state)  # type: ignore[arg-type]
            fields = shop.ask(kind, pack({"setup": other, "phase": 1, "round": 4, "frozen": ""}), context)
            assert fields[records.REASON] == "malformed", (kind, fields)
            assert "setup" in fields[records.PROBLEM]
    same = shop.context()
    assert "code" in shop.ask("query.enroll", pack({"setup": json.dumps(told)}), same)
    assert "code" in shop.ask("query.enroll", pack({"setup": json.dumps(told)}), same), "the same may come again"


def test_only_joining_makes_a_site_part_of_a_run(shop: Shop) -> None:
    shop.deploy()
    unknown = json.dumps({**shop.setup(), "run_key": "0" * 16})
    for kind in ("evaluate", "train", "query.count_items"):
        fields = shop.ask(kind, pack({"setup": unknown, "phase": 1, "round": 4, "frozen": ""}))
        assert fields == {records.MISSING: records.NAMED}
    assert not (shop.state / "prepared" / f"{'0' * 16}.json").exists()


def test_items_are_not_counted_by_other_rules_in_each_of_many_messages(shop: Shop) -> None:
    shop.deploy(*GRAPH)
    told = shop.setup()
    answered = []
    for most in range(1, 200):
        rules = {**told["backbone"], "degree_items": most, "degree_epsilon": 100.0}
        fields = shop.ask("query.count_items", pack({"setup": json.dumps({**told, "backbone": rules})}))
        answered += [most] if records.PROBLEM not in fields else []
    assert answered == []


def test_by_other_rules_in_each_of_many_runs_neither(shop: Shop) -> None:
    """A new run may have other rules; what they tell together is bounded by the site."""
    shop.policy("epsilon_budget = 10.0\nmax_epsilon = 4.0\nmax_seconds = 60.0\n")
    one = ["strategy.rounds=1", "strategy.warmup_rounds=0", "federation.max_failures=0.5", "backbone=fedpergnn"]
    for number in range(4):
        rules = f"backbone.degree_items={10 + number}"
        found = shop.deploy(*one, rules, "evaluation.every=0", run_id=f"r{number}")
        assert counted(found, "refused_by_site") == (number > 1), number
    again = shop.deploy(*one, "backbone.degree_items=11", "evaluation.every=0", run_id="again")
    assert counted(again, "refused_by_site") == 0, "the same report of the same items tells nothing new"
    spent = json.loads((shop.state / "spent.json").read_text())
    assert sum(spent.values()) == 8.0
    found = shop.deploy(*one, "backbone.degree_epsilon=4.5", "evaluation.every=0", run_id="large")
    assert counted(found, "refused_by_site") == 1
    (shop.state / "spent.json").write_text("{")
    found = shop.deploy(*one, "backbone.degree_items=11", "evaluation.every=0", run_id="damaged")
    assert counted(found, "failed") == 1, "who cannot read what was spent tells nothing"


def test_an_exchange_that_the_run_never_announced_is_refused(shop: Shop) -> None:
    shop.deploy()
    graph = {"name": "fedpergnn", "init_std": 0.1, "layers": 2, "degree_items": 20, "degree_epsilon": 4.0}
    told = shop.setup()
    for setup in (told, {**told, "backbone": graph}):
        context = shop.context()
        fields = shop.ask("query.count_items", pack({"setup": json.dumps(setup), "phase": 1, "round": 1}), context)
        assert fields[records.REASON] == "malformed"


def test_a_setup_of_code_that_had_another_exchange_is_refused(shop: Shop) -> None:
    shop.deploy(*GRAPH)
    told = shop.setup()
    older = json.dumps({**told, "run_key": "0" * 16, "backbone": {**told["backbone"], "expand_every": 10}})
    fields = shop.ask("query.enroll", pack({"setup": older}))
    assert "there is no key backbone.expand_every" in fields[records.PROBLEM]
    fields = shop.ask("query.disclose", pack({"setup": json.dumps(told), "phase": 1, "round": 1}))
    assert "this site answers no disclose" in fields[records.PROBLEM]


def test_a_run_that_has_ended_is_not_erased_by_a_resumption(shop: Shop) -> None:
    shop.deploy()
    before = shop.trained()
    assert before == USERS // 2
    for resumed in ("0", "0 0 0", "2", "0 4"):
        fields = shop.ask("query.enroll", pack({"setup": json.dumps(shop.setup()), records.RESUMED: resumed}))
        assert fields[records.REASON] == "policy"
        assert "this run has ended here, with the test after round 4" in fields[records.PROBLEM]
    assert shop.trained() == before
    assert recommend(None, str(shop.state), "u0", None, 3)["trained"]
    shop.policy("resume_ended = true\n")
    assert "code" in shop.ask("query.enroll", pack({"setup": json.dumps(shop.setup()), records.RESUMED: "0"}))
    assert shop.trained() == 0, "its owner may let it be"


@pytest.mark.parametrize("carries", ["", "train train", " ".join(f"query.k{number}" for number in range(17))])
def test_a_message_carries_a_few_exchanges_each_once(shop: Shop, carries: str) -> None:
    shop.deploy()
    fields = shop.ask("train", pack({"phase": 1, "round": 1, records.CARRIES: carries}))
    assert fields[records.REASON] == "malformed"
    assert "exchanges, each once" in fields[records.PROBLEM]


def test_a_server_that_lost_no_more_than_the_last_ranking_goes_on(shop: Shop) -> None:
    shop.deploy()
    before = shop.trained()
    assert "code" in shop.ask("query.enroll", pack({"setup": json.dumps(shop.setup()), records.RESUMED: "4"}))
    assert shop.trained() == before
    for resumed in ("4 0", "4 2"):
        fields = shop.ask("query.enroll", pack({"setup": json.dumps(shop.setup()), records.RESUMED: resumed}))
        assert fields[records.REASON] == "policy"
    assert shop.trained() == before


def test_645_bytes_do_not_get_8_gib(shop: Shop, caplog: pytest.LogCaptureFixture) -> None:
    shop.deploy(*GRAPH)
    told = json.dumps({**shop.setup(), "n_items": 2**31 - 1, "dim": 4})
    fields = shop.ask("query.count_items", pack({"setup": told}))
    assert fields[records.REASON] == "policy"
    small = json.dumps({**json.loads(told), "n_items": 2**24})
    assert shop.ask("query.count_items", pack({"setup": small}))[records.REASON] == "malformed"
    fields = shop.ask("query.enroll", pack({"setup": json.dumps({**json.loads(told), "run_key": "1" * 16})}))
    assert fields[records.REASON] == "policy"
    assert "items=2147483647, max_items=16777216" in fields[records.PROBLEM]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_model_that_is_not_finite_does_not_take_the_place_of_the_last_good_one(
    shop: Shop, value: float, caplog: pytest.LogCaptureFixture
) -> None:
    bent: list[int] = []

    def change(message: Message) -> Message | None:
        content = unpack(message.content)
        if message.metadata.message_type not in ("train", "evaluate") or content.fields["round"] != 4:
            return None
        setup = app_module._setup(json.dumps(shop.setup(), sort_keys=True, separators=(",", ":")))
        form = app_module._node(setup.to_json(), site_of(shop.configs[0])).model_format(1)
        model = form.decode(content.packet(records.MODEL))
        next(iter(model.tensors.values())).flatten()[0] = value
        bent.append(4)
        packet = form.encode(model.phase, model.round, model.tensors, model.scalars)
        return changed(message, {}, {records.MODEL: np.frombuffer(packet, dtype=np.uint8)})

    with caplog.at_level(logging.ERROR, "fedrec"):
        # Nothing is validated before the last round, whose model is then the best, too.
        shop.deploy("federation.max_failures=0.5", "evaluation.every=0", change=change)
    assert bent
    assert "the model of round 4 is not finite" in caplog.text
    found = recommend(None, str(shop.state), "u0", None, 3)
    assert found["round"] == 3
    assert all(np.isfinite(item["score"]) for item in found["items"])


# ---- the log of what left --------------------------------------------------------------------------------------------


def test_what_left_is_written_down_and_nobody_is_in_it(shop: Shop) -> None:
    shop.deploy()
    lines = shop.sent()
    assert stat.S_IMODE((shop.state / "sent.jsonl").stat().st_mode) == 0o600
    assert [line["exchange"] for line in lines[:3]] == ["enroll", "enroll", "train"]
    assert lines[0]["missing"] == shop.setup()["catalogue"]
    assert lines[1]["bytes"] == {"keys": 8 * USERS // 2}
    assert {line["round"] for line in lines if "update" in line["bytes"]} == {1, 2, 3, 4}
    assert {name for line in lines for name in line["bytes"]} == {
        "keys",
        "update",
        "metrics.validation",
        "metrics.test",
    }
    assert all(line["run"] == shop.setup()["run_key"] for line in lines)
    text = (shop.state / "sent.jsonl").read_text()
    assert not [user for user in range(USERS) if f"u{user}" in text]
    assert not [item for item in range(ITEMS) if f"i{item}" in text]


def test_what_cannot_be_written_down_does_not_leave(shop: Shop) -> None:
    shop.state.mkdir(mode=0o700)
    (shop.state / "sent.jsonl").mkdir()
    found = shop.deploy()
    assert counted(found, "misconfigured") == 1
    assert {record["users"] for record in found} == {USERS // 2}


def test_an_exchange_that_another_package_brings_can_be_granted(monkeypatch: pytest.MonkeyPatch) -> None:
    brought = EntryPoint("query.sketch", "sketches:sketch", "fedrec.exchange")
    monkeypatch.setattr(policy_module, "entry_points", lambda group: [brought] * (group == "fedrec.exchange"))
    policy = policy_module._checked("policy.toml", {"exchanges": ["train", "sketch"]})
    assert policy.exchanges == ("train", "sketch")
    with pytest.raises(ConfigError, match="exchanges are among"):
        policy_module._checked("policy.toml", {"exchanges": ["sketches"]})
