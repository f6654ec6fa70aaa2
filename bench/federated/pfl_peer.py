"""pfl-research on 1,000 small clients a round, as many_clients.py's first rows.

    PYTHON bench/federated/pfl_peer.py [rounds]      # prints the median seconds of a round

Needs torch and pfl (0.6.0 was tried).
"""

import os
import statistics
import sys
import time

os.environ["OMP_NUM_THREADS"] = "1"
os.environ.setdefault("PFL_PYTORCH_DEVICE", "cpu")

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
from pfl.internal.ops import pytorch_ops  # noqa: F401  (selects the framework)
from pfl.metrics import Weighted
from pfl.model.pytorch import PyTorchModel

torch.set_num_threads(1)
CLIENTS, ROWS = 1000, 10


class Net(torch.nn.Sequential):
    def __init__(self):
        super().__init__(torch.nn.Linear(64, 32), torch.nn.ReLU(), torch.nn.Linear(32, 10))

    def loss(self, x, y, is_eval=False):
        return torch.nn.functional.cross_entropy(self(x), y)

    def metrics(self, x, y):
        with torch.no_grad():
            return {"loss": Weighted(float(self.loss(x, y)) * len(y), len(y))}


class Clock(TrainingProcessCallback):
    def __init__(self):
        self.times = [time.perf_counter()]

    def after_central_iteration(self, aggregate_metrics, model, *, central_iteration):
        self.times.append(time.perf_counter())
        return False, type(aggregate_metrics)()


def main():
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 10
    data = {
        str(i): (torch.rand(ROWS, 64), torch.randint(10, (ROWS,))) for i in range(CLIENTS)
    }
    dataset = FederatedDataset(lambda user: Dataset(raw_data=data[user], user_id=user),
                               get_user_sampler("minimize_reuse", list(data)))
    net = Net()
    model = PyTorchModel(net, local_optimizer_create=torch.optim.SGD,
                         central_optimizer=torch.optim.SGD(net.parameters(), lr=1.0))
    clock = Clock()
    FederatedAveraging().run(
        algorithm_params=NNAlgorithmParams(central_num_iterations=rounds, evaluation_frequency=1000,
                                           train_cohort_size=CLIENTS, val_cohort_size=0),
        backend=SimulatedBackend(training_data=dataset, val_data=dataset),
        model=model,
        model_train_params=NNTrainHyperParams(local_batch_size=None, local_num_epochs=1,
                                              local_learning_rate=0.1),
        model_eval_params=None,
        callbacks=[clock])
    print(statistics.median(np.diff(clock.times)))


if __name__ == "__main__":
    main()
