"""The contract of a privacy mechanism: a stage that can be chosen by name."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar

import torch
from torch import Tensor
from typing_extensions import override

from fedrec.config.schema import RunConfig
from fedrec.core.registry import MemberConfig
from fedrec.stages.base import Stage
from fedrec.stages.contributions import Contributions, Touched
from fedrec.stages.draws import Draws


class PrivacyMechanism(Stage):
    """A member of the family `privacy`: a stage with a configuration."""

    config_class: ClassVar[type[MemberConfig]]

    promises: ClassVar[bool] = True
    """Whether what it does is to protect anybody; noise that is not may be drawn again."""

    caveat: ClassVar[str | None] = None
    """What has to be said wherever the member's promise is, because its name may let one expect more."""

    def __init__(self, config: Any) -> None:
        self.config = config

    @classmethod
    def caveat_in(cls, config: RunConfig) -> str | None:
        """The caveat as a run has it; None: there is nothing to be said."""
        return cls.caveat

    @classmethod
    def settled(cls, config: RunConfig, users: int) -> MemberConfig:
        """The member's configuration with what follows from the plan of the run and the number of users.

        The server asks for it once, before anybody is told anything.
        """
        return config.privacy


class RowAdding(PrivacyMechanism):
    """A mechanism that leaves every number of an update as it is, and adds rows to its tables."""

    reads = "rows"

    @abstractmethod
    def added_rows(self, name: str, size: int, touched: Tensor, changes: Tensor, seed: int) -> tuple[Tensor, Tensor]:
        """What is added to one table of one user's update.

        Args:
            name: The table's, as it travels.
            size: Its rows.
            touched: int64 [n], the rows that the user changed, ascending; perhaps none.
            changes: [n, width], by how much.
            seed: Of the user in the round: the same if the round is asked for again, so that what was added the first
                time is not told from what is real by what was added the second time.

        Returns:
            Other rows, each once (int64 [m]), and the changes that are sent for them [m, width].
        """

    @override
    def on_devices(self, given: Contributions, draws: Draws) -> Contributions:
        seeds = [draws.again("privacy", int(key)) for key in given.keys]
        for name in given.tables:
            given = given.adding(name, self._of_all(name, given, seeds))
        return given

    def _of_all(self, name: str, given: Contributions, seeds: list[int]) -> Touched:
        """What is added to one table, of all users."""
        owner, rows, changes = given.touched(name)
        size = given.spec[name].shape[0]
        users = torch.arange(len(seeds) + 1, device=owner.device)
        bounds = torch.searchsorted(owner, users).tolist()
        added = [
            self.added_rows(name, size, rows[start:end], changes[start:end], seed)
            for start, end, seed in zip(bounds, bounds[1:], seeds, strict=False)
        ]
        counts = torch.tensor([len(of_user) for of_user, _ in added], device=owner.device)
        return Touched(
            torch.repeat_interleave(users[:-1], counts),
            torch.cat([of_user for of_user, _ in added]),
            torch.cat([values for _, values in added]),
        )
