"""The recipes of other tests on an NVIDIA GPU beside the CPU. Skipped, saying so, where there is none.

Several ranks share one GPU if there are no more: what they send then passes through host memory.
"""

import ctypes
import json
import math
import unittest

from harness import GPT2, LLAMA, EndToEndTest


def why_no_gpu():
    """None, or why the driver gives no GPU."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return "no NVIDIA driver (libcuda.so.1) here"
    count = ctypes.c_int()
    code = driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count))
    if code != 0:
        return f"the NVIDIA driver answers with error {code}"
    return None if count.value > 0 else "the NVIDIA driver finds no GPU"


MISSING = why_no_gpu()
GPU, CPU = "run.device=cuda", "run.device=cpu"


@unittest.skipIf(MISSING, MISSING)
class GpuTest(EndToEndTest):
    def assert_close(self, got, want, difference):
        self.assertEqual(sorted(got), sorted(want))
        for step in sorted(want):
            self.assertLessEqual(abs(got[step] - want[step]), difference, f"step {step}")

    def compare(self, name, *overrides, difference=1e-3, ranks=1, **sections):
        """Losses of so many ranks on GPUs, which must be those of one rank on the CPU."""
        want = self.train(f"{name}-cpu", "-n", 1, CPU, **sections)
        got = self.train(f"{name}-gpu", "-n", ranks, GPU, *overrides, **sections)
        self.assert_close(got, want, difference)
        return got

    def test_losses_of_fifty_steps(self):
        for name, config in (("llama", LLAMA), ("gpt2", GPT2)):
            losses = self.compare(
                name, model=dict(dtype="float32", config=config), training=dict(max_steps=50)
            )
            self.assertLess(losses[50], losses[1])

    def test_dropout_drops_the_same(self):
        config = dict(GPT2, resid_pdrop=0.1, embd_pdrop=0.1, attn_pdrop=0.1)
        self.compare("dropout", model=dict(config=config))

    def test_float64_equals_the_cpu(self):
        self.compare("float64", model=dict(dtype="float64"), difference=1e-10)

    def test_half_precision(self):
        for dtype in ("bfloat16", "float16"):
            losses = self.compare(dtype, model=dict(dtype=dtype), difference=3e-2)
            self.assertTrue(all(math.isfinite(loss) for loss in losses.values()))

    def test_optimizers(self):
        for name in ("sgd", "lion", "adafactor", "muon"):
            self.compare(name, optimizer=dict(name=name, learning_rate=1e-3))

    def test_ranks_on_gpus_give_what_one_cpu_gives(self):
        batch = dict(max_steps=6, global_batch_size=8, gradient_accumulation_steps=2)
        for name, ranks, overrides in (
            ("zero0", 2, ["zero.stage=0"]),
            ("zero1", 2, ["zero.stage=1"]),
            ("zero2", 2, ["zero.stage=2"]),
            ("zero3", 2, ["zero.stage=3"]),
            ("overlap", 2, ["zero.stage=3", "zero.overlap_comm=true"]),
            ("tensor", 2, ["parallelism.tensor_parallel=2"]),
            ("pipeline", 2, ["parallelism.pipeline_parallel=2"]),
            ("ring", 2, ["parallelism.context_parallel=2"]),
            ("ulysses", 2, ["parallelism.context_parallel=2", "parallelism.context_method=ulysses"]),
            ("recompute", 2, ["training.activation_checkpointing=full"]),
            ("mpi", 2, ["comm.transport=mpi"]),
        ):
            with self.subTest(name):
                self.compare(name, *overrides, ranks=ranks, training=batch, difference=1e-4)

    def test_offloading(self):
        everything = [
            f"{key}={{0}}"
            for key in (
                "zero.offload_optimizer",
                "zero.offload_parameters",
                "training.offload_activations",
            )
        ]
        for place in ("host", "disk"):
            for name, ranks, overrides in (
                ("optimizer", 1, everything[:1]),
                ("all", 1, ["zero.stage=3", *everything]),
                ("two", 2, ["zero.stage=3", *everything]),
            ):
                with self.subTest(place=place, name=name):
                    overrides = [override.format(place) for override in overrides]
                    self.compare(f"{place}-{name}", *overrides, ranks=ranks, difference=1e-4)

    def test_checkpoints_go_from_the_cpu_to_the_gpu_and_back(self):
        want = self.train("whole", "-n", 1, CPU, training=dict(max_steps=9))
        for name, devices in (("to-gpu", [CPU, GPU, GPU]), ("to-cpu", [GPU, CPU, CPU])):
            got = {}
            for end, device in zip((3, 6, 9), devices):
                got = self.train(name, "-n", 1, device, training=dict(max_steps=end))
            self.assert_close(got, want, 1e-4)

    def test_generates_and_scores_what_the_cpu_does(self):
        self.train(
            "base",
            "-n",
            1,
            CPU,
            model=dict(dtype="float64"),
            checkpoint=dict(export_hf="final"),
        )
        export = self.folder / "base/export"
        tokens = self.folder / "tokens.json"
        tokens.write_text(json.dumps({"input_ids": [list(range(5, 45)), [7, 9, 11]]}))

        def texts(*arguments):
            """On the CPU and on the GPU, the line of statistics left out."""
            for device in ("cpu", "cuda"):
                text = self.shoal(*arguments, "--dtype", "float64", "--device", device)
                yield text.rpartition("\n")[0].rpartition("\n")[0]

        prompt = ("generate", export, "--prompt", "The License", "--max-new-tokens", 30)
        for more in (
            ("--temperature", 0),
            ("--temperature", 0.8, "--num-samples", 3),
            ("--num-beams", 3),
        ):
            want, got = texts(*prompt, *more)
            self.assertEqual(got, want)
        scores = [
            json.loads(self.shoal("score", export, "--file", tokens, "--device", device))["logprobs"]
            for device in ("cpu", "cuda")
        ]
        for want, got in zip(*scores):
            for a, b in zip(want, got, strict=True):
                self.assertAlmostEqual(a, b, places=4)

    def test_memory_is_as_planned(self):
        path = self.write_recipe("memory", run=dict(deterministic=False))
        folder = self.folder / "memory"
        self.shoal("run", path, GPU, f"run.output_dir={folder}")
        rows = [row for row in self.metrics("memory") if "peak_tensor_bytes" in row]
        self.assertGreater(rows[-1]["peak_tensor_bytes"], 0)


if __name__ == "__main__":
    unittest.main()
