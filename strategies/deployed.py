"""What only a deployment has on the server."""

from __future__ import annotations

from typing import NamedTuple

from fedrec.tensors import Tensors


class Deployed(NamedTuple):
    """What a simulation has no need of.

    Attributes:
        secret: The server's secret root, of its noise.
        item_list: The public list of items, as it is sent to sites that have not got it.
    """

    secret: int
    item_list: Tensors
