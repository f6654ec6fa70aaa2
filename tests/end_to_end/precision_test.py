"""Number formats from a recipe: split master weights, float16 with a loss scale, what is sent as int8."""

import json
import math
import re
import struct
import unittest

from harness import GPT2, EndToEndTest


class PrecisionTest(EndToEndTest):
    def plan(self, path, *arguments):
        return json.loads(self.shoal("plan", path, "--hardware", "h100", "--json", *arguments))

    def bytes_held(self, name, path, *arguments):
        """What rank 0 is planned to hold of master weights, and what the run says of it."""
        planned = self.plan(path, *arguments)["ranks"][0]["memory_bytes"]["master_weights"]
        output = self.shoal("run", path, *arguments, f"run.output_dir={self.folder / name}")
        return planned, re.search(r"master weights ([\d.]+ \w+)", output).group(1)

    def test_split_master_weights_take_the_same_steps(self):
        for stage, ranks in ((0, 1), (1, 2), (3, 2)):
            name = f"split-{stage}"
            sections = dict(
                model=dict(dtype="bfloat16"),
                zero=dict(stage=stage),
                checkpoint=dict(save_steps=3, export_hf="final"),
            )
            whole = self.train(name + "-whole", "-n", ranks, **sections)
            split = self.train(name, "-n", ranks, "optimizer.master_weights=split", **sections)
            self.assertEqual(split, whole)
            exports = [self.folder / n / "export/model.safetensors" for n in (name, name + "-whole")]
            self.assertEqual(exports[0].read_bytes(), exports[1].read_bytes())
            path = self.write_recipe(name, **sections)
            planned, said = self.bytes_held(name + "-held", path, "-n", ranks)
            halved, said_halved = self.bytes_held(name + "-halved", path, "-n", ranks, "optimizer.master_weights=split")
            self.assertEqual(2 * halved, planned)
            self.assertNotEqual(said, said_halved)

    def test_split_and_whole_master_weights_go_on_from_one_another(self):
        sections = dict(model=dict(dtype="bfloat16"), zero=dict(stage=2), checkpoint=dict(save_steps=3))
        whole = self.train("whole", "-n", 2, **sections)
        for first, second in (("float32", "split"), ("split", "float32")):
            name = f"{first}-{second}"
            self.train(name, "-n", 2, "training.max_steps=3", f"optimizer.master_weights={first}", **sections)
            losses = self.train(name, "-n", 2, f"optimizer.master_weights={second}", **sections)
            self.assertEqual(losses, whole)

    def scales(self, name):
        return [(row["loss_scale"], row.get("skipped", 0)) for row in self.metrics(name) if "loss" in row]

    FLOAT16 = dict(
        model=dict(dtype="float16"),
        training=dict(
            max_steps=24,
            global_batch_size=8,
            gradient_accumulation_steps=1,
            loss_scaling=dict(initial_scale=2.0**26, growth_interval=5),
        ),
    )

    def test_float16_finds_its_scale_and_learns(self):
        exact = self.train("exact", "-n", 1, model=dict(dtype="float32"), training=dict(max_steps=24))
        path = self.write_recipe("half", **self.FLOAT16)
        output = self.shoal("run", path, "-n", 2, f"run.output_dir={self.folder / 'half'}", "checkpoint.export_hf=final")
        scales = self.scales("half")
        self.assertEqual(scales[0], (2.0**26, 1))
        self.assertRegex(output, r"loss scale 6.71089e\+07 -> 3.35544e\+07 \(step 1 overflowed and is skipped\)")
        skipped = sum(skip for _, skip in scales)
        self.assertGreater(skipped, 0)
        self.assertLess(skipped, 15)
        for (scale, skip), (after, _) in zip(scales, scales[1:]):
            self.assertIn(after / scale, (0.5,) if skip else (1, 2))
        self.assertIn(2, [after / scale for (scale, _), (after, _) in zip(scales, scales[1:])])
        losses = self.losses("half")
        self.assertEqual(len(losses), 24)
        # Skipped steps learn nothing: step s + skipped is where the exact run was after s.
        self.assertLess(losses[24], exact[24 - skipped - 3] + 0.05)
        config = json.loads((self.folder / "half/export/config.json").read_text())
        self.assertEqual(config.get("dtype", config.get("torch_dtype")), "float16")
        header = (self.folder / "half/export/model.safetensors").read_bytes()
        (length,) = struct.unpack("<Q", header[:8])
        self.assertEqual(json.loads(header[8 : 8 + length])["model.norm.weight"]["dtype"], "F16")
        text = self.shoal(
            "generate", self.folder / "half/export", "--prompt", "The", "--max-new-tokens", 8, "--temperature", 0,
            "--dtype", "float16",
        )
        self.assertTrue(text.startswith("The"), text)

    def test_float16_learns_the_same_on_every_mesh(self):
        steady = "training.loss_scaling.growth_interval=2000"
        losses = self.train("one", "-n", 1, steady, "zero.stage=0", **self.FLOAT16)
        for ranks, overrides in (
            (2, ["zero.stage=3"]),
            (2, ["zero.stage=2", "training.gradient_accumulation_steps=2"]),
            (2, ["zero.stage=0", "parallelism.tensor_parallel=2"]),
            (2, ["run.deterministic=false"]),
            (4, ["parallelism.pipeline_parallel=2", "training.gradient_accumulation_steps=2"]),
        ):
            name = "-".join([str(ranks), *overrides])
            got = self.train(name, "-n", ranks, steady, *overrides, **self.FLOAT16)
            self.assertEqual(self.scales(name), self.scales("one"), name)
            self.assert_losses(got, losses, relative=5e-3)

    def test_float16_goes_on_with_its_scale(self):
        sections = dict(self.FLOAT16, checkpoint=dict(save_steps=6))
        whole = self.train("whole", "-n", 2, **sections)
        self.train("cut", "-n", 2, "training.max_steps=18", **sections)
        losses = self.train("cut", "-n", 2, **sections)
        self.assertEqual(losses, whole)
        self.assertEqual(self.scales("cut"), self.scales("whole"))

    def test_float16_ends_below_the_smallest_scale(self):
        path = self.write_recipe("small", **self.FLOAT16)
        output = self.shoal(
            "run", path, "-n", 2, f"run.output_dir={self.folder / 'small'}",
            "training.loss_scaling.initial_scale=1e30", "training.loss_scaling.min_scale=1e29", expect=None,
        )
        self.assertIn("half of which is below training.loss_scaling.min_scale 1e+29", output)
        self.assertEqual(output.count("half of which is below"), 1, output)

    def test_what_is_sent_as_int8_is_counted_and_said(self):
        batch = dict(max_steps=12, global_batch_size=8, gradient_accumulation_steps=2)
        for dtype in ("float32", "bfloat16"):
            sections = dict(model=dict(dtype=dtype, config=GPT2), training=batch, zero=dict(stage=3))
            exact = self.train(f"exact-{dtype}", "-n", 2, **sections)
            sent = [row["bytes_sent"] for row in self.metrics(f"exact-{dtype}") if "loss" in row][-1]
            for keys in (["quantized_weights"], ["quantized_gradients"], ["quantized_weights", "quantized_gradients"]):
                name = "-".join([dtype, *keys])
                path = self.write_recipe(name, **sections)
                overrides = ["-n", 2, *(f"zero.{key}=true" for key in keys)]
                output = self.shoal("run", path, *overrides, f"run.output_dir={self.folder / name}")
                self.assertIn("each off by up to 1/254 of the largest of its block of 256", output)
                row = [row for row in self.metrics(name) if "loss" in row][-1]
                self.assertEqual(self.plan(path, *overrides)["ranks"][0]["sent_bytes"]["total"], row["bytes_sent"])
                self.assertLess(row["bytes_sent"], sent)
                losses = self.losses(name)
                self.assertLess(max(abs(losses[s] - exact[s]) for s in exact), 0.03)
                self.assertTrue(math.isfinite(losses[12]))


if __name__ == "__main__":
    unittest.main()
