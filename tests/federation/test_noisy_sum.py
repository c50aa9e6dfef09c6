"""The stage of CONTRIBUTING in whole runs: a clip on devices, and noise on the sum at the server."""

from __future__ import annotations

import json
import re
import secrets
import sys
from collections.abc import Callable
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from client_app.answers.app import app as client_app
from commands.local_grid import LocalGrid
from exchanges.records import UPDATE
from fedrec.codecs.int8 import Int8Codec, Int8Config
from fedrec.config.compose import compose
from fedrec.config.paths import settle
from fedrec.core import registry
from fedrec.core.tensors import TableSpec
from fedrec.stages.base import Round
from fedrec.stages.draws import KEY_BYTES, Draws
from fedrec.stages.sums import Sum
from fedrec.wire.packet import Kind, PacketFormat
from fedrec.wire.protocol import UPDATE_SCALARS
from server_app.run import run

Federate = Callable[..., Any]

CONTRIBUTING = Path(__file__).resolve().parents[2] / "CONTRIBUTING.md"
NOISY = ["privacy=noisy_sum", "privacy.clip=0.5", "privacy.noise=0.8", "privacy.population=60"]
POISSON = "cohort=poisson"
SMALL = [
    "dataset.n_users=60",
    "dataset.n_items=100",
    "dataset.interactions_per_user=10.0",
    "base_table.dim=8",
    "embedding.rank=2",
    "strategy.rounds=4",
    "strategy.warmup_rounds=2",
    "federation.fraction=0.3",
    "checkpoint_every=2",
    "evaluation.every=1",
]


