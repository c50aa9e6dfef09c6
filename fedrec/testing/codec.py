"""The contract of codecs."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedrec.codecs.base import Codec
from fedrec.codecs.rounding import RoundingCodec
from fedrec.core.rng import generator
from fedrec.core.tensors import Spec, TableSpec, Tensors, TensorSpec, matches, spec_of, zeros

SHAPES: Spec = {
    "table": TensorSpec((50, 4)),
    "dense": TensorSpec((3, 2, 2)),
    "scalar": TensorSpec(()),
    "empty": TensorSpec((0, 4)),
}


def draw(spec: Spec, seed: int = 0, scale: float = 1.0) -> Tensors:
    """Normal numbers for a specification."""
    rng = generator(seed, "tensors")
    return {name: torch.randn(entry.shape, generator=rng) * scale for name, entry in spec.items()}


def there_and_back(codec: Codec, tensors: Tensors, spec: Spec, seed: int | None = 0) -> Tensors:
    """What comes back of tensors that are sent."""
    data = codec.encode(tensors, spec, seed)
    assert isinstance(data, bytes)
    assert len(data) == codec.size(spec), "the size is known before anything is encoded"
    return codec.decode(memoryview(data), spec)


class CodecContract:
    """What packets take for granted of a codec."""

    @pytest.fixture
    def codec(self) -> Codec:
        """The member that is held to the contract."""
        raise NotImplementedError("override this fixture: it gives the member")

    @pytest.mark.parametrize("spec", [SHAPES, {}, {"empty": TensorSpec((0,))}, {"a": TensorSpec((1,))}], ids=str)
    def test_shapes_and_types_come_back(self, codec: Codec, spec: Spec) -> None:
        tensors = draw(spec)
        decoded = there_and_back(codec, tensors, spec)
        assert decoded.keys() == tensors.keys()
        for key, tensor in decoded.items():
            assert matches(spec[key], tensor)
            assert tensor.isfinite().all()

    def test_never_more_than_the_plain_numbers_and_a_little(self, codec: Codec) -> None:
        assert codec.size(SHAPES) <= sum(entry.nbytes for entry in SHAPES.values()) + 8 * len(SHAPES)

    @settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(seed=st.integers(0, 10**6), scale=st.sampled_from([1e-4, 1.0, 100.0]), rows=st.integers(1, 40))
    def test_the_error_is_small_beside_the_largest_number(
        self, codec: Codec, seed: int, scale: float, rows: int
    ) -> None:
        spec = {"t": TensorSpec((rows, 3))}
        tensors = draw(spec, seed, scale)
        decoded = there_and_back(codec, tensors, spec, seed)
        step = codec.coarsest if isinstance(codec, RoundingCodec) else 0.0
        assert (decoded["t"] - tensors["t"]).abs().max() <= tensors["t"].abs().max() * step * (1 + 1e-5)

    def test_exact_or_unbiased(self, codec: Codec) -> None:
        """Over many seeds the mean of what is decoded is what was sent: an average over users keeps no error."""
        spec = {"t": TensorSpec((40,))}
        tensors = draw(spec, 3)
        runs = torch.stack([there_and_back(codec, tensors, spec, seed)["t"] for seed in range(300)]).double()
        spread = runs.std(0) / np.sqrt(len(runs))
        assert ((runs.mean(0) - tensors["t"]).abs() <= 5 * spread + 1e-3 * tensors["t"].abs() + 1e-9).all()

    @settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(seed=st.integers(0, 10**6), scale=st.sampled_from([1e-30, 1e-4, 1.0, 7.0, 1e30]), rows=st.integers(1, 40))
    def test_without_a_seed_what_was_rounded_once_stays_as_it_is(
        self, codec: Codec, seed: int, scale: float, rows: int
    ) -> None:
        spec = {"t": TableSpec((rows, 3))}
        data = codec.encode(draw(spec, seed, scale), spec, None)
        assert codec.encode(codec.decode(memoryview(data), spec), spec, None) == data

    def test_without_a_seed_the_error_is_no_larger_than_with_any(self, codec: Codec) -> None:
        tensors = draw(SHAPES)
        nearest = there_and_back(codec, tensors, SHAPES, None)
        for seed in range(5):
            other = there_and_back(codec, tensors, SHAPES, seed)
            for key in ("table", "dense", "scalar"):
                assert ((nearest[key] - tensors[key]).abs() <= (other[key] - tensors[key]).abs() + 1e-6).all()

    def test_the_largest_number_never_turns_into_another(self, codec: Codec) -> None:
        """Also for the draws next to 1, of which there are some among millions."""
        spec = {"t": TensorSpec((2**22,))}
        decoded = there_and_back(codec, {"t": torch.full((2**22,), 0.1)}, spec)["t"]
        assert (decoded - 0.1).abs().max() < 2e-4

    def test_a_seed_decides_all(self, codec: Codec) -> None:
        tensors = draw(SHAPES)
        before = torch.get_rng_state()
        assert codec.encode(tensors, SHAPES, 5) == codec.encode(tensors, SHAPES, 5)
        assert torch.equal(torch.get_rng_state(), before), "the global generator was used"

    def test_zero_stays_exactly_zero(self, codec: Codec) -> None:
        """Rows that nobody touched must not move."""
        decoded = there_and_back(codec, zeros(SHAPES), SHAPES, seed=1)
        assert not any(tensor.any() for tensor in decoded.values())

    def test_the_order_of_the_names_changes_nothing(self, codec: Codec) -> None:
        tensors = draw(SHAPES)
        turned = {key: tensors[key] for key in reversed(tensors)}
        assert codec.encode(turned, {key: SHAPES[key] for key in sorted(SHAPES, reverse=True)}, 0) == codec.encode(
            tensors, SHAPES, 0
        )

    def test_nothing_that_was_given_is_changed_and_what_comes_back_is_owned(self, codec: Codec) -> None:
        tensors = draw(SHAPES)
        kept = {key: tensor.clone() for key, tensor in tensors.items()}
        data = bytearray(codec.encode(tensors, SHAPES, 0))
        decoded = codec.decode(memoryview(data), SHAPES)
        copy = {key: tensor.clone() for key, tensor in decoded.items()}
        data[:] = bytes(len(data))
        for key in SHAPES:
            assert torch.equal(tensors[key], kept[key])
            assert torch.equal(decoded[key], copy[key])
            decoded[key] += 1

    def test_a_nan_is_not_hidden(self, codec: Codec) -> None:
        """What a diverged client sends must be seen by the server's check, whatever the codec."""
        spec = {"t": TensorSpec((4,))}
        for bad in (float("nan"), float("inf")):
            tensors = {"t": torch.tensor([1.0, bad, 0.0, 2.0])}
            assert not there_and_back(codec, tensors, spec)["t"].isfinite().all()

    @settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(data=st.data())
    def test_any_bytes_of_the_right_length_are_some_tensors(self, codec: Codec, data: st.DataObject) -> None:
        """A hostile payload with a good checksum gives numbers, perhaps not finite ones, and no error."""
        spec = {"t": TensorSpec((5, 2)), "u": TensorSpec((3,))}
        size = codec.size(spec)
        decoded = codec.decode(memoryview(data.draw(st.binary(min_size=size, max_size=size))), spec)
        assert {key: entry.shape for key, entry in spec_of(decoded).items()} == {"t": (5, 2), "u": (3,)}
