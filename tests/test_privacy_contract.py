"""The contract of privacy mechanisms, over every member of the family by itself."""

from __future__ import annotations

import pytest
import torch

from fedrec.config.describe import load_member
from fedrec.core.registry import privacies
from fedrec.core.rng import generator
from fedrec.core.tensors import Spec, TableSpec, Tensors, TensorSpec, matches
from fedrec.privacy.base import PrivacyMechanism

SPEC: Spec = {"table": TableSpec((6, 3)), "dense": TensorSpec((3, 2)), "scalar": TensorSpec(())}


@pytest.fixture(params=privacies.names())
def mechanism(request: pytest.FixtureRequest) -> PrivacyMechanism:
    made: PrivacyMechanism = privacies.get(request.param)(load_member("privacy", request.param))
    return made


def delta(seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensors:
    rng = generator(seed, "delta")
    drawn = {name: torch.randn(entry.shape, generator=rng).to(dtype) for name, entry in SPEC.items()}
    drawn["table"][3:] = 0  # rows that the user did not touch
    return drawn


def hooks(mechanism: PrivacyMechanism, tensors: Tensors, seed: int) -> list[Tensors]:
    return [mechanism.protect_update(tensors, SPEC, seed), mechanism.protect_mean(tensors, 10, seed)]


def test_both_hooks_keep_names_shapes_and_types(mechanism: PrivacyMechanism) -> None:
    for after in hooks(mechanism, delta(), 1):
        assert after.keys() == SPEC.keys()
        assert all(matches(SPEC[name], tensor) and bool(tensor.isfinite().all()) for name, tensor in after.items())


def test_what_is_given_is_not_changed(mechanism: PrivacyMechanism) -> None:
    before = delta()
    hooks(mechanism, before, 1)
    assert all(torch.equal(tensor, delta()[name]) for name, tensor in before.items())


def test_the_seed_alone_decides_the_noise(mechanism: PrivacyMechanism) -> None:
    state = torch.get_rng_state()
    for first, again in zip(hooks(mechanism, delta(), 5), hooks(mechanism, delta(), 5), strict=True):
        assert all(torch.equal(first[name], again[name]) for name in SPEC)
    assert torch.equal(torch.get_rng_state(), state), "the global generator was used"


def test_a_mechanism_says_whether_it_changes_updates(mechanism: PrivacyMechanism) -> None:
    """Engines form no user's whole delta if it says that it does not."""
    if mechanism.changes_updates:
        return
    for seed in range(5):
        after = mechanism.protect_update(delta(seed), SPEC, seed)
        assert all(torch.equal(after[name], tensor) for name, tensor in delta(seed).items())


def test_an_empty_model_is_protected_too(mechanism: PrivacyMechanism) -> None:
    assert mechanism.protect_update({}, {}, 0) == {}
    assert mechanism.protect_mean({}, 1, 0) == {}


def test_none_changes_nothing_and_says_so() -> None:
    none = privacies.get("none")(load_member("privacy", "none"))
    assert not none.changes_updates
    for after in hooks(none, delta(), 3):
        assert all(torch.equal(after[name], tensor) for name, tensor in delta().items())
