"""The contract of privacy mechanisms: what engines and server take for granted of them."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch

from fedrec.codecs.float32 import Float32Codec, Float32Config
from fedrec.codecs.int8 import Int8Codec, Int8Config
from fedrec.core.rng import generator
from fedrec.core.tensors import Spec, TableSpec, Tensors, TensorSpec
from fedrec.privacy.base import PrivacyMechanism
from fedrec.stages.base import Round
from fedrec.stages.chain import Stages
from fedrec.stages.contributions import Contributions, Rows
from fedrec.stages.draws import Draws
from fedrec.stages.limits import Limits
from fedrec.stages.sums import Sum

SPEC: Spec = {"table": TableSpec((6, 3)), "dense": TensorSpec((3, 2)), "scalar": TensorSpec(())}
USERS = 4
KEYS = np.arange(100, 100 + USERS, dtype=np.uint64)
DRAWS = Draws(1, fresh=False)
SETTLED: Mapping[str, Mapping[str, Any]] = {
    **{name: {"noise_multiplier": 1.0, "population": 60} for name in ("central_gaussian", "central_laplace")},
    **{name: {"noise_multiplier": 1.0} for name in ("local_gaussian", "local_laplace")},
    "distributed_gaussian": {"noise_multiplier": 1.0, "survivors": USERS},
}
"""What the server fills in from the plan and the data, of fedrec's own members."""


def dense(seed: int = 0) -> Contributions:
    """Each user's tensors whole, as the oracle has them; rows 3 to 5 of the table are untouched."""
    rng = generator(seed, "delta")
    whole = {name: torch.randn(USERS, *entry.shape, generator=rng) for name, entry in SPEC.items()}
    whole["table"][:, 3:] = 0
    lengths = np.arange(1, USERS + 1)
    return Contributions.of(SPEC, KEYS, {}, whole, lengths, torch.rand(USERS, generator=rng))


def sparse(seed: int = 0) -> Contributions:
    """The same with the rows of the table as blocks, as the cohort engine has them."""
    given = dense(seed)
    table = given.whole.pop("table")
    owner = torch.arange(USERS).repeat_interleave(2)
    rows = torch.tensor([[0, 1], [2, 4]]).repeat(USERS, 1)
    blocks = Rows(owner, rows, torch.stack([table[user, number] for user, number in zip(owner, rows, strict=True)]))
    return dataclasses.replace(given, rows={"table": [blocks]})


def given_to(mechanism: PrivacyMechanism, seed: int = 0) -> Contributions:
    """As an engine would hand it over."""
    given = sparse(seed)
    if mechanism.reads == "dense":
        (given,) = list(given.one_by_one())[:1]
    return given.with_norms() if mechanism.reads == "norms" else given


def total(value: float = 0.25) -> Sum:
    """A sum of the same number in every place, over a denominator of 8."""
    units = {name: torch.full(entry.shape, int(value * 2**20)) for name, entry in SPEC.items()}
    return Sum(SPEC, units, 2.0**20, denominator=8.0)


def noised(mechanism: PrivacyMechanism, value: float = 0.25, draws: Draws = DRAWS) -> Tensors:
    """The units of a sum after the mechanism's part on it."""
    return dict(mechanism.on_sum(total(value), Round(1, 0.5, draws)).units)


def one_vector(one: Contributions) -> torch.Tensor:
    """All that one user sends, as one vector [1, n] in float64."""
    return (torch.cat([tensor.double().flatten() for tensor in one.whole.values()]) * one.factor)[None]


def one_by_one(mechanism: PrivacyMechanism, given: Contributions) -> list[Contributions]:
    """What the mechanism makes of each user alone."""
    return [mechanism.on_devices(copy.deepcopy(one).with_norms(), DRAWS) for one in given.one_by_one()]


def added(units: Tensors, value: float) -> Tensors:
    """What was added to the units of a sum."""
    return {name: tensor - total(value).units[name] for name, tensor in units.items()}


