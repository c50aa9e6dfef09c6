"""A packet comes back as it was sent, or it is refused by name: no other error, whatever the bytes."""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fedrec.codecs.float32 import Float32Codec, Float32Config
from fedrec.core.errors import PacketError
from fedrec.core.tensors import DTYPES, Spec, Tensors, TensorSpec, zeros
from fedrec.wire.packet import Kind, PacketFormat, to_array

CODEC = Float32Codec(Float32Config("float32"))
SPEC: Spec = {"a": TensorSpec((2, 3)), "b": TensorSpec((3,), "uint8")}
FORMAT = PacketFormat(Kind.UPDATE, SPEC, CODEC, 2)
TENSORS: Tensors = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.tensor([1, 2, 255], dtype=torch.uint8)}
PACKET = FORMAT.encode(1, 7, TENSORS, [0.5, -3.0])

SPECS = st.dictionaries(
    st.text(max_size=6),
    st.builds(TensorSpec, st.lists(st.integers(0, 4), max_size=3).map(tuple), st.sampled_from(sorted(DTYPES))),
    max_size=4,
)
SCALARS = st.lists(st.floats(allow_nan=False), max_size=5)


def bits(tensor: Tensor) -> bytes:
    return tensor.contiguous().numpy().tobytes()


def any_tensor(entry: TensorSpec, seed: int) -> Tensor:
    """Any bits of that type, NaN and infinity among them."""
    raw = np.random.default_rng(seed).integers(0, 256, entry.nbytes, dtype=np.uint8).tobytes()
    if not raw:
        return entry.zeros()
    return torch.frombuffer(bytearray(raw), dtype=DTYPES[entry.dtype]).reshape(entry.shape)


def refusal(data: bytes, fmt: PacketFormat = FORMAT, **expected: Any) -> str:
    with pytest.raises(PacketError) as caught:
        fmt.decode(data, **(expected or {"phase": 1, "round": 7}))
    return caught.value.reason


@settings(max_examples=80, deadline=None)
@given(
    spec=SPECS,
    scalars=SCALARS,
    kind=st.sampled_from(Kind),
    phase=st.integers(0, 255),
    round=st.integers(0, 2**32 - 1),
    seed=st.integers(0, 99),
)
def test_there_and_back(spec: Spec, scalars: list[float], kind: Kind, phase: int, round: int, seed: int) -> None:
    fmt = PacketFormat(kind, spec, CODEC, len(scalars))
    tensors = {name: any_tensor(entry, seed) for name, entry in spec.items()}
    data = fmt.encode(phase, round, tensors, scalars)
    assert len(data) == fmt.size()
    packet = fmt.decode(to_array(data).data, phase=phase, round=round)
    assert (packet.kind, packet.phase, packet.round, list(packet.scalars)) == (kind, phase, round, scalars)
    assert packet.tensors.keys() == spec.keys()
    for name, tensor in packet.tensors.items():
        assert tuple(tensor.shape) == spec[name].shape
        assert tensor.dtype == DTYPES[spec[name].dtype]
        assert bits(tensor) == bits(tensors[name])


def test_the_decoded_tensors_are_owned_and_writable() -> None:
    data = bytearray(PACKET)
    tensors = FORMAT.decode(memoryview(data).toreadonly()).tensors
    data[:] = bytes(len(data))
    tensors["a"] += 1
    assert torch.equal(tensors["a"], TENSORS["a"] + 1)
    assert torch.equal(FORMAT.decode(PACKET).tensors["a"], TENSORS["a"])


def test_views_are_encoded_as_they_read() -> None:
    transposed = TENSORS["a"].T.contiguous().T
    assert not transposed.is_contiguous()
    assert FORMAT.encode(1, 7, {**TENSORS, "a": transposed}, [0.5, -3.0]) == PACKET


def test_the_layout_is_what_the_documentation_says() -> None:
    assert PACKET[:12] == b"FRPK" + b"\2\0" + bytes([3, 1]) + b"\7\0\0\0"
    assert PACKET[12:20] == FORMAT.digest()
    assert PACKET[20:32] == b"\2\0" + b"\0\0" + (6 * 4 + 3).to_bytes(8, "little")
    assert PACKET[36:44] == np.float64(0.5).tobytes()
    assert PACKET[52:76] == TENSORS["a"].numpy().tobytes(), "tensors in the order of their sorted names"
    assert to_array(PACKET).tobytes() == PACKET


