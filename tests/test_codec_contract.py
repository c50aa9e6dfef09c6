"""The contract of codecs, over every member of the family by itself."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedrec.codecs.base import Codec
from fedrec.codecs.base_table import BaseTableCodec
from fedrec.config.describe import load_member
from fedrec.core.errors import PacketError
from fedrec.core.registry import codecs
from fedrec.core.rng import generator
from fedrec.core.tensors import Spec, TableSpec, Tensors, TensorSpec, matches, spec_digest, spec_of, zeros
from fedrec.wire.packet import Kind, PacketFormat

MEMBERS = codecs.names()
SHAPES: Spec = {
    "table": TensorSpec((50, 4)),
    "dense": TensorSpec((3, 2, 2)),
    "scalar": TensorSpec(()),
    "empty": TensorSpec((0, 4)),
}


def made(name: str) -> Codec:
    codec: Codec = codecs.get(name)(load_member("codec", name))
    return codec


def draw(spec: Spec, seed: int = 0, scale: float = 1.0) -> Tensors:
    rng = generator(seed, "tensors")
    return {name: torch.randn(entry.shape, generator=rng) * scale for name, entry in spec.items()}


def there_and_back(codec: Codec, tensors: Tensors, spec: Spec, seed: int | None = 0) -> Tensors:
    data = codec.encode(tensors, spec, seed)
    assert isinstance(data, bytes)
    assert len(data) == codec.size(spec), "the size is known before anything is encoded"
    return codec.decode(memoryview(data), spec)


@pytest.mark.parametrize("name", MEMBERS)
@pytest.mark.parametrize("spec", [SHAPES, {}, {"empty": TensorSpec((0,))}, {"a": TensorSpec((1,))}], ids=str)
def test_shapes_and_types_come_back(name: str, spec: Spec) -> None:
    tensors = draw(spec)
    decoded = there_and_back(made(name), tensors, spec)
    assert decoded.keys() == tensors.keys()
    for key, tensor in decoded.items():
        assert matches(spec[key], tensor)
        assert tensor.isfinite().all()


@pytest.mark.parametrize("name", MEMBERS)
def test_never_more_than_the_plain_numbers_and_a_little(name: str) -> None:
    assert made(name).size(SHAPES) <= sum(entry.nbytes for entry in SHAPES.values()) + 8 * len(SHAPES)


@pytest.mark.parametrize("name", MEMBERS)
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), scale=st.sampled_from([1e-4, 1.0, 100.0]), rows=st.integers(1, 40))
def test_the_error_is_small_beside_the_largest_number(name: str, seed: int, scale: float, rows: int) -> None:
    spec = {"t": TensorSpec((rows, 3))}
    tensors = draw(spec, seed, scale)
    decoded = there_and_back(made(name), tensors, spec, seed)
    assert (decoded["t"] - tensors["t"]).abs().max() <= tensors["t"].abs().max() / 64


@pytest.mark.parametrize("name", MEMBERS)
def test_exact_or_unbiased(name: str) -> None:
    """Over many seeds the mean of what is decoded is what was sent: an average over users keeps no error."""
    codec, spec = made(name), {"t": TensorSpec((40,))}
    tensors = draw(spec, 3)
    runs = torch.stack([there_and_back(codec, tensors, spec, seed)["t"] for seed in range(300)]).double()
    spread = runs.std(0) / np.sqrt(len(runs))
    assert ((runs.mean(0) - tensors["t"]).abs() <= 5 * spread + 1e-3 * tensors["t"].abs() + 1e-9).all()


@pytest.mark.parametrize("name", MEMBERS)
@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 10**6), scale=st.sampled_from([1e-30, 1e-4, 1.0, 7.0, 1e30]), rows=st.integers(1, 40))
def test_without_a_seed_what_was_rounded_once_stays_as_it_is(name: str, seed: int, scale: float, rows: int) -> None:
    codec, spec = made(name), {"t": TableSpec((rows, 3))}
    data = codec.encode(draw(spec, seed, scale), spec, None)
    assert codec.encode(codec.decode(memoryview(data), spec), spec, None) == data


@pytest.mark.parametrize("name", MEMBERS)
def test_without_a_seed_the_error_is_no_larger_than_with_any(name: str) -> None:
    codec, tensors = made(name), draw(SHAPES)
    nearest = there_and_back(codec, tensors, SHAPES, None)
    for seed in range(5):
        other = there_and_back(codec, tensors, SHAPES, seed)
        for key in ("table", "dense", "scalar"):
            assert ((nearest[key] - tensors[key]).abs() <= (other[key] - tensors[key]).abs() + 1e-6).all()


@pytest.mark.parametrize("name", MEMBERS)
def test_the_largest_number_never_turns_into_another(name: str) -> None:
    """Also for the draws next to 1, of which there are some among millions."""
    spec = {"t": TensorSpec((2**22,))}
    decoded = there_and_back(made(name), {"t": torch.full((2**22,), 0.1)}, spec)["t"]
    assert (decoded - 0.1).abs().max() < 2e-4


@pytest.mark.parametrize("name", MEMBERS)
def test_a_seed_decides_all(name: str) -> None:
    tensors = draw(SHAPES)
    before = torch.get_rng_state()
    assert made(name).encode(tensors, SHAPES, 5) == made(name).encode(tensors, SHAPES, 5)
    assert torch.equal(torch.get_rng_state(), before), "the global generator was used"


@pytest.mark.parametrize("name", MEMBERS)
def test_zero_stays_exactly_zero(name: str) -> None:
    """Rows that nobody touched must not move."""
    decoded = there_and_back(made(name), zeros(SHAPES), SHAPES, seed=1)
    assert not any(tensor.any() for tensor in decoded.values())


@pytest.mark.parametrize("name", MEMBERS)
def test_the_order_of_the_names_changes_nothing(name: str) -> None:
    tensors = draw(SHAPES)
    turned = {key: tensors[key] for key in reversed(tensors)}
    assert made(name).encode(turned, dict(reversed(SHAPES.items())), 0) == made(name).encode(tensors, SHAPES, 0)


@pytest.mark.parametrize("name", MEMBERS)
def test_nothing_that_was_given_is_changed_and_what_comes_back_is_owned(name: str) -> None:
    codec, tensors = made(name), draw(SHAPES)
    kept = {key: tensor.clone() for key, tensor in tensors.items()}
    data = bytearray(codec.encode(tensors, SHAPES, 0))
    decoded = codec.decode(memoryview(data), SHAPES)
    copy = {key: tensor.clone() for key, tensor in decoded.items()}
    data[:] = bytes(len(data))
    for key in SHAPES:
        assert torch.equal(tensors[key], kept[key])
        assert torch.equal(decoded[key], copy[key])
        decoded[key] += 1


@pytest.mark.parametrize("name", MEMBERS)
def test_a_nan_is_not_hidden(name: str) -> None:
    """What a diverged client sends must be seen by the server's check, whatever the codec."""
    spec = {"t": TensorSpec((4,))}
    for bad in (float("nan"), float("inf")):
        tensors = {"t": torch.tensor([1.0, bad, 0.0, 2.0])}
        assert not there_and_back(made(name), tensors, spec)["t"].isfinite().all()


