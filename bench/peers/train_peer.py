"""One rank of one peer: trains the workload and writes what it measured. Started by run.py."""

import argparse
import contextlib
import json
import os
import time

parser = argparse.ArgumentParser()
parser.add_argument("--peer", required=True)
parser.add_argument("--size", required=True)
parser.add_argument("--dtype", choices=["float32", "bfloat16"], required=True)
parser.add_argument("--steps", type=int, required=True)
parser.add_argument("--threads", type=int, required=True)
parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu", help="of peer pytorch")
parser.add_argument("--work", required=True, help="folder that workload.prepare() filled")
parser.add_argument("--out", required=True, help="folder for rank<i>.json and the file first_step")
args = parser.parse_args()

import torch  # noqa: E402
import torch.distributed as dist  # noqa: E402
from transformers import LlamaForCausalLM  # noqa: E402

import workload  # noqa: E402

torch.set_num_threads(args.threads)
SIZE = workload.SIZES[args.size]
RANK, WORLD = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
BF16 = args.dtype == "bfloat16"


def load_model():
    folder = workload.model_folder(args.work, args.size)
    return LlamaForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="sdpa"
    ).train()


def adamw(model):
    return torch.optim.AdamW(model.parameters(), fused=True, **workload.ADAMW)


def plain_step(model, optimizer, context):
    def step(rows):
        with context():
            loss = model(input_ids=rows, labels=rows).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    return step


def autocast():
    return torch.autocast(args.device, torch.bfloat16) if BF16 else contextlib.nullcontext()


def single():
    model = load_model().to(args.device)
    return plain_step(model, adamw(model), autocast)


def ddp():
    dist.init_process_group("gloo")
    model = torch.nn.parallel.DistributedDataParallel(load_model(), gradient_as_bucket_view=True)
    return plain_step(model, adamw(model), autocast)


def zero_redundancy():
    from torch.distributed.optim import ZeroRedundancyOptimizer

    dist.init_process_group("gloo")
    model = torch.nn.parallel.DistributedDataParallel(load_model(), gradient_as_bucket_view=True)
    optimizer = ZeroRedundancyOptimizer(
        model.parameters(), optimizer_class=torch.optim.AdamW, fused=True, **workload.ADAMW
    )
    return plain_step(model, optimizer, autocast)


def fsdp2(reshard_after_forward):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    dist.init_process_group("gloo")
    options = dict(
        mesh=init_device_mesh("cpu", (WORLD,)), reshard_after_forward=reshard_after_forward
    )
    if BF16:
        options["mp_policy"] = MixedPrecisionPolicy(
            param_dtype=torch.bfloat16, reduce_dtype=torch.float32
        )
    model = load_model()
    for layer in model.model.layers:
        fully_shard(layer, **options)
    fully_shard(model, **options)
    return plain_step(model, adamw(model), contextlib.nullcontext)


def deepspeed(stage):
    import deepspeed as ds

    ds.init_distributed("gloo")
    model = load_model()
    config = {
        "train_micro_batch_size_per_gpu": SIZE["batch"] // WORLD,
        "zero_optimization": {"stage": stage},
        "zero_allow_untested_optimizer": True,
        "gradient_clipping": 0.0,
        "steps_per_print": 10**9,
        "bf16": {"enabled": BF16},
    }
    engine, *_ = ds.initialize(
        model=model, model_parameters=model.parameters(), optimizer=adamw(model), config=config
    )

    def step(rows):
        loss = engine(input_ids=rows, labels=rows).loss
        engine.backward(loss)
        engine.step()
        return loss.detach()

    return step


