"""Flower's simulation of federated averaging, and the same as a plain PyTorch loop.

    flower_peer.py flower|plain TRAIN.csv EVAL.csv      # prints one line: RESULT {json}

The job (compare.py writes the tables and runs Shoal on them): every client, every round, one epoch of
SGD 0.1 with momentum 0.9 in batches of 32 over its rows (column `client`), a perceptron of 64
hidden units, updates weighted by rows, 20 rounds, the accuracy of the held-out rows after the last.
"""

import json
import os
import sys
import time

os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
import torch

ROUNDS, SEED = 20, 1234
torch.set_num_threads(1)


def net():
    torch.manual_seed(SEED)
    return torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 10))


_data = {}


def data():
    if not _data:
        train = np.loadtxt(sys.argv[2], delimiter=",", skiprows=1, dtype=np.int64)
        held_out = np.loadtxt(sys.argv[3], delimiter=",", skiprows=1, dtype=np.int64)
        _data["x"] = torch.tensor(train[:, 1:65] / 16.0, dtype=torch.float32)
        _data["y"] = torch.tensor(train[:, 65])
        _data["clients"] = [torch.tensor(np.where(train[:, 0] == c)[0]) for c in np.unique(train[:, 0])]
        _data["x_eval"] = torch.tensor(held_out[:, :64] / 16.0, dtype=torch.float32)
        _data["y_eval"] = torch.tensor(held_out[:, 64])
    return _data


def local_epoch(model, client):
    d = data()
    rows = d["clients"][client]
    generator = torch.Generator().manual_seed(SEED + client)
    rows = rows[torch.randperm(len(rows), generator=generator)]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for i in range(0, len(rows), 32):
        batch = rows[i : i + 32]
        loss = torch.nn.functional.cross_entropy(model(d["x"][batch]), d["y"][batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return len(rows)


def accuracy(state):
    model = net()
    model.load_state_dict(state)
    with torch.no_grad():
        return float((model(data()["x_eval"]).argmax(1) == data()["y_eval"]).float().mean())


def plain():
    data()
    state = net().state_dict()
    begin, per_round = time.perf_counter(), []
    for _ in range(ROUNDS):
        round_begin = time.perf_counter()
        total, count = None, 0
        for client in range(len(data()["clients"])):
            model = net()
            model.load_state_dict(state)
            rows = local_epoch(model, client)
            count += rows
            total = {
                k: v * rows + (total[k] if total else 0) for k, v in model.state_dict().items()
            }
        state = {k: v / count for k, v in total.items()}
        per_round.append(time.perf_counter() - round_begin)
    return dict(rounds_s=time.perf_counter() - begin, round_median_s=float(np.median(per_round)),
                accuracy=accuracy(state))


def flower():
    from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
    from flwr.clientapp import ClientApp
    from flwr.serverapp import Grid, ServerApp
    from flwr.serverapp.strategy import FedAvg
    from flwr.simulation import run_simulation

    client, server, out = ClientApp(), ServerApp(), {"t": []}
    clients = len(data()["clients"])

    @client.train()
    def train(msg: Message, ctx: Context) -> Message:
        torch.set_num_threads(1)
        model = net()
        model.load_state_dict(msg.content["arrays"].to_torch_state_dict())
        rows = local_epoch(model, int(ctx.node_config["partition-id"]))
        content = RecordDict({"arrays": ArrayRecord(model.state_dict()),
                              "metrics": MetricRecord({"num-examples": rows})})
        return Message(content=content, reply_to=msg)

    @server.main()
    def main(grid: Grid, ctx: Context) -> None:
        def evaluate(rnd, arrays):
            out["accuracy"] = accuracy(arrays.to_torch_state_dict())
            out["t"].append(time.perf_counter())
            return MetricRecord({"accuracy": out["accuracy"]})

        strategy = FedAvg(fraction_train=1.0, fraction_evaluate=0.0, min_train_nodes=clients,
                          min_available_nodes=clients)
        begin = time.perf_counter()
        strategy.start(grid=grid, initial_arrays=ArrayRecord(net().state_dict()),
                       num_rounds=ROUNDS, evaluate_fn=evaluate, train_config=ConfigRecord({}))
        out["rounds_s"] = time.perf_counter() - begin

    begin = time.perf_counter()
    run_simulation(server_app=server, client_app=client, num_supernodes=clients,
                   backend_config={"client_resources": {"num_cpus": 1, "num_gpus": 0.0},
                                   "init_args": {"num_cpus": 2, "include_dashboard": False,
                                                 "log_to_driver": False}})
    return dict(total_s=time.perf_counter() - begin, rounds_s=out["rounds_s"],
                round_median_s=float(np.median(np.diff(out["t"]))), accuracy=out["accuracy"])


if __name__ == "__main__":
    print("RESULT " + json.dumps({"flower": flower, "plain": plain}[sys.argv[1]]()))
