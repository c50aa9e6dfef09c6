"""What a client believes of what it is told about a run: names and numbers, checked, and nothing else."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Iterator
from typing import Annotated, Any, ClassVar, Literal, get_args, get_origin, get_type_hints

import numpy as np
import pytest
import torch
from annotated_types import Ge, Gt, Le, Lt, MaxLen
from hypothesis import given, settings
from hypothesis import strategies as st

from client_app.answers.node import Node, Place
from fedrec.config.describe import load_member
from fedrec.core import bounds, registry
from fedrec.core.errors import ConfigError, FedrecError, PacketError
from fedrec.core.rng import generator
from fedrec.core.tensors import DTYPES, TableSpec, TensorSpec, matches, spec_of
from fedrec.stages.draws import Draws
from fedrec.testing.privacy import SETTLED
from fedrec.wire import protocol
from fedrec.wire.eligible import ELIGIBLE, eligible_spec, pack_eligible, unpack_eligible
from fedrec.wire.packet import Kind
from fedrec.wire.protocol import MODEL_SCALARS, UPDATE_SCALARS, PhaseSetup, Setup, SimulatedData, frozen_format
from fedrec.wire.updates import NodeUpdate

LORA = {"name": "lora", "variant": "P", "start": "auto", "rank": 2, "init_std": 0.1, "scaling": 1.0}
SETUP = Setup(
    protocol=protocol.PROTOCOL_VERSION,
    run_key="r",
    seed=7,
    n_items=20,
    dim=4,
    catalogue="c" * 32,
    eligible="e" * 32,
    phases=(
        PhaseSetup("warmup", {"name": "full"}),
        PhaseSetup("peft", LORA),
    ),
    backbone={"name": "fedmf", "init_std": 0.1},
    optim={
        "name": "paper",
        "loss": "bpr",
        "lr": 0.01,
        "local_epochs": 1,
        "negatives": 1,
        "solve_epochs": 0,
    },
    codec={"name": "float32"},
    privacy={"name": "none"},
    grouping={"name": "one"},
    ks=(5, 10),
    sampled_negatives=0,
    validation=True,
    weight_cap=200,
    max_update_norm=10.0,
    max_row_norm="auto",
    engine="cohort",
    pairs_at_once=65_536,
    simulation=SimulatedData("/data", "/state", "t"),
)
VALUES: dict[str, Any] = json.loads(SETUP.to_json())


def reading(**changes: Any) -> Setup:
    return Setup.from_json(json.dumps({**VALUES, **changes}))


@pytest.mark.parametrize(("aggregation", "owed"), [("plain", False), ("grid", False), ("secagg", True)])
def test_who_gives_nothing_owes_its_noise_to_a_sum_under_masks_alone(aggregation: str, owed: bool) -> None:
    noise = dataclasses.asdict(load_member("privacy", "distributed_gaussian", **SETTLED["distributed_gaussian"]))
    added = dataclasses.asdict(load_member("aggregation", aggregation))
    setup = dataclasses.replace(SETUP, privacy=noise, aggregation=added)
    total = {"a": torch.zeros(100, dtype=torch.int64)}
    setup.stages.addition.add_idle(np.array([3, 4], np.uint64), total, Draws(1, fresh=False))
    assert bool(total["a"].any()) is owed


def test_there_and_back() -> None:
    assert Setup.from_json(SETUP.to_json()) == SETUP
    without = dataclasses.replace(SETUP, simulation=None)
    assert Setup.from_json(without.to_json()) == without
    assert "\n" not in SETUP.to_json()
    assert reading().to_json() == SETUP.to_json()


@pytest.mark.parametrize("told", [{"uplink": {"name": "sparse"}}, {"downlink": {"name": "actions", "actions": 8}}])
def test_plain_links_are_not_told(told: dict[str, Any]) -> None:
    """What a client is told counts as bytes, and a run of old said nothing of it."""
    other = dataclasses.replace(SETUP, **told)
    assert not {"uplink", "downlink"} & VALUES.keys()
    assert json.loads(other.to_json()) == {**VALUES, **told}
    assert Setup.from_json(other.to_json()) == other


def test_no_network_is_not_told() -> None:
    assert "network" not in VALUES
    assert reading(network={"name": "none"}) == SETUP


def test_a_client_is_told_of_a_network_and_a_real_device_only_of_its_budget() -> None:
    """What a device is told to join counts as bytes: a clock changes none of them."""
    told = dataclasses.asdict(load_member("network", "mobile"))
    timed = dataclasses.replace(SETUP, network=told)
    assert Setup.from_json(timed.to_json()) == timed
    assert json.loads(timed.to_json()) == {**VALUES, "network": told}
    assert timed.device_json() == SETUP.device_json()
    limited = dataclasses.replace(SETUP, network={**told, "reply_seconds": 0.5})
    assert json.loads(limited.device_json())["network"] == {**told, "reply_seconds": 0.5}
    keys = np.arange(5, dtype=np.uint64)
    uplink = limited.network_of_run.uplink(keys)  # type: ignore[attr-defined]
    assert limited.network_of_run.reply_budget(keys).tolist() == (uplink * 62_500).astype(int).tolist()


def test_what_a_sum_of_lists_says_beside_it() -> None:
    spec, told = {"t": TableSpec((100, 4))}, len(UPDATE_SCALARS)
    sparse = dataclasses.replace(SETUP, uplink={"name": "sparse"})
    assert [setup.update_format(spec, users).scalars for setup in (SETUP, sparse) for users in (1, 2)] == [
        told,
        told,
        told,
        told + 1,
    ]
    one, many = sparse.update_format(spec, 1), sparse.update_format(spec, 2)
    assert one.least() < one.size() == SETUP.update_format(spec, 1).size() + 4
    assert many.least() == many.size() == SETUP.update_format(spec, 2).size() + 8


WRONG: dict[str, dict[str, Any]] = {
    "a network that is a word": {"network": "mobile"},
    "an uplink that there is not": {"uplink": "narrow"},
    "text for a number": {"seed": "7"},
    "a number for a text": {"run_key": 7},
    "a yes for a number": {"n_items": True},
    "a fraction for a whole number": {"dim": 4.5},
    "no items": {"n_items": 0},
    "more items than there can be": {"n_items": 10**15},
    "no dimension": {"dim": 0},
    "negative seed": {"seed": -1},
    "no phase": {"phases": []},
    "too many phases": {"phases": [VALUES["phases"][0]] * 257},
    "a phase with an unknown key": {"phases": [{"name": "p", "embedding": {}, "class": "os.system"}]},
    "a phase that is a list": {"phases": [["p", {}]]},
    "a cut-off below one": {"ks": [0]},
    "no cut-off": {"ks": []},
    "NaN": {"max_update_norm": float("nan")},
    "infinity": {"max_update_norm": float("inf")},
    "a cap of nothing": {"weight_cap": 0},
    "fewer than no negatives": {"sampled_negatives": -1},
    "a cap of 10^30": {"weight_cap": 10**30},
    "a norm of 1e300": {"max_update_norm": 1e300},
    "rows that may not move": {"max_row_norm": 0.0},
    "a row of 1e300": {"max_row_norm": 1e300},
    "a limit of rows that is a word": {"max_row_norm": "none"},
    "a seed of 10^30": {"seed": 10**30},
    "1,000 cut-offs": {"ks": list(range(1, 1_001))},
    "a million sampled negatives": {"sampled_negatives": 10**6},
    "a name of a list that is a path": {"eligible": "../../etc/passwd"},
    "a long name": {"run_key": "k" * 10_000},
    "an unknown key": {"plugin": "os.system"},
    "an unknown key in the simulation": {"simulation": {**VALUES["simulation"], "x": 1}},
    "a member that is no section": {"backbone": "fedmf"},
    "null": {"optim": None},
    "another protocol": {"protocol": protocol.PROTOCOL_VERSION + 1},
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_setup_is_malformed(case: str) -> None:
    with pytest.raises(PacketError) as caught:
        reading(**WRONG[case])
    assert caught.value.reason == "malformed"
    key = next(iter(WRONG[case]))
    assert key in str(caught.value), "the message names what is wrong"


EDGES: dict[str, tuple[list[Any], list[Any]]] = {
    "seed": ([0, bounds.LARGEST_SEED], [-1, bounds.LARGEST_SEED + 1]),
    "n_items": ([1, bounds.MOST_ITEMS], [0, bounds.MOST_ITEMS + 1]),
    "dim": ([1, bounds.MOST_DIMENSIONS], [0, bounds.MOST_DIMENSIONS + 1]),
    "phases": ([VALUES["phases"][:1], VALUES["phases"][:1] * 256], [[], VALUES["phases"][:1] * 257]),
    "sampled_negatives": ([0, bounds.MOST_NEGATIVES], [-1, bounds.MOST_NEGATIVES + 1]),
    "weight_cap": ([1, bounds.MOST_WEIGHT], [0, bounds.MOST_WEIGHT + 1]),
    "max_update_norm": ([5e-324, bounds.LARGEST_NORM], [0.0, bounds.LARGEST_NORM * 1.000001]),
    "max_row_norm": ([5e-324, bounds.LARGEST_NORM, None], [0.0, bounds.LARGEST_NORM * 1.000001]),
    "pairs_at_once": ([1, bounds.MOST_ITEMS], [0, bounds.MOST_ITEMS + 1]),
    "run_key": (["k" * 200], ["k" * 201]),
    "eligible": (["", "0af" * 21 + "f"], ["0" * 65, "0\n", "A"]),
    "simulation": (
        [{**VALUES["simulation"], "state_dir": "/" * 4096}],
        [{**VALUES["simulation"], "state_dir": "/" * 4097}, {**VALUES["simulation"], "state_dir": "/\0"}],
    ),
}


@pytest.mark.parametrize("key", EDGES)
def test_what_may_just_be_is_taken_and_what_is_just_beyond_it_is_not(key: str) -> None:
    taken, refused = EDGES[key]
    for value in taken:
        found = json.loads(reading(**{key: value}).to_json())
        assert found[key] == value
    for value in refused:
        with pytest.raises(PacketError, match=key) as caught:
            reading(**{key: value})
        assert caught.value.reason == "malformed"


def test_a_setup_of_a_million_characters_is_read_and_a_longer_one_is_not() -> None:
    text = SETUP.to_json()
    assert Setup.from_json(text + " " * (2**20 - len(text))) == SETUP
    with pytest.raises(PacketError) as caught:
        Setup.from_json(text + " " * (2**20 + 1 - len(text)))
    assert caught.value.reason == "oversized"


def numbers(cls: type, at: str) -> Iterator[tuple[str, Any, list[Any]]]:
    """All numbers of a dataclass, also those in its lists and sections: the key, the type, and its limits."""

    def walk(key: str, hint: Any, limits: list[Any]) -> Iterator[tuple[str, Any, list[Any]]]:
        origin, arguments = get_origin(hint), get_args(hint)
        if origin is Annotated:
            yield from walk(key, arguments[0], [*limits, *arguments[1:]])
        elif hint in (int, float):
            yield key, hint, limits
        elif isinstance(hint, type) and dataclasses.is_dataclass(hint):
            yield from numbers(hint, key)
        elif origin is not Literal:
            if origin in (tuple, list):
                assert any(isinstance(limit, MaxLen) for limit in limits), f"{key} may be of any length"
            for argument in arguments:
                yield from walk(key, argument, [])

    for name, hint in get_type_hints(cls, include_extras=True).items():
        if get_origin(hint) is not ClassVar and not name.startswith("__"):
            yield from walk(f"{at}.{name}", hint, [])


CROSSING = ("backbone", "optim", "codec", "privacy", "embedding", "network")


def test_every_number_and_list_that_a_setup_can_hold_has_limits_on_both_sides() -> None:
    members = [(family, name) for family in CROSSING for name in registry.FAMILIES[family].names()]
    classes = [(registry.FAMILIES[family].get(name).config_class, f"{family}={name}") for family, name in members]
    found = [entry for cls, at in [(Setup, "setup"), *classes] for entry in numbers(cls, at)]
    assert len(found) >= 60
    unlimited = [
        key
        for key, _, limits in found
        if key != "setup.protocol"
        and not (any(isinstance(x, Ge | Gt) for x in limits) and any(isinstance(x, Le | Lt) for x in limits))
    ]
    assert unlimited == []


def test_a_table_of_many_items_of_many_numbers_is_refused_though_each_may_be() -> None:
    assert reading(n_items=2**31 - 1, dim=1).n_items == 2**31 - 1
    assert reading(n_items=1, dim=65_536).dim == 65_536
    with pytest.raises(PacketError, match="n_items=2147483647 and dim=65536"):
        reading(n_items=2**31 - 1, dim=65_536)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), -1.0, 0.5, 8.0, 1e300])
def test_a_round_to_go_back_to_that_is_none_is_malformed(value: float) -> None:
    form = SETUP.model_format({"t": TensorSpec((2,))})
    with pytest.raises(PacketError, match="the earliest round to go back to"):
        protocol.checkpoint_round(form.decode(form.encode(0, 7, {"t": torch.zeros(2)}, [value])))
    for good in (0, 7):
        assert protocol.checkpoint_round(form.decode(form.encode(0, 7, {"t": torch.zeros(2)}, [float(good)]))) == good


def test_something_else_under_the_name_of_the_list_of_eligible_items_is_malformed() -> None:
    sound = pack_eligible(np.arange(3), 20)
    for packed in ({}, {"items": sound[ELIGIBLE]}, {ELIGIBLE: sound[ELIGIBLE][:2]}, {ELIGIBLE: torch.zeros(3)}):
        with pytest.raises(PacketError, match="the list of eligible items"):
            unpack_eligible(packed, 20)
    with pytest.raises(PacketError, match="the list of eligible items"):
        unpack_eligible(sound, 30)


@pytest.mark.parametrize("key", sorted(VALUES))
def test_every_key_is_needed(key: str) -> None:
    with pytest.raises(PacketError, match=key):
        Setup.from_json(json.dumps({name: value for name, value in VALUES.items() if name != key}))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "null",
        "[]",
        "{",
        "[" * 100_000,
        '{"seed":' + "9" * 100_000 + "}",
        '"' + "x" * 5_000_000 + '"',
        "\ud800",
        "{\0",
    ],
    ids=lambda text: text[:10].encode(errors="replace").hex(),
)
def test_what_is_no_setup_at_all(text: str) -> None:
    with pytest.raises(PacketError):
        Setup.from_json(text)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@settings(max_examples=80, deadline=None)
@given(key=st.sampled_from(sorted(VALUES)), value=JSON)
def test_any_value_is_taken_or_refused_by_name(key: str, value: Any) -> None:
    text = json.dumps({**VALUES, key: value})
    try:
        taken = Setup.from_json(text)
    except PacketError:
        return
    assert Setup.from_json(taken.to_json()).to_json() == taken.to_json()


@pytest.fixture
def imported() -> Iterator[set[str]]:
    """What a test has imported since it began."""
    before, new = set(sys.modules), set[str]()
    yield new
    new |= set(sys.modules) - before
    assert not {name for name in new if name.split(".")[0] in {"this", "antigravity", "turtle", "wsgiref"}}


MEMBERS: dict[str, dict[str, Any]] = {
    "a module": {"name": "this"},
    "a class path": {"name": "wsgiref.simple_server.WSGIServer"},
    "a path": {"name": "../../antigravity"},
    "a target": {"name": "fedmf", "init_std": 0.1, "_target_": "turtle.Turtle"},
    "no name": {"init_std": 0.1},
    "a name that is no text": {"name": ["fedmf"]},
    "a wrong type": {"name": "fedmf", "init_std": "0.1"},
    "a value out of range": {"name": "fedmf", "init_std": -1.0},
    "NaN": {"name": "fedmf", "init_std": float("nan")},
    "a missing value": {"name": "fedmf"},
    "nothing": {},
}


@pytest.mark.parametrize("case", [case for case in MEMBERS if case != "NaN"])
@pytest.mark.parametrize("family", ["backbone", "optim", "privacy", "codec", "embedding", "network"])
@pytest.mark.usefixtures("imported")
def test_a_hostile_member_is_a_configuration_error_and_nothing_is_imported(family: str, case: str) -> None:
    values = MEMBERS[case]
    phases = [{"name": "p", "embedding": values}]
    setup = reading(**({"phases": phases} if family == "embedding" else {family: values}))
    node = Node(setup, Place(0, 1))
    object.__setattr__(node, "sampler", None)  # the engine needs it only to draw
    with pytest.raises((ConfigError, PacketError)):
        {
            "backbone": lambda: node.models,
            "embedding": lambda: node.models,
            "codec": lambda: node.setup.metrics_format(),
            "optim": lambda: node.engine,
            "privacy": lambda: node.engine,
            "network": lambda: node.setup.network_of_run,
        }[family]()


def test_a_member_with_nan_is_refused() -> None:
    with pytest.raises(FedrecError):
        assert Node(reading(backbone=MEMBERS["NaN"]), Place(0, 1)).models


def test_an_unknown_engine_is_malformed_and_names_the_known_ones() -> None:
    node = Node(reading(engine="os.system"), Place(0, 1))
    object.__setattr__(node, "sampler", None)
    with pytest.raises(PacketError, match=r"'os.system' is not one of \['cohort', 'oracle'\]"):
        assert node.engine


def test_a_phase_that_the_run_has_not_is_malformed() -> None:
    node = Node(SETUP, Place(0, 1))
    assert node.model_format(1).spec.keys() == {"embedding.A", "embedding.B"}
    for phase in (-1, 2, 10**30):
        with pytest.raises(PacketError, match="is none of the run's 2"):
            node.model_format(phase)


def test_formats_and_names() -> None:
    spec = {"t": TensorSpec((2,))}
    assert (SETUP.model_format(spec).kind, SETUP.model_format(spec).scalars) == (Kind.MODEL, len(MODEL_SCALARS))
    assert SETUP.update_format(spec, users=1).scalars == len(UPDATE_SCALARS) == len(NodeUpdate({}).scalars())
    plain = ("hr@5", "ndcg@5", "recall@5", "hr@10", "ndcg@10", "recall@10", "mrr")
    assert SETUP.metric_names() == plain
    sampled = dataclasses.replace(SETUP, sampled_negatives=100)
    assert sampled.metric_names() == (*plain, *(f"sampled100/{name}" for name in plain))
    assert sampled.metrics_format().scalars == 3 + 2 * len(plain)
    assert frozen_format(spec).kind is Kind.FROZEN


@pytest.mark.parametrize("name", DTYPES)
def test_frozen_numbers_of_every_type_travel_exactly(name: str) -> None:
    """Codes and hash functions are whole numbers: whatever the run's codec, what is frozen is what was sent."""
    dtype = DTYPES[name]
    info = torch.finfo(dtype) if dtype.is_floating_point else torch.iinfo(dtype)
    sent = {"t": torch.tensor([[info.min, info.max], [0, 1]], dtype=dtype)}
    fmt = frozen_format(spec_of(sent))
    packet = fmt.encode(1, 0, sent)
    assert len(packet) == fmt.size() == 36 + 4 * dtype.itemsize
    back = fmt.decode(packet).tensors["t"]
    assert back.dtype == dtype
    assert torch.equal(back, sent["t"])


