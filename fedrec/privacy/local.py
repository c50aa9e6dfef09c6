"""Local differential privacy: each device noises its own update before anything leaves it.

The update is clipped by its norm over everything that travels, noise is added to every number, changed or not, and only
then comes the codec. Whatever the server, other nodes or an eavesdropper make of it, what they learn of the user from
one update is bounded: any two updates that the device could have given differ by at most twice the clip, and that is
what the noise is measured by (replace one, not add or remove). All count alike (`federation.weight_cap=1`), for a
weight by the length of the history would tell it.

The account is that of one user, who takes part in **every** round of the plan: nothing is gained by a choice that the
server knows. Plans with few rounds are what it asks for. Each round is in the ledger before a device is asked.

**What it does not hide**: who takes part; that a device has nothing to give, because its training diverged or its user
knows every item, for it then sends nothing; and a server that tells devices another noise multiplier than its
configuration has. The metrics of rankings are exact sums.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, ClassVar

import torch
from typing_extensions import override

from fedrec.privacy.accounted import Accounted, AccountedConfig, Noise
from fedrec.stages.addition import in_units
from fedrec.stages.base import Release
from fedrec.stages.contributions import Contributions
from fedrec.stages.draws import Draws

_GRID_BITS = 18


class Local(Accounted):
    """A clip, and noise on every number, on each device."""

    config: AccountedConfig
    reads = "dense"
    unit = "user, one for another, in every round"
    kind: ClassVar[Noise]
    rules: ClassVar[dict[str, Any]] = {
        **Accounted.rules,
        "weight_cap": 1,
        # A noised update is longer than any honest one, and so are its rows.
        "max_update_norm": 1e6,
        "max_row_norm": None,
    }

    @property
    def scale(self) -> float:
        """Of the noise on every number: a multiple of the distance of two clipped updates."""
        return self.multiplier * 2 * self.config.clip

    @override
    def release(self, multiplier: float) -> Release:
        return Release(self.kind.name, multiplier, in_secret=False)

    @property
    @override
    def noise_on_devices(self) -> float:
        return self.scale * self.kind.deviation

    @override
    def on_devices(self, given: Contributions, draws: Draws) -> Contributions:
        given = given.with_norms()
        finite = given.norms.isfinite().tolist()
        given = self.kind.clip(given, self.config.clip)
        # Whole numbers on a public grid, for the last bits of floating-point numbers tell a sum apart.
        units_per_one = 2.0 ** (_GRID_BITS - math.floor(math.log2(self.scale)))
        whole = {name: torch.empty_like(tensor) for name, tensor in given.whole.items()}
        for user, (key, factor) in enumerate(zip(given.keys.tolist(), given.factor.tolist(), strict=True)):
            if not finite[user]:  # it is dropped as it is: infinity times a factor of 0 is no number of grid points
                for tensor in whole.values():
                    tensor[user] = torch.nan
                continue
            units = {name: in_units(tensor[user] * factor, units_per_one) for name, tensor in given.whole.items()}
            secret = draws.once(units, "update", key, repr(self.scale))
            for name, own in units.items():
                noise = self.scale * self.kind.standard(secret + name.encode(), *own.shape)
                noised = own + (noise * units_per_one).round().to(own)
                whole[name][user] = noised.double() / units_per_one
        return dataclasses.replace(given.changed(whole=whole), factor=torch.ones_like(given.factor))
