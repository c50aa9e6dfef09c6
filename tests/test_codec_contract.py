"""The contract of codecs, over every member of the family by itself."""

from __future__ import annotations

import pytest
import torch

from fedrec.codecs.base import Codec
from fedrec.codecs.base_table import BaseTableCodec
from fedrec.codecs.rounding import RoundingCodec
from fedrec.config.describe import load_member
from fedrec.core.errors import PacketError
from fedrec.core.registry import codecs
from fedrec.core.tensors import Spec, TableSpec, TensorSpec, spec_digest
from fedrec.testing.codec import SHAPES, CodecContract, draw, there_and_back
from fedrec.wire.packet import Kind, PacketFormat

MEMBERS = codecs.names()


def made(name: str) -> Codec:
    codec: Codec = codecs.get(name)(load_member("codec", name))
    return codec


class TestEveryCodec(CodecContract):
    @pytest.fixture(params=MEMBERS)
    def codec(self, request: pytest.FixtureRequest) -> Codec:
        return made(request.param)


@pytest.mark.parametrize("name", MEMBERS)
def test_the_codec_is_part_of_the_specification(name: str) -> None:
    digests = {PacketFormat(Kind.MODEL, SHAPES, made(other), 0).digest() for other in MEMBERS}
    assert len(digests) == len(MEMBERS)
    assert PacketFormat(Kind.MODEL, SHAPES, made(name), 0).digest() in digests


@pytest.mark.parametrize("name", ["float16", "int8", "int4"])
def test_and_so_are_its_settings(name: str) -> None:
    """Two sides with other settings would read each other's bytes as other numbers, where the sizes are the same."""
    spec: Spec = {"base": TableSpec((1, 4))}
    for make in (lambda codec: codec, lambda codec: BaseTableCodec(["base"], codec, made("float32"))):
        by_tensor, by_row = (
            PacketFormat(Kind.MODEL, spec, make(codecs.get(name)(load_member("codec", name, scale=scale))), 0)
            for scale in ("tensor", "row")
        )
        packet = by_tensor.encode(0, 0, draw(spec))
        assert len(packet) == by_row.size()
        with pytest.raises(PacketError) as caught:
            by_row.decode(packet)
        assert caught.value.reason == "wrong_spec"


def test_a_codec_without_settings_is_named_by_its_name_alone() -> None:
    """Packets that sites and checkpoints have kept are of such a digest."""
    assert PacketFormat(Kind.MODEL, SHAPES, made("float32"), 0).digest() == spec_digest(SHAPES, "float32")


@pytest.mark.parametrize("name", ["float16", "int8"])
def test_a_scale_for_each_row_of_a_table_of_any_shape(name: str) -> None:
    """Also of a table without rows, or whose rows are empty; a small row beside a large one keeps its numbers."""
    codec: Codec = codecs.get(name)(load_member("codec", name, scale="row"))
    for shape in ((0, 4), (3, 0), (0, 0), (50, 4)):
        spec: Spec = {"t": TableSpec(shape)}
        tensors = {"t": draw(spec)["t"] * torch.logspace(-20, 20, shape[0])[:, None]}
        decoded = there_and_back(codec, tensors, spec)["t"]
        assert decoded.shape == shape
        if decoded.numel():
            assert ((decoded - tensors["t"]).abs().amax(1) <= tensors["t"].abs().amax(1) / 64).all()


def test_float16_keeps_the_mean_of_numbers_below_its_smallest_step() -> None:
    """Beside a number of 1: three tenths of a step of 2**-24 are a whole step in three draws of ten."""
    spec: Spec = {"t": TensorSpec((10_001,))}
    tensors = {"t": torch.cat([torch.ones(1), torch.full((10_000,), 0.3 * 2.0**-24)])}
    small = there_and_back(made("float16"), tensors, spec)["t"][1:] / 2.0**-24
    assert set(small.tolist()) == {0.0, 1.0}
    assert float(small.mean()) == pytest.approx(0.3, abs=0.025)


