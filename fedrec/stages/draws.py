"""The randomness of a round's stages: what must repeat, and what may be drawn once only.

What must repeat is a function of the secret root, the round and a path (`Draws.again`): the rounding of updates, pseudo
rows. A server that asks twice learns nothing new from the same answer.

Noise that protects a number must not: the same noise over two different numbers is gone when they are subtracted
(`Draws.once`). In a deployment its key comes from the operating system. In a simulation, where a run can be repeated,
it is a function of the secret root, the round and a digest of the exact content that is noised: the same content has
the same noise, wherever its users live, and any other has another.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from fedrec.core.rng import derive
from fedrec.core.tensors import content_digest

KEY_BYTES = 32


@dataclass(frozen=True)
class Draws:
    """The draws of one side in one round.

    Attributes:
        seed: From the secret root of this side and the round; never from the public seed.
        fresh: Whether what is drawn once comes from the operating system, as it does in a deployment.
    """

    seed: int
    fresh: bool

    def again(self, *path: str | int) -> int:
        """A 64-bit seed: the same whenever it is asked for in this round."""
        return derive(self.seed, *path)

    def once(self, noised: Mapping[str, Tensor], *path: str | int) -> bytes:
        """The key of noise that is added to `noised`, to be used for that alone: other content has another key."""
        if self.fresh:
            return secrets.token_bytes(KEY_BYTES)
        label = f"{derive(self.seed, 'once', *path)}/{content_digest(noised)}"
        return hashlib.blake2b(label.encode(), digest_size=KEY_BYTES).digest()
