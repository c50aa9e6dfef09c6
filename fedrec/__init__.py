"""What server and clients share, free of Flower: data, registry, configuration, backbones, recipes, codecs, packets.

It is also where the Python interface is found: `fedrec.train`, `fedrec.tune`, `fedrec.Run` and `fedrec.compare`, which
live in `commands/api.py` and are imported when they are first asked for.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from commands.api import Run as Run
    from commands.api import compare as compare
    from commands.api import train as train
    from commands.api import tune as tune

__version__ = "0.1.0"

_INTERFACE = ("Run", "compare", "train", "tune")


def __getattr__(name: str) -> Any:
    if name in _INTERFACE:
        return getattr(import_module("commands.api"), name)
    raise AttributeError(f"module 'fedrec' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), *_INTERFACE]
