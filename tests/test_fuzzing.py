"""Damage of every kind: what is read is what was written, or an error with a name; never another error or other values.

The cases are seeded: the same ones in every run. What is bent is a real thing each time (a packet, a setup, a message,
a file of a state-dir), for random bytes are refused at the first look.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from client_app.answers.app import app as client_app
from client_app.answers.node import Node
from client_app.homes.home import Place
from client_app.homes.site import Site
from client_app.homes.site_data import Told, prepared_data
from client_app.stores import frozen
from client_app.stores.frozen import FrozenStore
from client_app.stores.last_model import LastModel, keep_model, kept_models, read_model
from client_app.stores.pieces import close_file
from client_app.stores.store import PrivateStore
from exchanges import records
from exchanges.records import pack, unpack
from fedrec.codecs.base_table import BaseTableCodec
from fedrec.codecs.sparse import SparseCodec
from fedrec.config.compose import compose
from fedrec.config.describe import load_member
from fedrec.core import registry
from fedrec.core.errors import FedrecError, PacketError
from fedrec.core.secret import own_secret
from fedrec.core.tensors import Spec, TableSpec, Tensors, TensorSpec, content_digest, spec_of
from fedrec.data.store import open_store
from fedrec.wire.eligible import pack_eligible
from fedrec.wire.item_list import ItemList, item_list_packet, pack_item_list, unpack_item_list
from fedrec.wire.packet import Kind, PacketFormat
from fedrec.wire.protocol import Setup, frozen_format
from peft_embeddings.versions import held_format
from server_app.setup import make_setup


def fuzzed(cases: int) -> Callable[[Any], Any]:
    """So many seeded cases."""
    slow = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture, HealthCheck.data_too_large]
    return settings(max_examples=cases, deadline=None, derandomize=True, database=None, suppress_health_check=slow)


@st.composite
def bends(draw: st.DrawFn) -> Callable[[bytes], bytes]:
    """A damage: bits that have turned, a cut, more at the end, a hole, a repeated or foreign piece."""
    kind = draw(st.sampled_from(["flip", "flip", "flip", "flips", "cut", "extend", "hole", "repeat", "insert"]))
    at, size = draw(st.floats(0, 1, exclude_max=True)), draw(st.integers(1, 64))
    bit, more = draw(st.integers(0, 7)), draw(st.binary(min_size=1, max_size=40))

    def bend(data: bytes) -> bytes:
        place = int(at * max(1, len(data)))
        bent = bytearray(data)
        if kind in ("flip", "flips"):
            for step in range(1 if kind == "flip" else 5):
                if data:
                    bent[(place + step * size) % len(data)] ^= 1 << bit
        elif kind == "cut":
            del bent[place:]
        elif kind == "extend":
            bent += more
        elif kind == "hole":
            bent[place : place + size] = bytes(len(bent[place : place + size]))
        elif kind == "repeat":
            bent[place:place] = bent[place : place + size]
        else:
            bent[place:place] = more
        return bytes(bent)

    return bend


# ---- packets ---------------------------------------------------------------------------------------------------------


def _codec(name: str, **values: Any) -> Any:
    config = dataclasses.replace(load_member("codec", name), **values)
    return registry.codecs.get(name)(config)


SPEC: Spec = {"a": TableSpec((5, 4)), "b": TensorSpec((3,)), "codes": TensorSpec((7, 2), "uint8")}
FORMS: dict[Kind | str, PacketFormat] = {
    "sparse": PacketFormat(Kind.UPDATE, SPEC, SparseCodec(_codec("int8")), 9),
    Kind.MODEL: PacketFormat(Kind.MODEL, SPEC, _codec("float32"), 1),
    Kind.UPDATE: PacketFormat(Kind.UPDATE, SPEC, _codec("int8", scale="row"), 8),
    Kind.FROZEN: PacketFormat(Kind.FROZEN, SPEC, BaseTableCodec(["a"], _codec("int8"), _codec("float32")), 0),
    Kind.MERGED: PacketFormat(Kind.MERGED, SPEC, _codec("float16", scale="row"), 0),
    Kind.METRICS: PacketFormat(Kind.METRICS, {}, _codec("float32"), 13),
    Kind.SECURE: PacketFormat(Kind.SECURE, {"sealed": TensorSpec((6, 9), "uint8")}, _codec("float32"), 0),
    Kind.CROSSING: PacketFormat(
        Kind.CROSSING, {"states": TensorSpec((5,), "int32"), "hidden": TensorSpec((5, 4, 3))}, _codec("float32"), 0
    ),
    Kind.COUNTS: PacketFormat(Kind.COUNTS, {"counts": TensorSpec((40,), "int32")}, _codec("float32"), 1),
}


def _tensors(spec: Spec) -> Tensors:
    made: Tensors = {}
    for number, (name, entry) in enumerate(sorted(spec.items())):
        values = np.random.default_rng(number).normal(size=entry.shape) * 10
        made[name] = torch.from_numpy(np.abs(values) if entry.dtype == "uint8" else values).to(entry.zeros().dtype)
    return made


@pytest.mark.parametrize("kind", ["sparse", *Kind], ids=str)
@fuzzed(120)
@given(bend=bends())
def test_a_bent_packet_is_refused_or_is_the_one_that_was_sent(kind: Kind | str, bend: Callable[[bytes], bytes]) -> None:
    form, tensors = FORMS[kind], _tensors(FORMS[kind].spec)
    if kind == "sparse":
        tensors["a"][1:4] = 0
    data = form.encode(1, 9, tensors, [float(n) for n in range(form.scalars)])
    sent = form.decode(data)
    try:
        came = form.decode(bend(data), phase=1, round=9)
    except PacketError:
        return
    assert (came.phase, came.round, came.scalars) == (sent.phase, sent.round, sent.scalars)
    assert all(torch.equal(came.tensors[name], sent.tensors[name]) for name in sent.tensors)


@fuzzed(150)
@given(bend=bends())
def test_a_bent_list_of_items_is_refused_or_is_the_one_that_was_sent(bend: Callable[[bytes], bytes]) -> None:
    ids, titles = [f"i{n}" for n in range(30)], [f"Título {n}" for n in range(30)]
    packed = pack_item_list(ids, titles)["items"].numpy().tobytes()
    bent = torch.from_numpy(np.frombuffer(bend(packed), dtype=np.uint8).copy())
    try:
        came = unpack_item_list({"items": bent}, 30)
    except PacketError:
        return
    assert came == ItemList(tuple(ids), tuple(titles))


# ---- setups ----------------------------------------------------------------------------------------------------------

ITEMS = 12
CHOICES = [
    [],
    ["optim=fast", "codec=int8", "privacy=pseudo_items", "uplink=actions"],
    ["strategy=full", "codec=int8", "uplink=sampled", "downlink=actions"],
    ["backbone=fedpergnn", "backbone.layers=2"],
    ["backbone=pfedrec", "embedding=rqvae", "embedding.codes=4"],
    ["backbone=fedncf", "embedding=hash_senet", "codec=float16", "uplink=sparse"],
]


def _setup(*more: str, eligible: str = "e" * 32, catalogue: str = "c" * 32) -> Setup:
    texts = ["dataset=synthetic", "base_table.dim=4", "base_table.start=random", "run_id=r", *more]
    setup = make_setup(compose(texts, base=None), ITEMS, catalogue, eligible, None)
    return dataclasses.replace(setup, run_key="0123456789abcdef")


@cache
def _setups() -> list[dict[str, Any]]:
    return [json.loads(_setup(*more).to_json()) for more in CHOICES]


WILD = st.sampled_from(
    [
        None,
        True,
        -1,
        0,
        1,
        2**31,
        2**63,
        2**64,
        10**30,
        -(10**30),
        1e308,
        1e-320,
        0.5,
        "",
        "x",
        "../x",
        "\0",
        [],
        {},
        [1] * 200,
        [0],
        ["a"],
        {"name": "full"},
        "fedmf",
        "f" * 32,
        "nan",
    ]
)


def _leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    if isinstance(value, dict | list) and value:
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield (*path, key)
            yield from _leaves(inner, (*path, key))


@st.composite
def bent_setups(draw: st.DrawFn) -> str:
    values = copy.deepcopy(draw(st.sampled_from(_setups())))
    for _ in range(draw(st.integers(1, 3))):
        path = draw(st.sampled_from(list(_leaves(values))))
        at = values
        for key in path[:-1]:
            at = at[key]
        how = draw(st.sampled_from(["wild", "wild", "wild", "drop", "more"]))
        if how == "drop":
            del at[path[-1]]
        elif how == "more" and isinstance(at, dict):
            at[draw(st.sampled_from(["class", "_target_", "name", "simulation", "seed"]))] = copy.deepcopy(draw(WILD))
        else:
            at[path[-1]] = copy.deepcopy(draw(WILD))
        if not values:
            break
    text = json.dumps(values)
    return draw(bends())(text.encode()).decode(errors="surrogateescape") if draw(st.booleans()) else text


@fuzzed(350)
@given(text=bent_setups())
def test_a_bent_setup_is_refused_by_name_or_can_be_worked_with(text: str) -> None:
    try:
        setup = Setup.from_json(text)
        node = Node(setup, Place(0, 1))
        object.__setattr__(node, "sampler", None)  # the engine needs it only to draw
        for number, model in enumerate(node.models):
            assert node.model_format(number).size() > 0
            assert held_format(setup, model, merged=False).size() >= 0
        assert node.engine.recipe.local_steps()
        assert len(node.engine.recipe.solve_steps()) <= 10_000
        assert setup.metrics_format().size() < 100_000
        assert (
            node.backbone.init_private(setup.seed, np.zeros(0, dtype=np.uint64)).keys() == node.backbone.private.keys()
        )
    except FedrecError:
        return


# ---- messages to a site ----------------------------------------------------------------------------------------------


class Shop:
    """A site in the middle of a run: what it was told, and messages that it answers."""

    def __init__(self, folder: Path) -> None:
        TaskIdentity.run_id = TaskIdentity.task_id = TaskIdentity.node_id = 1
        self.folder, self.state = folder, folder / "state"
        lines = [f"u{user},i{(user * 5 + time) % ITEMS},{time}" for user in range(6) for time in range(5)]
        (folder / "clicks.csv").write_text("user_id,item_id,timestamp\n" + "\n".join(lines) + "\n")
        listed = pack_item_list([f"i{n}" for n in range(ITEMS)], [""] * ITEMS)
        eligible = pack_eligible(np.arange(ITEMS), ITEMS)
        self.setup = _setup(
            "backbone=fedpergnn",
            "backbone.layers=2",
            "strategy.warmup_rounds=1",
            "embedding.rank=2",
            eligible=content_digest(eligible),
            catalogue=content_digest(listed),
        )
        self.context = Context(
            run_id=1,
            node_id=2,
            node_config={
                "interactions": str(folder / "clicks.csv"),
                "state-dir": str(self.state),
            },
            state=RecordDict(),
            run_config={},
        )
        node = Node(self.setup, Place(0, 1))
        model = node.models[1]
        base = torch.randn(ITEMS, 4, generator=torch.Generator().manual_seed(0))
        trainable, held = model.init(base, {}, torch.Generator().manual_seed(0))
        self.frozen = content_digest(held)
        frozen_packet = held_format(self.setup, model, merged=False).encode(1, 2, held)
        model_packet = node.model_format(1).encode(1, 2, trainable, [0.0])
        about: dict[str, records.Field] = {"phase": 1, "round": 2, "frozen": self.frozen}
        about[records.CONTENT] = self.frozen
        ranked: dict[str, records.Field] = {**about, records.SPLITS: "validation test", records.AFTER: 1}
        packets = {records.MODEL: model_packet, records.FROZEN + self.frozen: frozen_packet}
        packets[records.FROZEN + self.setup.eligible] = frozen_format(spec_of(eligible)).encode(0, 0, eligible)
        slots = {records.SLOTS: np.array([0, 2, 3])}
        self.messages = {
            "query.enroll": pack(
                {"setup": self.setup.to_json(), records.RESUMED: "1 1"},
                {records.FROZEN + self.setup.catalogue: item_list_packet(listed)},
            ),
            "train": pack(ranked, packets, slots),
            "evaluate": pack(ranked, packets),
            "query.count_items": pack({"phase": 0, "round": 0}),
        }

    def ask(self, kind: str, content: RecordDict) -> Message:
        message = Message(content, 2, kind)
        message.metadata.__dict__["_message_id"] = "m"
        return client_app(message, self.context)


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Shop:
    made = Shop(tmp_path_factory.mktemp("shop"))
    for kind, content in made.messages.items():
        fields = unpack(made.ask(kind, content).content).fields
        assert records.PROBLEM not in fields, fields
        assert records.MISSING not in fields, fields
    return made


KINDS = ["train", "evaluate", "query.enroll", "query.count_items"]
VALUES = st.sampled_from(
    [
        0,
        -1,
        1,
        2,
        2**31,
        2**62,
        -(2**62),
        True,
        1.5,
        float("nan"),
        float("inf"),
        "",
        "x",
        "../x",
        "\0",
        "1 2 3",
        "9" * 30,
        "validation",
        "test test",
        b"bytes",
        [1, 2],
        ["a"],
        "f" * 32,
        "0" * 64,
        "x" * 10_000,
    ]
)
ARRAYS = st.sampled_from(
    [
        np.zeros(0),
        np.zeros(0, np.uint8),
        np.arange(3),
        np.array([2, 1]),
        np.array([0, 0]),
        np.array([-1]),
        np.array(7),
        np.array([10**9]),
        np.array([2**63], np.uint64),
        np.array([np.nan]),
        np.array(["a"]),
        np.array([1 + 2j]),
        np.zeros((2, 2), np.uint8),
        np.array([True]),
        np.array([0, 2, 3], np.uint8),
        np.ones(50, np.uint8),
    ]
)


@fuzzed(350)
@given(data=st.data(), kind=st.sampled_from(KINDS))
def test_a_bent_message_to_a_site_is_answered_or_refused_by_name(shop: Shop, data: st.DataObject, kind: str) -> None:
    good = unpack(shop.messages[kind])
    fields: dict[str, Any] = dict(good.fields)
    arrays: dict[str, Any] = dict(good.arrays)
    for _ in range(data.draw(st.integers(1, 2))):
        what = data.draw(st.sampled_from(["field", "field", "drop", "array", "bend", "bend", "more", "setup"]))
        if what in ("field", "more"):
            names = [*fields, "setup", "frozen", "content", "versions", "named"] if what == "more" else list(fields)
            fields[data.draw(st.sampled_from(names))] = data.draw(VALUES)
        elif what == "setup":
            fields["setup"] = data.draw(bent_setups())
        elif what == "drop" and (both := [*fields, *arrays]):
            name = data.draw(st.sampled_from(both))
            fields.pop(name, None)
            arrays.pop(name, None)
        elif what == "array":
            name = data.draw(st.sampled_from([*arrays, "frozen.x", "frozen." + "0" * 32, "merged.y", "slots", "model"]))
            arrays[name] = data.draw(ARRAYS)
        elif what == "bend" and arrays:
            name = data.draw(st.sampled_from(list(arrays)))
            arrays[name] = np.frombuffer(data.draw(bends())(arrays[name].tobytes()), dtype=np.uint8)
    try:
        record = ConfigRecord(fields)
        json.dumps(fields.get("setup"), ensure_ascii=False).encode()
    except (TypeError, UnicodeEncodeError):  # what the runtime itself does not carry
        return
    content = RecordDict(
        {"arrays": ArrayRecord({n: Array(np.asarray(a)) for n, a in arrays.items()}), "fields": record}
    )
    reply = unpack(shop.ask(kind, content).content)
    if records.PROBLEM in reply.fields:
        assert reply.fields[records.REASON] in records.REASONS
        assert not reply.arrays
    again = unpack(shop.ask("query.enroll", shop.messages["query.enroll"]).content)
    assert records.KEYS in again.arrays, "and the site goes on"


@fuzzed(100)
@given(data=st.data())
def test_content_that_is_no_content_is_refused_by_name(data: st.DataObject) -> None:
    good = pack({"a": 1}, {"p": b"packet"}, {"x": np.arange(5)})
    array = good.array_records["arrays"]["x"]
    bent = data.draw(bends())(array.data)
    shape = tuple(data.draw(st.lists(st.integers(-2, 2**40), max_size=3)))
    dtype = data.draw(st.sampled_from(["int64", "object", "no type", "V8", ""]))
    kind = data.draw(st.sampled_from(["numpy.ndarray", "zip", ""]))
    record = ArrayRecord({"x": Array(dtype, shape, kind, bent)})
    with pytest.raises(PacketError) if kind != "numpy.ndarray" else _either():
        unpack(RecordDict({"arrays": record, "fields": ConfigRecord({"a": 1})}))


class _either:  # noqa: N801 (it stands where pytest.raises does)
    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: object, trace: object) -> bool:
        return isinstance(error, PacketError)


# ---- files of a state-dir --------------------------------------------------------------------------------------------

RUN = "0123456789abcdef"
KEYS = np.arange(20, dtype=np.uint64)
PRIVATE: Spec = {"user": TensorSpec((4,))}


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A state-dir with something in each of its files."""
    folder = tmp_path_factory.mktemp("state")
    (folder / "clicks.csv").write_text("user_id,item_id,timestamp\n" + "".join(f"u,i{n},{n}\n" for n in range(9)))
    made = folder / "sound"
    made.mkdir(mode=0o700)
    own_secret(made)
    frozen_store, held = FrozenStore(made), {"t": torch.arange(6.0)}
    frozen_store.put(held, content_digest(held))
    keep_model(made, RUN, LastModel("{}", 1, 7, "", "f" * 32), b"a packet")
    store = PrivateStore(made, RUN, PRIVATE)
    for round in (1, 2):
        store.save(round, KEYS, {"user": torch.full((20, 4), float(round))}, 0)
    close_file(made / "users.sqlite", synced=True)
    _prepared(folder, made)
    return folder


