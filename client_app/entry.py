"""The ClientApp as Flower loads it: it imports the real one, and torch with it, when the first message comes.

Flower's simulation loads the ClientApp before it starts Ray. So Ray starts while the ServerApp, in the same process,
still imports torch, and not seconds after it.
"""

from __future__ import annotations

import gc
from functools import lru_cache

from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from typing_extensions import override


@lru_cache(maxsize=1)
def real_app() -> ClientApp:
    """The ClientApp that does the work.

    Importing it makes a great many objects that all stay. Looking among them for garbage takes a fifth of the time of
    the import, and once more a second when the process ends: a device would spend that for every message. So nothing
    is collected meanwhile, and what is there then is never looked through again.
    """
    collects = gc.isenabled()
    gc.disable()
    try:
        from client_app.answers.app import app as real

        gc.freeze()
    finally:
        if collects:
            gc.enable()
    return real


class EntryApp(ClientApp):
    """Hands every message to `client_app.answers.app.app`."""

    @override
    def __call__(self, message: Message, context: Context) -> Message:
        return real_app()(message, context)


app = EntryApp()