@pytest.mark.parametrize("codec", ["float32", "float16", "int8"])
def test_of_what_is_frozen_first_the_base_alone_is_in_the_codec_of_the_run(codec: str) -> None:
    setup = dataclasses.replace(SETUP, codec=dataclasses.asdict(load_member("codec", codec)))
    rng = generator(0, "frozen")
    sent = {"base": torch.randn(30, 4, generator=rng), "copy": torch.randn(5, 4, generator=rng)}
    sent |= {"codes": torch.arange(30), "degree": torch.rand(30, generator=rng)}
    spec = {**spec_of(sent), "base": TableSpec((30, 4)), "copy": TableSpec((5, 4))}
    fmt = setup.held_format(spec, ["base"], merged=False)
    packet = fmt.encode(1, 0, sent, seed=None)
    assert len(packet) == fmt.size()
    assert (len(packet) < frozen_format(spec).size()) == (codec != "float32")
    back = fmt.decode(packet).tensors
    assert back.keys() == sent.keys()
    assert all(torch.equal(back[name], sent[name]) for name in ("copy", "codes", "degree"))
    assert torch.equal(back["base"], sent["base"]) == (codec == "float32")
    assert (back["base"] - sent["base"]).abs().max() <= sent["base"].abs().max() / 127 / 2 + 1e-6
    assert fmt.encode(1, 0, back, seed=None) == packet, "what it decodes to is what is sent"
    assert (fmt.digest() == frozen_format(spec).digest()) == (codec == "float32")
    assert setup.held_format(spec, ["base"], merged=True).digest() == frozen_format(spec).digest()


@settings(deadline=None)
@given(st.integers(1, 70).flatmap(lambda n: st.tuples(st.just(n), st.sets(st.integers(0, n - 1)))))
def test_the_list_of_eligible_items_there_and_back(listed: tuple[int, set[int]]) -> None:
    n_items, items = listed
    eligible = np.array(sorted(items), dtype=np.int32)
    packed = pack_eligible(eligible, n_items)
    assert matches(eligible_spec(n_items)[ELIGIBLE], packed[ELIGIBLE])
    assert packed[ELIGIBLE].numel() == -(-n_items // 8), "one bit an item"
    back = unpack_eligible(packed, n_items)
    assert back.dtype == np.int64
    np.testing.assert_array_equal(back, eligible)