def same(first: Tensors, second: Tensors) -> bool:
    """Whether two sums are equal to the bit."""
    return all(torch.equal(first[name], second[name]) for name in SPEC)


def assert_same(first: Any, second: Any) -> None:
    """Two contributions are equal to the bit."""
    for one, other in zip(first.one_by_one(), second.one_by_one(), strict=True):
        assert all(torch.equal(tensor, other.whole[name]) for name, tensor in one.whole.items())
        assert (float(one.factor), float(one.weight)) == (float(other.factor), float(other.weight))


class PrivacyContract:
    """What engines and server take for granted of a privacy mechanism: derive from it and give the member."""

    @pytest.fixture
    def mechanism(self) -> PrivacyMechanism:
        """The member that is held to the contract."""
        raise NotImplementedError("override this fixture: it gives the member")

    def test_names_shapes_and_types_stay(self, mechanism: PrivacyMechanism) -> None:
        given = given_to(mechanism)
        after = mechanism.on_devices(given, DRAWS)
        assert after.rows.keys() | after.whole.keys() == SPEC.keys()
        assert after.whole.keys() == given.whole.keys()
        assert all(after.whole[name].shape == tensor.shape for name, tensor in given.whole.items())
        assert after.weight.shape == after.factor.shape == after.kept.shape == (len(given),)
        summed = noised(mechanism)
        assert {name: (tensor.shape, tensor.dtype) for name, tensor in summed.items()} == {
            name: (entry.shape, torch.int64) for name, entry in SPEC.items()
        }

    def test_the_sum_that_is_given_is_not_changed(self, mechanism: PrivacyMechanism) -> None:
        before = total()
        mechanism.on_sum(before, Round(1, 0.5, DRAWS))
        assert all(torch.equal(units, total().units[name]) for name, units in before.units.items())

    def test_what_must_repeat_repeats_and_the_global_generator_is_not_used(self, mechanism: PrivacyMechanism) -> None:
        """In a simulation: the same question has the same answer."""
        state = torch.get_rng_state()
        first, again = (mechanism.on_devices(given_to(mechanism), DRAWS) for _ in range(2))
        assert_same(first, again)
        noised(mechanism)
        assert torch.equal(torch.get_rng_state(), state), "the global generator was used"

    def test_noise_of_the_sum_is_drawn_once_only(self, mechanism: PrivacyMechanism) -> None:
        """The same sum of a simulation has the same noise, any other sum another; a deployment never repeats any.

        A mechanism that promises nothing may do as it likes.
        """
        if not mechanism.promises:
            return
        noise = {value: added(noised(mechanism, value), value) for value in (0.25, 0.25 + 2**-20, 0.5)}
        assert same(noise[0.25], added(noised(mechanism, 0.25), 0.25))
        fresh = [added(noised(mechanism, draws=Draws(1, fresh=True)), 0.25) for _ in range(2)]
        others = [noise[0.25 + 2**-20], noise[0.5], added(noised(mechanism, draws=Draws(2, fresh=False)), 0.25), *fresh]
        for number, other in enumerate(others):
            assert same(noise[0.25], other) is not mechanism.noises_sum, number
        assert same(*fresh) is not mechanism.noises_sum

    def test_a_sum_of_nobody_is_noised_too(self, mechanism: PrivacyMechanism) -> None:
        if not mechanism.promises:
            return
        assert any(bool(tensor.any()) for tensor in noised(mechanism, 0.0).values()) is mechanism.noises_sum

    def test_noise_of_an_update_is_drawn_once_only(self, mechanism: PrivacyMechanism) -> None:
        """The same of devices: another update, user or round has noise of its own, and a deployment never repeats any.

        What is compared is what the update of one user grows by, so that only noise can differ.
        """
        if mechanism.shares is not None or not mechanism.noise_on_devices:
            return
        (one, other), small = list(dense().one_by_one())[:2], 1e-3

        def noise(of: Contributions, draws: Draws, scale: float = small) -> torch.Tensor:
            given = of.changed(whole={name: scale * tensor for name, tensor in of.whole.items()})
            return one_vector(mechanism.on_devices(given, draws)) - scale * one_vector(of)

        twin = dataclasses.replace(one, keys=other.keys)
        first = noise(one, DRAWS)
        assert (first != 0).all(), "on every number, changed or not"
        torch.testing.assert_close(noise(one, DRAWS), first, rtol=0, atol=0)
        others = [noise(one, DRAWS, 2e-3), noise(twin, DRAWS), noise(one, Draws(2, fresh=False))]
        others += [noise(one, Draws(1, fresh=True)) for _ in range(2)]
        drawn = torch.cat([first, *others])
        assert (torch.pdist(drawn) > 0.1 * mechanism.noise_on_devices).all()

    def test_what_is_not_finite_is_left_for_the_limits_to_drop(self, mechanism: PrivacyMechanism) -> None:
        """Whatever noises an update on a device: infinity must not become a number."""
        if mechanism.shares is not None or not mechanism.noise_on_devices:
            return
        for bad in (torch.inf, -torch.inf, torch.nan):
            (one, *_) = list(dense().one_by_one())
            for tensor in one.whole.values():
                tensor.view(-1)[0] = bad
            assert not one_vector(mechanism.on_devices(one, DRAWS)).isfinite().all()

    def test_it_may_depend_on_each_user_alone(self, mechanism: PrivacyMechanism) -> None:
        whole, alone = (one_by_one(mechanism, dense()) for _ in range(2))
        several = mechanism.on_devices(dense().with_norms(), DRAWS) if mechanism.reads != "dense" else None
        for first, again in zip(whole, alone, strict=True):
            assert_same(first, again)
        if several is not None:
            for user, one in enumerate(whole):
                for name, tensor in one.whole.items():
                    torch.testing.assert_close(tensor[0], several.whole[name][user])
                assert float(one.factor) == pytest.approx(float(several.factor[user]))
                assert float(one.weight) == float(several.weight[user])

    def test_sparse_and_dense_come_to_the_same(self, mechanism: PrivacyMechanism) -> None:
        if mechanism.reads == "dense":
            return
        after = mechanism.on_devices(sparse().with_norms(), DRAWS)
        slow = mechanism.on_devices(dense().with_norms(), DRAWS)
        torch.testing.assert_close(after.factor, slow.factor)
        for user, one in enumerate(after.one_by_one()):
            for name, tensor in one.whole.items():
                torch.testing.assert_close(tensor[0], slow.whole[name][user])

    def test_no_update_is_larger_than_the_mechanism_says(self, mechanism: PrivacyMechanism) -> None:
        """Whatever the codec does: the bound is on what travels, the noise of devices included."""
        if mechanism.max_norm is None:
            return
        noise = 0.0 if mechanism.shares is not None else mechanism.noise_on_devices
        bound = mechanism.max_norm + noise * (2 * sum(entry.size for entry in SPEC.values()) ** 0.5 + 20)
        for codec in (Float32Codec(Float32Config("float32")), Int8Codec(Int8Config("int8", "tensor"))):
            stages = Stages([mechanism], codec, Limits(200, 1e6))
            for seed in range(20):
                given = sparse(seed)
                given = given.changed(whole={name: 100 * tensor for name, tensor in given.whole.items()})
                done = stages.on_devices(given, Draws(seed, fresh=False))
                sent = [tensor[0].double().flatten() for one in done.one_by_one() for tensor in [one_vector(one)]]
                assert all(float(vector.norm()) <= bound for vector in sent)

    def test_an_empty_model_is_protected_too(self, mechanism: PrivacyMechanism) -> None:
        empty = Contributions.of({}, KEYS, {}, {}, np.ones(USERS, dtype=np.int64), torch.zeros(USERS)).with_norms()
        assert not mechanism.on_devices(empty, DRAWS).whole
        assert not mechanism.on_sum(Sum({}, {}, 1.0, 1.0), Round(1, 0.5, DRAWS)).units
