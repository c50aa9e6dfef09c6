"""The rows that an update changes, by their numbers: the same tensors to the bit, never longer, and strict to read."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedrec.codecs.base import Codec
from fedrec.codecs.sparse import SparseCodec
from fedrec.config.describe import load_member
from fedrec.core.errors import PacketError
from fedrec.core.registry import codecs
from fedrec.core.rng import generator
from fedrec.core.tensors import Spec, TableSpec, Tensors, TensorSpec, matches, zeros
from fedrec.wire.packet import Kind, PacketFormat

CODECS = ["float32", "float16", "float16/row", "int8", "int8/row"]
SPEC: Spec = {"table": TableSpec((70, 3)), "other": TableSpec((300, 2)), "dense": TensorSpec((4, 2))}


def made(name: str) -> Codec:
    name, _, scale = name.partition("/")
    codec: Codec = codecs.get(name)(load_member("codec", name, **({"scale": scale} if scale else {})))
    return codec


def tensors(rows: int, of_other: int = 0, seed: int = 0) -> Tensors:
    """As many rows of the tables are other than zero."""
    rng = generator(seed, "tensors")
    drawn = zeros(SPEC) | {"dense": torch.randn(4, 2, generator=rng)}
    for name, count in (("table", rows), ("other", of_other)):
        places = torch.randperm(SPEC[name].shape[0], generator=rng)[:count]
        drawn[name][places] = torch.randn(count, SPEC[name].shape[1], generator=rng)
    return drawn


def same(first: Tensors, second: Tensors) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("name", CODECS)
@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(0, 70),
    of_other=st.integers(0, 300),
    seed=st.integers(0, 10**6),
    rounding=st.sampled_from([None, 0, 7]),
)
def test_it_brings_what_the_whole_table_would(
    name: str, rows: int, of_other: int, seed: int, rounding: int | None
) -> None:
    """Also rounded at random: the draw of a number belongs to its place in the table, not in the list."""
    codec, sparse, given = made(name), SparseCodec(made(name)), tensors(rows, of_other, seed)
    if rounding is None:  # as an update is that was rounded on its device
        given = codec.decode(memoryview(codec.encode(given, SPEC, 0)), SPEC)
    data = sparse.encode(given, SPEC, rounding)
    whole = codec.decode(memoryview(codec.encode(given, SPEC, rounding)), SPEC)
    came = sparse.decode(memoryview(data), SPEC)
    assert same(came, whole)
    assert all(matches(SPEC[key], tensor) for key, tensor in came.items())
    assert sparse.encode(came, SPEC, None) == data
    changed = {key: int((whole[key] != 0).any(1).sum()) for key in ("table", "other")}
    assert len(data) == sparse.size_of_rows(SPEC, changed)
    assert sparse.least(SPEC) <= len(data) <= sparse.size(SPEC) == codec.size(SPEC) + 2 * 4


@pytest.mark.parametrize("name", CODECS)
def test_the_shorter_form_is_taken_table_by_table(name: str) -> None:
    codec, sparse = made(name), SparseCodec(made(name))
    least = len(sparse.encode(tensors(0), SPEC, None))
    assert least == sparse.least(SPEC) == 2 * 4 + codec.size({"dense": SPEC["dense"]})
    one = {"table": TableSpec((1, 3))}
    assert len(sparse.encode(tensors(1), SPEC, None)) == least + 1 + codec.size(one)
    # Of many rows a bit for each of the table is shorter than their numbers.
    many = {"table": TableSpec((20, 3)), "other": TableSpec((30, 2))}
    assert len(sparse.encode(tensors(20, 30), SPEC, None)) == least + 9 + 38 + codec.size(many)
    whole = len(sparse.encode(tensors(70, 300), SPEC, None))
    assert whole == sparse.size(SPEC)
    assert len(sparse.encode(tensors(70), SPEC, None)) == least + codec.size({"table": SPEC["table"]})


def test_rows_of_movielens_1m_travel_in_a_seventh_of_the_table() -> None:
    """500 negatives and a history of 29 items, 32 numbers each in 8 bits."""
    spec, sparse = {"items": TableSpec((3_706, 32))}, SparseCodec(made("int8"))
    assert sparse.size_of_rows(spec, {"items": 529}) == 4 + 464 + 4 + 529 * 32
    assert sparse.size(spec) == 4 + 4 + 3_706 * 32
    large = {"items": TableSpec((1_000_000, 32))}
    assert sparse.size_of_rows(large, {"items": 529}) == 4 + 3 * 529 + 4 + 529 * 32


def test_a_nan_is_not_hidden() -> None:
    for name in CODECS:
        bad = tensors(0)
        bad["table"][3, 1] = torch.nan
        sparse = SparseCodec(made(name))
        assert not sparse.decode(memoryview(sparse.encode(bad, SPEC, None)), SPEC)["table"].isfinite().all()


@pytest.mark.parametrize("spec", [{}, {"thin": TableSpec((3, 0))}, {"d": TensorSpec(())}])
@pytest.mark.parametrize("name", CODECS)
def test_tables_without_numbers(name: str, spec: Spec) -> None:
    sparse = SparseCodec(made(name))
    data = sparse.encode(zeros(spec), spec, None)
    assert sparse.least(spec) <= len(data) <= sparse.size(spec)
    assert same(sparse.decode(memoryview(data), spec), zeros(spec))


def test_nothing_that_was_given_is_changed_and_what_comes_back_is_owned() -> None:
    sparse, given = SparseCodec(made("int8")), tensors(9, 200)
    kept = {name: tensor.clone() for name, tensor in given.items()}
    data = bytearray(sparse.encode(given, SPEC, 3))
    assert same(given, kept)
    came = sparse.decode(memoryview(data), SPEC)
    copies = {name: tensor.clone() for name, tensor in came.items()}
    data[:] = bytes(len(data))
    assert same(came, copies)


# ---- what is no list ---------------------------------------------------------------------------------------------


ONE: Spec = {"t": TableSpec((300, 4))}
PLAIN = SparseCodec(made("float32"))


def listed(count: int, places: bytes, rows: int) -> bytes:
    return count.to_bytes(4, "little") + places + bytes(16 * rows)


def numbers(*rows: int) -> bytes:
    return b"".join(row.to_bytes(2, "little") for row in rows)


def bits(*rows: int) -> bytes:
    return np.packbits(np.isin(np.arange(304), rows)).tobytes()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\1\0",
        listed(0, b"", 1),
        listed(2, numbers(5, 5), 2),
        listed(2, numbers(6, 5), 2),
        listed(2, numbers(5, 300), 2),
        listed(2, numbers(5, 6), 1),
        listed(2, numbers(5, 6), 3),
        listed(3, numbers(5, 6), 3),
        listed(299, bits(*range(299)), 299),
        listed(301, numbers(*range(300)), 300),
        listed(2**32 - 1, b"", 0),
        listed(300, b"", 299),
        listed(40, bits(*range(39)), 40),
        listed(40, bits(*range(41)), 40),
        listed(40, bits(*range(39), 301), 40),
        listed(40, numbers(*range(40)), 40),
    ],
    ids=str,
)
def test_what_is_no_list_is_refused(data: bytes) -> None:
    """Rows that do not rise or do not exist, lists that are cut or too long, or not in the form for their length."""
    with pytest.raises(PacketError) as caught:
        PLAIN.decode(memoryview(data), ONE)
    assert caught.value.reason == "malformed"


def test_and_what_is_one_is_read() -> None:
    for data, rows in (
        (listed(2, numbers(5, 299), 2), [5, 299]),
        (listed(40, bits(*range(9, 49)), 40), [*range(9, 49)]),
    ):
        filled = data[: -16 * len(rows)] + np.ones(4 * len(rows), dtype="<f4").tobytes()
        came = PLAIN.decode(memoryview(filled), ONE)["t"]
        assert torch.nonzero(came.any(1)).flatten().tolist() == rows


@settings(max_examples=400, deadline=None)
@given(data=st.data())
def test_any_bytes_are_a_list_or_refused_by_name(data: st.DataObject) -> None:
    """A hostile payload whose checksum is good, in a packet of a length that may be."""
    name = data.draw(st.sampled_from(CODECS))
    sparse = SparseCodec(made(name))
    honest = bytearray(
        sparse.encode(tensors(data.draw(st.integers(0, 70)), data.draw(st.integers(0, 300))), SPEC, None)
    )
    for _ in range(data.draw(st.integers(0, 3))):
        honest[data.draw(st.integers(0, len(honest) - 1))] = data.draw(st.integers(0, 255))
    bent = bytes(honest) if data.draw(st.booleans()) else bytes(honest[: data.draw(st.integers(0, len(honest)))])
    try:
        came = sparse.decode(memoryview(bent), SPEC)
    except PacketError:
        return
    assert all(matches(SPEC[key], tensor) for key, tensor in came.items())


def test_a_packet_of_rows_may_be_short_and_not_longer_than_announced() -> None:
    form = PacketFormat(Kind.UPDATE, SPEC, SparseCodec(made("int8")), 2)
    short, long = (form.encode(0, 1, tensors(rows, 4 * rows), [1.0, 2.0], seed=None) for rows in (0, 70))
    assert (len(short), form.head) == (form.least(), form.size() - form.codec.size(SPEC))
    assert len(short) < len(long) < form.size()
    for packet in (short, long):
        assert form.decode(packet, phase=0, round=1).scalars == (1.0, 2.0)
        for cut, reason in ((packet[:-1], "malformed"), (packet + bytes(form.size()), "oversized")):
            with pytest.raises(PacketError) as caught:
                form.decode(cut)
            assert caught.value.reason == reason


def test_both_sides_have_to_agree_on_the_form_and_on_the_codec_of_its_values() -> None:
    forms = [made("int8"), made("int8/row"), SparseCodec(made("int8")), SparseCodec(made("int8/row"))]
    assert len({PacketFormat(Kind.UPDATE, SPEC, codec, 0).digest() for codec in forms}) == len(forms)
    whole = PacketFormat(Kind.UPDATE, SPEC, forms[0], 0).encode(0, 0, tensors(70, 300))
    with pytest.raises(PacketError) as caught:
        PacketFormat(Kind.UPDATE, SPEC, forms[2], 0).decode(whole)
    assert caught.value.reason == "wrong_spec"
