"""Whole runs in one process: the real ServerApp and ClientApp over an in-process grid, on a small synthetic shop.

And deployed ones, of five sites with a state-dir each.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.supercore.task_identity import TaskIdentity
from safetensors.torch import load_file

from client_app.answers import app as app_module
from client_app.answers.app import app as client_app
from client_app.homes.identity import own_identity
from commands.local_grid import LocalGrid
from exchanges import records
from exchanges.records import unpack
from fedrec.config.compose import compose
from fedrec.config.describe import from_dict
from fedrec.config.paths import settle
from fedrec.core.tensors import Tensors
from fedrec.data import split
from fedrec.data.prepare import load
from server_app.run import run

SMALL = [
    "dataset.n_users=60",
    "dataset.n_items=100",
    "dataset.interactions_per_user=10.0",
    "dataset.topics=5",
    "dataset.skew=0.7",
    "dataset.noise=0.1",
    "dataset.visits=0.0",  # taste that stays as it is: what little these users tell can be learned in a few rounds
    "dataset.drift=0.0",
    "base_table.dim=8",
    "embedding.rank=2",
    "strategy.rounds=5",
    "strategy.warmup_rounds=2",
    "federation.fraction=0.3",
    "evaluation.every=2",
    "optim.solve_epochs=3",
]

Client = Callable[[Message, Any], Message]


class RecordingGrid(LocalGrid):
    """Keeps every message that crosses, and may let a client misbehave."""

    def __init__(self, client: ClientApp | Client, nodes: int) -> None:
        super().__init__(client, nodes)  # type: ignore[arg-type]
        self.sent: list[Message] = []
        self.received: list[Message] = []

    def push_messages(self, messages: Any) -> Any:
        messages = list(messages)
        self.sent += messages
        return super().push_messages(messages)

    def pull_messages(self, message_ids: Any) -> Any:
        replies = list(super().pull_messages(message_ids))
        self.received += replies
        return replies

    @staticmethod
    def packets(messages: Iterable[Message], prefix: str) -> Iterator[tuple[Message, str, bytes]]:
        """The arrays of messages whose names begin with `prefix`: the message, the rest of the name, the bytes."""
        for message in messages:
            for name, values in unpack(message.content).arrays.items():
                if name.startswith(prefix):
                    yield message, name.removeprefix(prefix), values.tobytes()


class Outcome:
    """A finished run."""

    def __init__(self, summary: dict[str, Any], grid: RecordingGrid) -> None:
        self.summary = summary
        self.grid = grid
        self.folder = Path(summary["run"])
        self.metrics = [json.loads(line) for line in (self.folder / "metrics.jsonl").read_text().splitlines()]

    def checkpoint(self, round: int | None = None) -> Tensors:
        """All tensors of the checkpoint after a round (by default the last)."""
        number = self.metrics[-1]["round"] if round is None else round
        return load_file(self.folder / "checkpoints" / f"round-{number:06d}.safetensors")

    def must_equal(self, other: Outcome) -> None:
        """The same run on other nodes: model, losses, metrics, counts and bytes, up to the order of sums."""
        mine, theirs = self.checkpoint(), other.checkpoint()
        for name in theirs:
            if not name.startswith("meter."):  # a row for each user, in the order in which they joined
                torch.testing.assert_close(mine[name], theirs[name], atol=1e-5, rtol=1e-5, msg=name)
        for here, there in zip(self.metrics, other.metrics, strict=True):
            assert here.get("validation", {}) == pytest.approx(there.get("validation", {}), abs=1e-6)
            assert here["loss"] == pytest.approx(there["loss"], abs=1e-5)
            for name in ("bytes", "bytes_per_user", "users", "examples", "cohort"):
                assert here[name] == there[name], name
        assert self.summary["test"] == pytest.approx(other.summary["test"], abs=1e-6)


Chance = tuple[float, float]


WHOLE = ("strategy=full", "strategy=fedras")
"""Strategies that train the whole table alone."""


@pytest.fixture(scope="session")
def chance() -> Callable[[Path], Chance]:
    """Expectation and standard error of a run's test NDCG@10 if every user's candidates stood in a random order.

    A user with c candidates has its held-out item at each of the ranks 1 .. c with probability 1 / c.
    """
    known: dict[str, Chance] = {}
    gains = 1 / np.log2(np.arange(2, 12))

    def of(folder: Path) -> Chance:
        config = from_dict(yaml.safe_load((folder / "config.yaml").read_text()))
        name = repr(config.dataset)
        if name not in known:
            dataset = load(config.dataset)  # type: ignore[arg-type]
            ranked = np.flatnonzero(split.evaluated(dataset.interactions, of="test"))
            histories = split.histories(dataset.interactions, "test", ranked)
            candidates = len(dataset.eligible) - np.diff(histories.offsets)
            assert (candidates > 10).all()
            mean = gains.sum() / candidates
            variance = (gains**2).sum() / candidates - mean**2
            known[name] = float(mean.mean()), float(np.sqrt(variance.sum()) / len(ranked))
        return known[name]

    return of


@pytest.fixture
def federate(tmp_path: Path) -> Callable[..., Outcome]:
    """Carry out a run: `federate("key=value", ..., nodes=2, client=...)`; later overrides replace earlier ones."""
    count = 0

    def go(*overrides: str, nodes: int = 2, client: ClientApp | Client = client_app) -> Outcome:
        nonlocal count
        count += 1
        of = {text.partition("=")[0]: text for text in overrides}
        small = {text.partition("=")[0]: text for text in SMALL}
        if "dataset" in of:
            small = {key: text for key, text in small.items() if not key.startswith("dataset.")}
        if of.get("embedding", "embedding=lora") != "embedding=lora" or of.get("strategy") in WHOLE:
            small.pop("embedding.rank")
        if of.get("strategy") in (*WHOLE, "strategy=fellrec"):
            small.pop("strategy.warmup_rounds")
        chosen = small | of
        if of.get("optim", "optim=paper") != "optim=paper":
            chosen.pop("optim.solve_epochs", None)  # of the recipe `paper`
        places = [
            f"runs_dir={tmp_path}/runs-{count}",
            f"cache_dir={tmp_path}/cache",
            f"simulation.nodes={nodes}",
            "run_id=r",
        ]
        texts = [*chosen.values(), *places]
        grid = RecordingGrid(client, nodes)
        return Outcome(run(settle(compose(texts, base=None), None), texts, grid), grid)

    return go


SITES, ITEMS = 5, 30
DEPLOYED = [
    "runtime=deployment",
    "dataset=table",
    "base_table.start=random",
    "base_table.dim=4",
    "embedding.rank=2",
    "strategy.rounds=2",
    "strategy.warmup_rounds=1",
    "federation.fraction=1.0",
    "evaluation.every=0",
    f"federation.min_nodes={SITES}",
    "checkpoint_every=1",
    "aggregation=secagg",
]


class Sites:
    """Five sites with two users each, whose updates a secure sum adds up."""

    def __init__(self, folder: Path) -> None:
        TaskIdentity.run_id = TaskIdentity.task_id = TaskIdentity.node_id = 1
        self.folder = folder
        rng = np.random.default_rng(0)
        (folder / "items.csv").write_text("item_id,title\n" + "".join(f"i{n},Item {n}\n" for n in range(ITEMS)))
        self.configs = []
        for site in range(SITES):
            rows = [
                f"u{site}{user},i{item},{place}"
                for user in range(2)
                for place, item in enumerate(rng.permutation(ITEMS)[:6].tolist())
            ]
            (folder / f"site{site}.csv").write_text("user_id,item_id,timestamp\n" + "\n".join(rows) + "\n")
            self.state(site).mkdir(mode=0o700)
            self.configs.append({"interactions": f"{folder}/site{site}.csv", "state-dir": str(self.state(site))})
        self.problems: list[str] = []
        self.first: dict[tuple[str, int], list[Message]] = {}

    def state(self, site: int = 0) -> Path:
        return self.folder / f"state{site}"

    def policy(self, text: str, site: int = 0) -> None:
        (self.state(site) / "policy.toml").write_text(text)
        (self.state(site) / "policy.toml").chmod(0o600)

    def pin(self) -> list[str]:
        """Let all sites know each other; their identities."""
        known = [own_identity(self.state(site)).public_key().public_bytes_raw().hex() for site in range(SITES)]
        for site in range(SITES):
            self.policy(f"pins = {json.dumps(known)}\n", site)
        return known

    def deploy(self, *more: str, change: Callable[[Message, Any], Message] | None = None) -> list[dict[str, Any]]:
        """The records of a run whose first site gets what `change` makes of a message, given how to ask it."""
        sites = self

        class Hostile(LocalGrid):
            def answer(self, message: Message) -> Message:
                if message.metadata.dst_node_id != min(self.get_node_ids()):
                    return self.ask(message)
                found = change(message, self.ask) if change else self.ask(message)
                fields = unpack(found.content).fields if found.has_content() else {}
                if records.PROBLEM in fields:
                    sites.problems.append(str(fields[records.PROBLEM]))
                where = (message.metadata.message_type, int(unpack(message.content).fields.get("round", 0)))
                sites.first.setdefault(where, []).extend([message, found])
                return found

            def ask(self, message: Message) -> Message:
                app_module._node.cache_clear()  # a new process for every message
                return super().answer(message)

        texts = [*DEPLOYED, f"dataset.item_table={self.folder}/items.csv", f"runs_dir={self.folder}/runs"]
        texts += [f"cache_dir={self.folder}/cache", "run_id=r", *more]
        of = {text.partition("=")[0]: text for text in texts}
        run(settle(compose(list(of.values()), base=None), None), texts, Hostile(client_app, self.configs))
        lines = (self.folder / "runs" / of["run_id"].removeprefix("run_id=") / "metrics.jsonl").read_text().splitlines()
        return [json.loads(line) for line in lines]

    def ask(self, kind: str, content: RecordDict, context: Context | None = None) -> dict[str, Any]:
        """The fields of the first site's answer to a message that no server of this run has sent."""
        app_module._node.cache_clear()
        message = Message(content, 2, kind)
        message.metadata.__dict__["_message_id"] = "m"
        return dict(unpack(client_app(message, context or self.context()).content).fields)

    def context(self) -> Context:
        context = Context(run_id=1, node_id=2, node_config=self.configs[0], state=RecordDict(), run_config={})
        setup = json.loads((self.folder / "runs/r/setup.json").read_text())
        context.state["setup"] = records.ConfigRecord(
            {"json": json.dumps(setup, sort_keys=True, separators=(",", ":"))}
        )
        return context

    @staticmethod
    def only(kind: str, change: Callable[[Message, Any], Message], round: int = 1) -> Callable[[Message, Any], Message]:
        """Change what is said in one stage of one round: what `deploy` takes."""

        def change_one(message: Message, ask: Any) -> Message:
            fields = unpack(message.content).fields
            if message.metadata.message_type == kind and fields.get("round") == round:
                return change(message, ask)
            found: Message = ask(message)
            return found

        return change_one


@pytest.fixture
def sites(tmp_path: Path) -> Sites:
    """Five sites; no run yet."""
    return Sites(tmp_path)
