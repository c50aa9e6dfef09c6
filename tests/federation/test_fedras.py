"""Updates as actions and as drawn rows, from the devices to the model: the same wherever users live, and metered."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import yaml

from commands.describe import describe
from exchanges.records import KEYS, UPDATE
from fedrec.config.compose import compose
from fedrec.config.describe import from_dict
from fedrec.core.errors import ConfigError
from fedrec.core.registry import networks

Federate = Callable[..., Any]

FAST = ["optim=fast", "optim.negatives=5"]
SGD = ["optim.server.kind=sgd", "optim.server.beta1=0.0", "optim.server.lr=10.0"]
WIDE = "dataset.n_items=300"
USERS = 60  # one node per user

# Of a model in int8 the last bits of a sum decide a number now and then: hence few rounds there.
RUNS = {
    "levels": ["strategy=fedras", "uplink.actions=4", *FAST, *SGD],
    "levels in int8": ["strategy=fedras", "uplink.actions=4", "codec=int8", "strategy.rounds=2", *FAST, *SGD],
    "drawn levels": ["strategy=fedras", "uplink.actions=4", "uplink.levels=drawn", *FAST, *SGD],
    "rows": ["strategy=fedras", "uplink.actions=8", "backbone=sasrec", "optim.window=6", *FAST, *SGD],
    "drawn": ["strategy=fedras", "uplink=sampled", "uplink.rows=6", "backbone=sasrec", "optim.window=6", *FAST, *SGD],
    "of a correction": ["uplink=actions", "uplink.actions=4", *FAST, *SGD],
}


@pytest.mark.parametrize("name", RUNS)
def test_1_2_and_one_node_per_user_agree_and_move_the_same(federate: Federate, name: str) -> None:
    few = 24
    overrides = [*RUNS[name], WIDE, f"dataset.n_users={few}"]
    one = federate(*overrides, nodes=1)
    lengths = {line["bytes"]["up"] / line["cohort"] for line in one.metrics}
    assert (len(lengths) > 1) is (name != "drawn"), "sizes follow the data, but where everybody draws as many rows"
    federate(*overrides, nodes=2).must_equal(one)
    each = federate(*overrides, nodes=few)
    each.must_equal(one)
    packets = [len(packet) for *_, packet in each.grid.packets(each.grid.received, UPDATE)]
    assert sum(packets) == sum(line["bytes"]["up"] for line in each.metrics)
    found = describe(from_dict(yaml.safe_load((each.folder / "config.yaml").read_text())), 300)
    assert min(phase.least_up for phase in found.phases) <= min(packets)
    assert max(packets) <= max(phase.up for phase in found.phases)


@pytest.mark.parametrize("name", ["levels", "drawn"])
def test_both_engines_agree(federate: Federate, name: str) -> None:
    fast, slow = (federate(*RUNS[name], WIDE, f"engine={engine}") for engine in ("cohort", "oracle"))
    slow.must_equal(fast)


def test_with_as_many_actions_as_rows_nothing_is_lost(federate: Federate) -> None:
    few = ["optim.window=6", "backbone=sasrec", *FAST, *SGD]
    dense = federate("strategy=full", *few, WIDE)
    coded = federate("strategy=fedras", "uplink.actions=256", *few, WIDE)
    for name, tensor in dense.checkpoint().items():
        if name.startswith("trainable."):
            assert (coded.checkpoint()[name] - tensor).norm() <= 0.02 * tensor.norm()


def test_an_update_as_actions_is_far_shorter(federate: Federate) -> None:
    """Of FedMF one vector, three factors, and two bits and a number for each row that moves."""
    dense, coded = (federate(*run, "codec=int8", *FAST, *SGD, WIDE) for run in (["strategy=full"], RUNS["levels"]))
    up = [outcome.summary["bytes_per_user"]["up"] for outcome in (dense, coded)]
    assert up[1] < up[0] / 15


REFUSED = {
    "a dense uplink": (["strategy=fedras", "uplink=dense"], "strategy=fedras sends updates as actions"),
    "a compressed table": (["strategy=fedras", "embedding=lora"], "take strategy=fedpeft uplink=actions"),
    "a noised sum": (["experiment=central_gaussian", "uplink=actions"], "uplink=actions: .*noises the sum"),
    "too many actions": (["uplink=actions", "uplink.actions=512"], r"uplink\.actions"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_fit_is_refused_with_its_reason(case: str) -> None:
    overrides, words = REFUSED[case]
    with pytest.raises(ConfigError, match=words):
        compose(overrides, base=None)


# ---- devices that differ ---------------------------------------------------------------------------------------------


ADAPTIVE = {
    "actions": (["uplink.actions=64"], "0.0004"),
    "drawn rows": (["uplink=sampled", "uplink.rows=64"], "0.0006"),
}


@pytest.mark.parametrize("case", ADAPTIVE)
def test_every_reply_fits_into_the_budget_of_its_device(federate: Federate, case: str) -> None:
    """Some of 60 simulated phones have room for 64 actions or rows, others for a few rows alone; wherever they live."""
    uplink, seconds = ADAPTIVE[case]
    overrides = ["strategy=fedras", *uplink, *FAST, *SGD, WIDE, "federation.fraction=1.0", "strategy.rounds=2"]
    limited = [*overrides, "network=mobile", f"network.reply_seconds={seconds}"]
    one, each = (federate(*limited, nodes=nodes) for nodes in (1, USERS))
    each.must_equal(one)
    config = from_dict(yaml.safe_load((one.folder / "config.yaml").read_text()))
    network = networks.get("mobile")(config.network, config.seed)
    key_of = {message.metadata.src_node_id: keys for message, _, keys in each.grid.packets(each.grid.received, KEYS)}
    keys, lengths = zip(
        *((key_of[message.metadata.src_node_id], len(data)) for message, _, data in updates(each)), strict=True
    )
    budgets = network.reply_budget(np.frombuffer(b"".join(keys), dtype=np.uint64))
    least = describe(config, 300).phases[-1].least_up
    assert (np.array(lengths) <= np.maximum(budgets, least)).all()
    free = [len(data) for *_, data in updates(federate(*overrides, nodes=USERS))]
    assert max(lengths) > 0.9 * max(free), "who has room uses it"
    assert sum(lengths) < 0.9 * sum(free)


def updates(outcome: Any) -> list[Any]:
    return list(outcome.grid.packets(outcome.grid.received, UPDATE))
