"""The contract of uplinks: what a node adds up is what its users' own devices would have sent."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fedrec.core.rng import generator
from fedrec.core.tensors import Spec, TableSpec, Tensors, TensorSpec, matches, zeros
from fedrec.stages.chain import Stages
from fedrec.stages.contributions import Contributions, Rows
from fedrec.stages.draws import Draws
from fedrec.stages.limits import Limits
from fedrec.stages.rows import RowLimits
from fedrec.uplinks.base import Uplink
from fedrec.wire.updates import NodeUpdate

SPEC: Spec = {
    "table": TableSpec((90, 6)),
    "narrow": TableSpec((40, 1)),
    "dense": TensorSpec((3, 2)),
    "scalar": TensorSpec(()),
}
USERS = 5
KEYS = np.arange(100, 100 + USERS, dtype=np.uint64)
DRAWS = Draws(1, fresh=False)
CAP = 50


def given_by(users: list[int], *, alike: bool = False, whole: bool = False) -> Contributions:
    """What these of the `USERS` give: of `table` 60 rows and of `narrow` 2 to 6; the last user changes none.

    Args:
        users: Which of them.
        alike: Whether a user's rows are multiples of one.
        whole: Tables as the oracle has them, not as the cohort engine has.
    """
    rows: dict[str, list[Rows]] = {}
    tensors = {"dense": torch.zeros(len(users), 3, 2), "scalar": torch.zeros(len(users))}
    for name, count in (("table", 60), ("narrow", 6)):
        entry = SPEC[name]
        numbers = torch.zeros(len(users), count, dtype=torch.int64)
        values = torch.zeros(len(users), count, entry.shape[1])
        for place, user in enumerate(users):
            rng = generator(user, name)
            numbers[place] = torch.randperm(entry.shape[0], generator=rng)[:count]
            drawn = torch.randn(count, 1 if alike else entry.shape[1], generator=rng) ** 3
            values[place] = drawn * torch.randn(entry.shape[1], generator=rng) if alike else drawn
            if name == "narrow":
                values[place, user + 2 :] = 0
            if user == USERS - 1:
                values[place] = 0
        rows[name] = [Rows(torch.arange(len(users)), numbers, values)]
    for place, user in enumerate(users):
        tensors["dense"][place] = torch.randn(3, 2, generator=generator(user, "dense"))
    examples = np.array([10 * (user + 1) for user in users])
    made = Contributions.of(SPEC, KEYS[users], rows, tensors, examples, torch.ones(len(users)))
    if not whole:
        return made
    tables = {name: torch.cat([one.whole[name] for one in made.one_by_one()]) for name in rows}
    return Contributions.of(SPEC, KEYS[users], {}, tensors | tables, examples, torch.ones(len(users)))


class UplinkContract:
    """What engines, the meter and the server take for granted of an uplink: derive from it and give the member."""

    @pytest.fixture
    def uplink(self) -> Uplink:
        """The member that is held to the contract."""
        raise NotImplementedError("override this fixture: it gives the member")

    @pytest.fixture(params=[False, True], ids=["rows", "alike"])
    def alike(self, request: pytest.FixtureRequest) -> bool:
        """Whether a user's rows are multiples of one."""
        return bool(request.param)

    def stages(self, uplink: Uplink, row_limits: RowLimits | None = None) -> Stages:
        """Those of a run with that uplink and nothing else."""
        return Stages([], uplink.codec, Limits(CAP, 1e6), row_limits, uplink=uplink)

    def added(self, stages: Stages, given: Contributions) -> NodeUpdate:
        """The sum over these users."""
        update = stages.empty(zeros(SPEC), len(given))
        stages.add(given, update, DRAWS)
        return update

    def packet(self, stages: Stages, update: NodeUpdate) -> tuple[bytes, Tensors]:
        """The packet that a device with the one user of this update sends, and what is decoded of it."""
        spec, codec = stages.sum_format(SPEC, 1)
        data = codec.encode(update.total, spec, None)
        return data, codec.decode(memoryview(data), spec)

    def test_a_packet_brings_what_is_added_up(self, uplink: Uplink, alike: bool) -> None:
        stages = self.stages(uplink)
        for user in range(USERS):
            update = self.added(stages, given_by([user], alike=alike))
            _, came = self.packet(stages, update)
            for name, tensor in came.items():
                assert matches(SPEC[name], tensor)
                torch.testing.assert_close(tensor, update.total[name].to(tensor), rtol=1e-5, atol=1e-5)

    def test_the_bytes_are_those_of_the_packets(self, uplink: Uplink, alike: bool) -> None:
        stages = self.stages(uplink)
        alone = [self.added(stages, given_by([user], alike=alike)) for user in range(USERS)]
        lengths = [len(self.packet(stages, update)[0]) for update in alone]
        assert [update.packet_bytes for update in alone] == lengths
        assert self.added(stages, given_by(list(range(USERS)), alike=alike)).packet_bytes == sum(lengths)
        assert (len(set(lengths)) > 1) is uplink.tells_rows
        least, most = uplink.packet.least(SPEC), uplink.packet.size(SPEC)
        assert all(least <= length <= most for length in lengths)
        assert max(lengths) <= uplink.most(SPEC, {"table": 60, "narrow": 6}) <= uplink.most(SPEC, None)

    def test_a_user_is_the_same_whoever_is_beside_it(self, uplink: Uplink, alike: bool) -> None:
        stages = self.stages(uplink)
        together = self.added(stages, given_by(list(range(USERS)), alike=alike)).total
        alone = [self.added(stages, given_by([user], alike=alike)).total for user in range(USERS)]
        for name, tensor in together.items():
            torch.testing.assert_close(tensor, sum(total[name] for total in alone), rtol=1e-5, atol=1e-4)

    def test_whole_tables_and_rows_come_to_the_same(self, uplink: Uplink, alike: bool) -> None:
        stages, everybody = self.stages(uplink), list(range(USERS))
        rows, whole = (self.added(stages, given_by(everybody, alike=alike, whole=form)) for form in (False, True))
        assert rows.packet_bytes == whole.packet_bytes
        for name, tensor in rows.total.items():
            torch.testing.assert_close(tensor, whole.total[name], rtol=1e-5, atol=1e-4)

    def test_who_is_left_out_sends_what_a_device_without_changes_would(self, uplink: Uplink) -> None:
        stages = self.stages(uplink)
        given = given_by([0, 1])
        given.rows["table"][0].values[0, 3, 2] = torch.nan
        given.whole["dense"][1] = torch.inf
        update = self.added(stages, given)
        assert (update.users, update.dropped["non_finite"]) == (0, 2)
        assert not any(bool(tensor.any()) for tensor in update.total.values())
        least = uplink.packet.least(SPEC) if uplink.tells_rows else uplink.packet.size(SPEC)
        assert update.packet_bytes == 2 * least

    def test_no_row_goes_further_than_its_limit(self, uplink: Uplink) -> None:
        stages = self.stages(uplink, RowLimits(lambda width: 5.0, CAP))
        bounds = stages.rows_of_one(SPEC)
        for user in range(USERS):
            total = self.added(stages, given_by([user])).total
            for name, bound in bounds.items():
                rows = total[name] if isinstance(SPEC[name], TableSpec) else total[name].reshape(1, -1)
                assert rows.norm(dim=1).max() <= bound * (1 + 1e-5)