@pytest.mark.parametrize("name", MEMBERS)
@settings(max_examples=50, deadline=None)
@given(data=st.data())
def test_any_bytes_of_the_right_length_are_some_tensors(name: str, data: st.DataObject) -> None:
    """A hostile payload with a good checksum gives numbers, perhaps not finite ones, and no error."""
    codec, spec = made(name), {"t": TensorSpec((5, 2)), "u": TensorSpec((3,))}
    size = codec.size(spec)
    decoded = codec.decode(memoryview(data.draw(st.binary(min_size=size, max_size=size))), spec)
    assert {key: entry.shape for key, entry in spec_of(decoded).items()} == {"t": (5, 2), "u": (3,)}


@pytest.mark.parametrize("name", MEMBERS)
def test_the_codec_is_part_of_the_specification(name: str) -> None:
    digests = {PacketFormat(Kind.MODEL, SHAPES, made(other), 0).digest() for other in MEMBERS}
    assert len(digests) == len(MEMBERS)
    assert PacketFormat(Kind.MODEL, SHAPES, made(name), 0).digest() in digests


@pytest.mark.parametrize("name", ["float16", "int8"])
def test_and_so_are_its_settings(name: str) -> None:
    """Two sides with other settings would read each other's bytes as other numbers, where the sizes are the same."""
    spec: Spec = {"base": TableSpec((1, 4))}
    for make in (lambda codec: codec, lambda codec: BaseTableCodec("base", codec, made("float32"))):
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