@pytest.fixture(autouse=True)
def member(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The class, from the document, as if another package had brought it."""
    block = r"^`fedrec/privacy/noisy_sum\.py`:\n\n```python\n(.*?)^```$"
    text = re.search(block, CONTRIBUTING.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    assert text is not None
    for name in registry.privacies.names():
        registry.privacies.get(name)  # or it would be registered in what is undone below
    (tmp_path / "noisy_sum_example.py").write_text(text[1])
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "noisy_sum_example", raising=False)
    monkeypatch.setattr(registry.privacies, "_classes", dict(registry.privacies._classes))
    point = EntryPoint("noisy_sum", "noisy_sum_example:NoisySum", "fedrec.privacy")
    monkeypatch.setattr(registry, "_entry_points", lambda group: (point,) if group == "fedrec.privacy" else ())
    assert "noisy_sum" in registry.privacies.names()
    return registry.privacies.get("noisy_sum")


@pytest.mark.parametrize("engine", ["cohort", "oracle"])
@pytest.mark.parametrize("others", [["codec=float32"], ["codec=int8", POISSON], ["backbone=fedncf", POISSON]], ids=str)
def test_1_2_and_7_nodes_draw_the_same_noise(federate: Federate, engine: str, others: list[str]) -> None:
    overrides = [*NOISY, *others, f"engine={engine}"]
    one = federate(*overrides, nodes=1)
    for nodes in (2, 7):
        many = federate(*overrides, nodes=nodes)
        many.must_equal(one)
        for name, tensor in one.checkpoint().items():
            if name.startswith("trainable."):
                assert torch.equal(many.checkpoint()[name], tensor), f"{name}: to the bit, for the noise is of the sum"


def test_the_noise_is_as_large_as_was_asked_for(
    federate: Federate, member: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And it is of the size that was asked for, on every number, over the public denominator."""
    moved: list[torch.Tensor] = []
    original = member.on_sum

    def spy(stage: Any, total: Sum, about: Round) -> Sum:
        after: Sum = original(stage, total, about)
        assert after.denominator == pytest.approx(0.3 * 60)
        moved.extend((after.units[name] - units).double() / total.units_per_one for name, units in total.units.items())
        return after

    monkeypatch.setattr(member, "on_sum", spy)
    federate(*NOISY, "strategy=full")
    noise = torch.cat([tensor.flatten() for tensor in moved])
    assert len(noise) == 5 * 100 * 8
    assert float(noise.std()) == pytest.approx(0.4, rel=0.05)
    assert float(noise.mean()) == pytest.approx(0.0, abs=4 * 0.4 / len(noise) ** 0.5)
    assert len({tuple(tensor.flatten()[:4].tolist()) for tensor in moved}) == len(moved), "each round has its own"


def test_rounds_in_which_nobody_takes_part_are_noised_too(federate: Federate) -> None:
    nobody = [*NOISY, POISSON, "federation.fraction=1e-9", "strategy=full", "evaluation.every=0", "checkpoint_every=1"]
    noisy, silent = federate(*nobody), federate(*nobody, "privacy.noise=0.0")
    for outcome in (noisy, silent):
        assert [(line["cohort"], line["users"], line["bytes"]["up"]) for line in outcome.metrics] == [(0, 0, 0)] * 5
        assert outcome.summary["test"]["users"] == 60
    models = [[run.checkpoint(round)["trainable.embedding.items"] for round in (4, 5)] for run in (noisy, silent)]
    assert not torch.equal(*models[0])
    assert torch.equal(*models[1]), "without noise there is nothing to learn from"


def test_a_lone_device_and_a_crowd_send_updates_no_larger_than_the_clip(federate: Federate, member: Any) -> None:
    """What arrives, decoded, with an int8 codec and a recipe that moves far: 60 nodes of one user each."""
    overrides = [*NOISY, "privacy.clip=0.01", "codec=int8", "strategy=full", "optim.lr=0.5", "strategy.rounds=2"]
    outcome = federate(*overrides, nodes=60)
    spec = {"embedding.items": TableSpec((100, 8))}
    form = PacketFormat(Kind.UPDATE, spec, Int8Codec(Int8Config("int8", "tensor")), len(UPDATE_SCALARS))
    packets = [data for _, _, data in outcome.grid.packets(outcome.grid.received, UPDATE)]
    assert len(packets) == 2 * 18
    norms = [float(form.decode(data).tensors["embedding.items"].double().norm()) for data in packets]
    assert max(norms) <= 0.01
    assert np.median(norms) > 0.0099, "they were clipped, and not to less than was needed"


def test_the_clip_alone_leaves_the_sum_in_floating_point(federate: Federate, member: Any) -> None:
    clipped, plain = federate(*NOISY, "privacy.noise=0.0"), federate()
    arrays = [sum(len(data) for _, _, data in run.grid.packets(run.grid.received, UPDATE)) for run in (clipped, plain)]
    assert arrays[0] == arrays[1]
    assert member(member.config_class("noisy_sum", 1.0, 0.0, 60)).event(1) is None
    assert member(member.config_class("noisy_sum", 1.0, 0.8, 60)).event(1).noise_multiplier == 0.8


class Killed(BaseException):
    """The process ends here."""


class Mortal(LocalGrid):
    """Is killed before it delivers a message."""

    def __init__(self, deliveries: int) -> None:
        super().__init__(client_app, nodes=2)
        self._left = deliveries

    def push_messages(self, messages: Any) -> Any:
        self._left -= 1
        if self._left < 0:
            raise Killed
        return super().push_messages(messages)


@pytest.mark.parametrize("fresh", [False, True], ids=["a simulation", "as in a deployment"])
def test_a_run_that_was_killed_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fresh: bool) -> None:
    """A simulation to the bit, for equal sums have equal noise; with noise from the system correctly all the same."""
    if fresh:
        monkeypatch.setattr(Draws, "once", lambda *_: secrets.token_bytes(KEY_BYTES))

    def carried(place: str, deliveries: int = 10**6, resume: bool = False) -> Any:
        where = [f"runs_dir={tmp_path}/{place}", f"cache_dir={tmp_path}/cache"]
        texts = ["resume=r", *where] if resume else [*SMALL, *NOISY, POISSON, "run_id=r", *where]
        run(settle(compose(texts, base=None), None), texts, Mortal(deliveries))
        return load_file(tmp_path / place / "r/checkpoints/round-000004.safetensors")

    whole = carried("whole")
    with pytest.raises(Killed):
        carried("killed", deliveries=6)
    resumed = carried("killed", resume=True)
    model = [name for name in whole if name.startswith("trainable.")]
    assert all(bool(resumed[name].isfinite().all()) for name in model)
    assert all(torch.equal(resumed[name], whole[name]) is not fresh for name in model)
    lines = [json.loads(line) for line in (tmp_path / "killed/r/metrics.jsonl").read_text().splitlines()]
    assert [line["round"] for line in lines] == [1, 2, 3, 4]
