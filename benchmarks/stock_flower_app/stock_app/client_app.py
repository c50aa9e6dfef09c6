"""The ClientApp: a node is one user."""

from __future__ import annotations

import torch
from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from stock_app.task import Net, history, train

app = ClientApp()


@app.train()
def fit(message: Message, context: Context) -> Message:
    """Train on the user's history; the item table goes back, the user's vector stays in the context."""
    config = context.run_config
    net = Net(int(config["items"]), int(config["dim"]))
    net.load_state_dict(message.content["arrays"].to_torch_state_dict())
    user = int(context.node_config["partition-id"])
    if "user" in context.state:
        vector = torch.from_numpy(context.state["user"]["vector"].numpy().copy())
    else:
        vector = 0.1 * torch.randn(int(config["dim"]))
    positives, unknown = history(str(config["store"]), str(config["eligible"]), user)
    vector.requires_grad_(True)
    loss = train(net, vector, positives, unknown, int(config["local-epochs"]), float(config["lr"]))
    context.state["user"] = ArrayRecord({"vector": Array(vector.detach().numpy())})
    metrics = MetricRecord({"num-examples": len(positives), "loss": loss})
    return Message(RecordDict({"arrays": ArrayRecord(net.state_dict()), "metrics": metrics}), reply_to=message)
