"""The contract of privacy mechanisms."""

from __future__ import annotations

import pytest
import torch

from fedrec.core.rng import generator
from fedrec.core.tensors import Spec, TableSpec, Tensors, TensorSpec, matches
from fedrec.privacy.base import PrivacyMechanism

SPEC: Spec = {"table": TableSpec((6, 3)), "dense": TensorSpec((3, 2)), "scalar": TensorSpec(())}


def delta(seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensors:
    """A user's update."""
    rng = generator(seed, "delta")
    drawn = {name: torch.randn(entry.shape, generator=rng).to(dtype) for name, entry in SPEC.items()}
    drawn["table"][3:] = 0  # rows that the user did not touch
    return drawn


def hooks(mechanism: PrivacyMechanism, tensors: Tensors, seed: int) -> list[Tensors]:
    """What the two hooks make of tensors."""
    return [mechanism.protect_update(tensors, SPEC, seed), mechanism.protect_mean(tensors, 10, seed)]


class PrivacyContract:
    """What engines and server take for granted of a privacy mechanism."""

    @pytest.fixture
    def mechanism(self) -> PrivacyMechanism:
        """The member that is held to the contract."""
        raise NotImplementedError("override this fixture: it gives the member")

    def test_both_hooks_keep_names_shapes_and_types(self, mechanism: PrivacyMechanism) -> None:
        for after in hooks(mechanism, delta(), 1):
            assert after.keys() == SPEC.keys()
            assert all(matches(SPEC[name], tensor) and bool(tensor.isfinite().all()) for name, tensor in after.items())

    def test_what_is_given_is_not_changed(self, mechanism: PrivacyMechanism) -> None:
        before = delta()
        hooks(mechanism, before, 1)
        assert all(torch.equal(tensor, delta()[name]) for name, tensor in before.items())

    def test_the_seed_alone_decides_the_noise(self, mechanism: PrivacyMechanism) -> None:
        state = torch.get_rng_state()
        for first, again in zip(hooks(mechanism, delta(), 5), hooks(mechanism, delta(), 5), strict=True):
            assert all(torch.equal(first[name], again[name]) for name in SPEC)
        assert torch.equal(torch.get_rng_state(), state), "the global generator was used"

    def test_a_mechanism_says_whether_it_changes_updates(self, mechanism: PrivacyMechanism) -> None:
        """Engines form no user's whole delta if it says that it does not."""
        if mechanism.changes_updates:
            return
        for seed in range(5):
            after = mechanism.protect_update(delta(seed), SPEC, seed)
            assert all(torch.equal(after[name], tensor) for name, tensor in delta(seed).items())

    def test_an_empty_model_is_protected_too(self, mechanism: PrivacyMechanism) -> None:
        assert mechanism.protect_update({}, {}, 0) == {}
        assert mechanism.protect_mean({}, 1, 0) == {}