def _prepared(folder: Path, state: Path) -> list[int]:
    items = ItemList(tuple(f"i{n}" for n in range(9)), ("",) * 9)
    site = Site(folder / "clicks.csv", state)
    found = prepared_data(site, Told(RUN, "c" * 32, 9, "{}", "s"), lambda: items, Counter())
    return [int(item) for item in found.history(0)]


PARTS: dict[str, tuple[str, ...]] = {
    "frozen": ("frozen",),
    "model": ("models",),
    "private": ("users.sqlite", "written"),
    "secret": ("secret",),
    "data": ("prepared", "interactions"),
}


@pytest.mark.parametrize("part", PARTS)
@fuzzed(80)
@given(bend=bends(), which=st.floats(0, 1, exclude_max=True))
def test_a_bent_file_of_a_state_dir_is_read_as_it_was_written_or_not_at_all(
    state: Path, part: str, bend: Callable[[bytes], bytes], which: float
) -> None:
    bent = state / "bent"
    shutil.rmtree(bent, ignore_errors=True)
    bent.mkdir(mode=0o700)
    for name in PARTS[part]:
        sound = state / "sound" / name
        (shutil.copytree if sound.is_dir() else shutil.copy2)(sound, bent / name)
    files = sorted(path for path in bent.rglob("*") if path.is_file())
    path = files[int(which * len(files))]
    path.write_bytes(bend(path.read_bytes()))
    open_store.cache_clear()
    frozen._load.cache_clear()
    written, found = _read(part, state, "sound"), _read(part, state, "bent")
    if part == "private" and found is not None:
        assert set(found) <= {None, 1.0, 2.0}, "what was written, or nothing"
    elif part == "secret" and found is not None:
        assert found < 2**256  # nothing tells one secret from another but what a run remembers of it
    else:
        assert found in (None, written), (path, found)
    close_file(bent / "users.sqlite", synced=True)


def _read(part: str, state: Path, which: str) -> Any:
    folder = state / which
    reads: dict[str, Callable[[], Any]] = {
        "frozen": lambda: _frozen(folder),
        "model": lambda: read_model(kept_models(folder)[0]),
        "private": lambda: _private(folder),
        "secret": lambda: own_secret(folder),
        "data": lambda: _prepared(state, folder),
    }
    try:
        return reads[part]()
    except (FedrecError, ValueError):
        return None


def _frozen(folder: Path) -> Any:
    found = FrozenStore(folder).get(content_digest({"t": torch.arange(6.0)}))
    return None if found is None else found["t"].tolist()


def _private(folder: Path) -> Any:
    loaded, found = PrivateStore(folder, RUN, PRIVATE).load(KEYS, 3)
    return [row if there else None for row, there in zip(loaded["user"][:, 0].tolist(), found, strict=True)]