def test_every_truncation_is_malformed() -> None:
    for length in range(len(PACKET)):
        assert refusal(PACKET[:length]) == "malformed"
    assert refusal(PACKET + b"\0") == "oversized"


def test_every_flipped_bit_is_refused() -> None:
    reasons = set()
    for position in range(8 * len(PACKET)):
        data = bytearray(PACKET)
        data[position // 8] ^= 1 << position % 8
        reason = refusal(bytes(data))
        reasons.add(reason)
        byte = position // 8
        if 4 <= byte < 6:
            assert reason == "other_version"
        elif byte == 6 or 12 <= byte < 22:
            assert reason == "wrong_spec"
        else:
            assert reason == "malformed", "also of phase and round, whatever was expected"
            with pytest.raises(PacketError):
                FORMAT.decode(bytes(data))
    assert reasons == {"malformed", "other_version", "wrong_spec"}


def test_a_packet_of_the_version_before_is_refused_by_name() -> None:
    data = PACKET[:4] + b"\1\0" + PACKET[6:32] + zlib.crc32(PACKET[36:]).to_bytes(4, "little") + PACKET[36:]
    with pytest.raises(PacketError, match=r"version 1 came, this fedrec speaks version 2: install the same fedrec"):
        FORMAT.decode(data, phase=1, round=7)


OTHERS = {
    "kind": FORMAT._replace(kind=Kind.MODEL),
    "scalars": FORMAT._replace(scalars=3),
    "shape": FORMAT._replace(spec={**SPEC, "a": TensorSpec((3, 2))}),
    "dtype": FORMAT._replace(spec={**SPEC, "a": TensorSpec((2, 3), "int32")}),
    "name": FORMAT._replace(spec={"c": SPEC["a"], "b": SPEC["b"]}),
    "one more": FORMAT._replace(spec={**SPEC, "z": TensorSpec((0,))}),
    "one less": FORMAT._replace(spec={"a": SPEC["a"]}),
}


@pytest.mark.parametrize("other", OTHERS)
def test_a_packet_of_another_format_is_told_from_a_damaged_one(other: str) -> None:
    assert refusal(PACKET, OTHERS[other]) == "wrong_spec"


def test_another_codec_is_another_specification() -> None:
    class OtherConfig(Float32Config):
        pass

    renamed = OtherConfig("float16")  # type: ignore[arg-type]
    assert refusal(PACKET, FORMAT._replace(codec=Float32Codec(renamed))) == "wrong_spec"


@pytest.mark.parametrize("expected", [{"round": 8}, {"phase": 0}, {"round": 6, "phase": 1}, {"round": 7, "phase": 2}])
def test_a_late_or_replayed_packet_is_of_the_wrong_round(expected: dict[str, int]) -> None:
    assert refusal(PACKET, **expected) == "wrong_round"
    assert FORMAT.decode(PACKET).round == 7


@settings(max_examples=120, deadline=None)
@given(data=st.binary(max_size=200), start=st.sampled_from([0, 6, 20, 36, 60]))
def test_random_bytes_are_refused(data: bytes, start: int) -> None:
    for junk in (data, PACKET[:start] + data):
        if junk != PACKET:
            refusal(junk)


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        ({"a": TENSORS["a"]}, "has tensors"),
        ({**TENSORS, "c": torch.zeros(1)}, "has tensors"),
        ({**TENSORS, "a": TENSORS["a"].double()}, r"'a' is \[2, 3\] torch.float64, expected \[2, 3\] float32"),
        ({**TENSORS, "a": TENSORS["a"].T}, r"'a' is \[3, 2\]"),
    ],
)
def test_what_is_not_of_the_format_is_never_sent(tensors: Tensors, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        FORMAT.encode(0, 0, tensors, [0.0, 0.0])
    with pytest.raises(ValueError, match="has 2 scalars, not 1"):
        FORMAT.encode(0, 0, TENSORS, [0.0])


def test_an_empty_specification_is_a_header_and_scalars() -> None:
    fmt = PacketFormat(Kind.METRICS, {}, CODEC, 1)
    assert fmt.size() == 36 + 8
    assert fmt.decode(fmt.encode(0, 0, zeros({}), [2.5])).scalars == (2.5,)
