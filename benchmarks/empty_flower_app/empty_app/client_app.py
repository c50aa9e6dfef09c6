"""The ClientApp: answers at once."""

from __future__ import annotations

from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()


@app.train()
def nothing(message: Message, context: Context) -> Message:
    """Give back nothing."""
    return Message(RecordDict(), reply_to=message)