@pytest.mark.parametrize("bad", [torch.inf, -torch.inf, torch.nan])
@pytest.mark.parametrize("name", ["float16", "int8", "int4"])
def test_with_steady_scales_what_is_not_finite_does_not_become_so(name: str, bad: float) -> None:
    codec: Codec = codecs.get(name)(load_member("codec", name)).steady()
    spec: Spec = {"t": TableSpec((3, 2))}
    table = torch.tensor([[bad, 1.0], [5.0, 2.0], [0.0, 3.0]])
    found = codec.decode(memoryview(codec.encode({"t": table}, spec, None)), spec)["t"]
    assert not found.isfinite().all()


@pytest.mark.parametrize("scale", ["tensor", "row"])
@pytest.mark.parametrize("name", ["float16", "int8", "int4"])
def test_with_steady_scales_what_does_not_change_stays_as_it_was_rounded(name: str, scale: str) -> None:
    """Also where the largest number of a tensor becomes smaller, or somewhat larger; of 0.0, 1.0 and 0.5 alike."""
    codec: Codec = codecs.get(name)(load_member("codec", name, scale=scale)).steady()
    spec: Spec = {"t": TableSpec((52, 6))}
    first = torch.cat([draw({"t": TableSpec((50, 6))})["t"].clamp(-3.9, 3.9), torch.zeros(2, 6)])
    first[7, 3], first[9] = 3.9, torch.tensor([1.0, 0.5, 0.25, 0.0, -1.0, -0.5])

    def settled(table: torch.Tensor) -> torch.Tensor:
        data = codec.encode({"t": table}, spec, None)
        assert len(data) == codec.size(spec)
        return codec.decode(memoryview(data), spec)["t"]

    held = settled(first)
    assert torch.equal(settled(held), held)
    for largest in (2.2, 3.99):
        moved = held.clone()
        moved[7, 3] = largest
        again = settled(moved)
        assert torch.equal(again[:7], held[:7])
        assert torch.equal(again[8:], held[8:])
        assert (again - moved).abs().max() <= 4 * codec.coarsest


@pytest.mark.parametrize("count", [1, 2, 7])
def test_two_numbers_of_int4_are_in_a_byte(count: int) -> None:
    """Every step there is comes back, also where the last byte is half full."""
    steps = torch.arange(-7.0, 8.0).repeat(count)[: 15 * count] / 7 * 3
    spec: Spec = {"t": TableSpec((count, 15))}
    codec = made("int4")
    data = codec.encode({"t": steps.reshape(count, 15)}, spec, None)
    assert len(data) == codec.size(spec) == 4 * count + (15 * count + 1) // 2
    torch.testing.assert_close(codec.decode(memoryview(data), spec)["t"], steps.reshape(count, 15))


@pytest.mark.parametrize("name", MEMBERS)
def test_whole_numbers_and_nothing_travel_exactly_in_every_codec(name: str) -> None:
    """Beside a tensor of zeros alone, whose scale is zero."""
    spec: Spec = {"codes": TensorSpec((2, 3), "int32"), "t": TableSpec((2, 2)), "u": TensorSpec((3,), "uint8")}
    tensors = {
        "codes": torch.arange(6, dtype=torch.int32).reshape(2, 3) * 10**8,
        "t": torch.zeros(2, 2),
        "u": torch.tensor([0, 1, 255], dtype=torch.uint8),
    }
    decoded = there_and_back(made(name), tensors, spec)
    assert all(torch.equal(decoded[key], tensor) for key, tensor in tensors.items())


@pytest.mark.parametrize("name", [name for name in MEMBERS if not made(name).exact])
def test_no_number_is_off_by_more_than_the_coarsest_step_and_some_nearly_are(name: str) -> None:
    codec = made(name)
    assert isinstance(codec, RoundingCodec)
    spec: Spec = {"t": TensorSpec((10_001,))}
    numbers = torch.linspace(-1, 1, 10_001)
    off = (there_and_back(codec, {"t": numbers}, spec)["t"] - numbers).abs().max()
    assert codec.coarsest / 4 < float(off) <= codec.coarsest * (1 + 1e-6)
