"""The ClientApp as Flower loads it: it imports the real one, and torch with it, when the first message comes.

Flower's simulation loads the ClientApp before it starts Ray. So Ray starts while the ServerApp, in the same process,
still imports torch, and not seconds after it.
"""

from __future__ import annotations

from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from typing_extensions import override


class EntryApp(ClientApp):
    """Hands every message to `client_app.app.app`."""

    @override
    def __call__(self, message: Message, context: Context) -> Message:
        from client_app.app import app as real

        return real(message, context)


app = EntryApp()
