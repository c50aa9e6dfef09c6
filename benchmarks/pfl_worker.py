"""pfl's side of `benchmarks.pfl_task`: needs pfl, torch and numpy, and nothing of fedrec.

python pfl_worker.py <task.npz> <users> <rounds> <threads> <lr>; prints one line of JSON.
"""

from __future__ import annotations

import json
import sys
import time
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from pfl.aggregate.simulate import SimulatedBackend
from pfl.algorithm.base import NNAlgorithmParams
from pfl.algorithm.federated_averaging import FederatedAveraging
from pfl.callback.base import TrainingProcessCallback
from pfl.data.dataset import Dataset
from pfl.data.federated_dataset import FederatedDataset
from pfl.data.sampling import get_user_sampler
from pfl.hyperparam import NNTrainHyperParams
from pfl.metrics import Metrics, Weighted
from pfl.model.pytorch import PyTorchModel
from torch import Tensor, nn
from torch.nn.functional import softplus

DIM = 32


class BprMF(nn.Module):
    """The item table; a user's vector starts anew in every round, as a parameter of the same model."""

    def __init__(self, rows: int) -> None:
        super().__init__()
        self.items = nn.Parameter(torch.randn(rows, DIM) / DIM**0.5)
        self.user = nn.Parameter(0.1 * torch.randn(DIM))

    def loss(self, positives: Tensor, negatives: Tensor) -> Tensor:
        """BPR over the user's pairs."""
        return softplus((self.items[negatives] - self.items[positives]) @ self.user).mean()

    @torch.no_grad()
    def metrics(self, positives: Tensor, negatives: Tensor) -> dict[str, Weighted]:
        """Pfl asks for metrics; training does not compute them here."""
        return {"loss": Weighted(float(self.loss(positives, negatives)), 1)}


class Watch(TrainingProcessCallback):  # type: ignore[misc]
    """Seconds from the end of one round to the end of the next."""

    def __init__(self) -> None:
        self.ends = [time.perf_counter()]

    def after_central_iteration(
        self, aggregate_metrics: Metrics, model: PyTorchModel, *, central_iteration: int
    ) -> tuple[bool, Metrics]:
        """Note the time; go on."""
        self.ends.append(time.perf_counter())
        return False, Metrics()


def main() -> None:
    path, users, rounds, threads, lr = sys.argv[1], *map(int, sys.argv[2:5]), float(sys.argv[5])
    torch.set_num_threads(threads)
    data = np.load(path)
    offsets, items, eligible = data["offsets"], data["items"], data["eligible"]
    rng = np.random.default_rng(0)

    def make(user: int) -> Any:
        positives = items[offsets[user] : offsets[user + 1]]
        negatives = rng.choice(eligible, len(positives))
        return Dataset(raw_data=[torch.from_numpy(positives), torch.from_numpy(negatives)])

    everybody = list(range(len(offsets) - 1))
    dataset = FederatedDataset(make, get_user_sampler("minimize_reuse", everybody))
    net = BprMF(int(data["rows"]))
    model = PyTorchModel(net, torch.optim.SGD, torch.optim.SGD(net.parameters(), lr=1.0))
    backend = SimulatedBackend(training_data=dataset, val_data=dataset)
    params = NNAlgorithmParams(
        central_num_iterations=rounds, evaluation_frequency=rounds + 1, train_cohort_size=users, val_cohort_size=0
    )
    # A batch as large as any history: one full-batch step in an epoch.
    local = NNTrainHyperParams(local_batch_size=int(np.diff(offsets).max()), local_num_epochs=2, local_learning_rate=lr)
    watch = Watch()
    FederatedAveraging().run(
        algorithm_params=params,
        backend=backend,
        model=model,
        model_train_params=local,
        model_eval_params=None,
        callbacks=[watch],
    )
    packages = {name: version(name) for name in ("pfl", "torch", "numpy")}
    print(json.dumps({"packages": packages, "seconds": np.diff(watch.ends).tolist()}))


if __name__ == "__main__":
    main()