def torch_tensor():
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Replicate
    from torch.distributed.tensor.parallel import (
        ColwiseParallel,
        RowwiseParallel,
        parallelize_module,
    )

    dist.init_process_group("gloo")
    model = load_model()
    mesh = init_device_mesh("cpu", (WORLD,))
    for layer in model.model.layers:
        plan = {f"self_attn.{name}_proj": ColwiseParallel() for name in "qkv"}
        plan |= {f"mlp.{name}_proj": ColwiseParallel() for name in ("gate", "up")}
        plan |= {"self_attn.o_proj": RowwiseParallel(), "mlp.down_proj": RowwiseParallel()}
        parallelize_module(layer, mesh, plan)
    parallelize_module(
        model,
        mesh,
        {
            "model.embed_tokens": RowwiseParallel(input_layouts=Replicate()),
            "lm_head": ColwiseParallel(output_layouts=Replicate()),
        },
    )
    # Sharded and whole weights cannot share a foreach or fused call.
    parameters = {}
    for parameter in model.parameters():
        parameters.setdefault(type(parameter), []).append(parameter)
    optimizers = [torch.optim.AdamW(p, fused=True, **workload.ADAMW) for p in parameters.values()]

    def step(rows):
        with autocast():
            loss = model(input_ids=rows, labels=rows).loss
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    return step


def torch_pipeline():
    from torch.distributed.pipelining import PipelineStage, Schedule1F1B

    dist.init_process_group("gloo")
    model = load_model()
    layers = len(model.model.layers)

    class Stage(torch.nn.Module):
        def __init__(self):
            super().__init__()
            first, last = RANK * layers // WORLD, (RANK + 1) * layers // WORLD
            self.embedding = model.model.embed_tokens if RANK == 0 else None
            self.layers = torch.nn.ModuleList(model.model.layers[first:last])
            self.norm = model.model.norm if RANK == WORLD - 1 else None
            self.head = model.lm_head if RANK == WORLD - 1 else None
            self.rotary = model.model.rotary_emb

        def forward(self, x):
            with autocast():
                if self.embedding is not None:
                    x = self.embedding(x)
                places = torch.arange(x.shape[1]).unsqueeze(0)
                rotary = self.rotary(x, places)
                for layer in self.layers:
                    x = layer(x, position_ids=places, position_embeddings=rotary)
                return x if self.head is None else self.head(self.norm(x))

    def loss(logits, rows):
        logits, rows = logits[:, :-1].float(), rows[:, 1:]
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1), rows.flatten())

    module = Stage()
    micro_batches = min(SIZE["batch"], workload.PIPELINE_MICRO_BATCHES)
    schedule = Schedule1F1B(
        PipelineStage(module, RANK, WORLD, torch.device("cpu")), micro_batches, loss_fn=loss
    )
    optimizer = adamw(module)

    def step(rows):
        losses = []
        if RANK == 0:
            schedule.step(rows)
        else:
            schedule.step(target=rows, losses=losses)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        # run.py takes the mean over the ranks.
        return WORLD * torch.stack(losses).mean() if losses else torch.zeros(())

    return step


PEERS = {
    "pytorch": single,
    "ddp": ddp,
    "zero_redundancy": zero_redundancy,
    "fsdp2_zero2": lambda: fsdp2(reshard_after_forward=False),
    "fsdp2_zero3": lambda: fsdp2(reshard_after_forward=True),
    "deepspeed_zero1": lambda: deepspeed(1),
    "deepspeed_zero2": lambda: deepspeed(2),
    "deepspeed_zero3": lambda: deepspeed(3),
    "torch_tensor": torch_tensor,
    "torch_pipeline": torch_pipeline,
}


def peak_rss_bytes():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM:"))


def main():
    step = PEERS[args.peer]()
    rows = torch.tensor(workload.read_tokens(args.work, args.size)).to(args.device)
    # Ranks that share the model read the same rows.
    shares_model = args.peer in ("torch_tensor", "torch_pipeline")
    share = SIZE["batch"] if shares_model else SIZE["batch"] // WORLD
    seconds, losses = [], []
    for index in range(args.steps):
        first = index * SIZE["batch"] + (0 if shares_model else RANK * share)
        if WORLD > 1:
            dist.barrier()
        start = time.perf_counter()
        losses.append(step(rows[first : first + share]))
        if args.device == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
        if index == 0 and RANK == 0:
            open(os.path.join(args.out, "first_step"), "w").close()
    result = dict(
        losses=[float(loss) for loss in losses],
        step_seconds=seconds,
        peak_rss_bytes=peak_rss_bytes(),
    )
    with open(os.path.join(args.out, f"rank{RANK}.json"), "w") as file:
        json.dump(result, file)
    # Not through destroy_process_group, which was seen to wait for a rank that had left.
    os._exit(0)


main()
