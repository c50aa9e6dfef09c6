"""Specifications and digests: what is different has another name."""

from __future__ import annotations

import pytest
import torch

from fedrec.core.tensors import (
    DTYPES,
    Spec,
    TableSpec,
    TensorSpec,
    content_digest,
    matches,
    spec_digest,
    spec_of,
    zeros,
)

SPEC: Spec = {"a": TableSpec((3, 2)), "b": TensorSpec((), "int64"), "c": TensorSpec((0, 4), "uint8")}


@pytest.mark.parametrize("dtype", DTYPES)
def test_sizes(dtype: str) -> None:
    spec = TensorSpec((3, 2), dtype)
    assert spec.size == 6
    assert spec.nbytes == 6 * DTYPES[dtype].itemsize == spec.zeros().numpy().nbytes
    assert tuple(spec.zeros(5, 4).shape) == (5, 4, 3, 2)
    assert spec.zeros(5).dtype == DTYPES[dtype]
    assert TensorSpec((), dtype).size == 1
    assert TensorSpec((0, 7), dtype).nbytes == 0
    assert TableSpec((3, 2), dtype).rows == 3


def test_zeros_fit_their_specification_and_give_it_back() -> None:
    made = zeros(SPEC)
    assert all(matches(SPEC[name], tensor) and not tensor.any() for name, tensor in made.items())
    assert spec_digest(spec_of(made)) == spec_digest(SPEC)


def test_a_tensor_that_is_nearly_right_does_not_match() -> None:
    spec = TensorSpec((2, 3))
    assert matches(spec, torch.zeros(2, 3))
    for other in (torch.zeros(3, 2), torch.zeros(6), torch.zeros(1, 2, 3), torch.zeros(2, 3).double()):
        assert not matches(spec, other)


def test_the_digest_of_a_specification() -> None:
    assert spec_digest(SPEC) == spec_digest(dict(reversed(SPEC.items())))
    assert spec_digest({"a": TableSpec((2,))}) == spec_digest({"a": TensorSpec((2,))}), "bytes are the same"
    different: list[tuple[Spec, tuple[str, ...]]] = [
        (SPEC, ()),
        (SPEC, ("float16",)),
        (SPEC, ("float", "16")),
        ({}, ()),
        ({**SPEC, "a": TensorSpec((2, 3))}, ()),
        ({**SPEC, "a": TensorSpec((6,))}, ()),
        ({**SPEC, "a": TensorSpec((3, 2), "float64")}, ()),
        ({"A": SPEC["a"], "b": SPEC["b"], "c": SPEC["c"]}, ()),
        ({"a": SPEC["a"], "b": SPEC["b"]}, ()),
    ]
    digests = {spec_digest(spec, *context) for spec, context in different}
    assert len(digests) == len(different)
    assert {len(digest) for digest in digests} == {8}
    # It is on the wire: a change makes every client refuse every server of before.
    assert spec_digest({"a": TensorSpec((3, 2))}, "float32").hex() == "31a1cb49cd25ef9e"


def test_the_digest_of_a_content() -> None:
    content = {"x": torch.tensor([1.0, 2.0]), "y": torch.tensor([[1, 2]])}
    first = content_digest(content)
    assert len(first) == 32
    assert content_digest(dict(reversed(content.items()))) == first
    assert content_digest({"x": torch.tensor([1.0, 9.0, 2.0])[::2], "y": content["y"]}) == first, (
        "a view reads the same"
    )
    assert (
        content_digest({name: tensor.clone().requires_grad_(name == "x") for name, tensor in content.items()}) == first
    )
    others = [
        {**content, "x": torch.tensor([1.0, 2.0000002])},
        {**content, "x": torch.tensor([2.0, 1.0])},
        {**content, "x": torch.tensor([1.0, 2.0]).double()},
        {**content, "x": torch.tensor([[1.0, 2.0]])},
        {"z": content["x"], "y": content["y"]},
        {"x": content["x"]},
        {},
        {"x": torch.tensor([0.0])},
        {"x": torch.tensor([0], dtype=torch.int32)},  # the same bytes, of another type
        {"x": torch.tensor([-0.0])},
    ]
    assert len({first, *map(content_digest, others)}) == 1 + len(others)
