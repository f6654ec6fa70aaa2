"""Routers whose biases balance, through the whole program: trained, resumed, exported, refused."""

import json
import struct
import unittest

from harness import DOTS1, LLAMA, EndToEndTest

BIAS = "e_score_correction_bias"


def tensors_of(path):
    """name -> (dtype, numbers) of the float32 tensors of a safetensors file, others without numbers."""
    data = path.read_bytes()
    end = 8 + struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8:end])
    header.pop("__metadata__", None)
    found = {}
    for name, entry in header.items():
        first, last = entry["data_offsets"]
        part = data[end + first : end + last]
        numbers = struct.unpack(f"<{len(part) // 4}f", part) if entry["dtype"] == "F32" else ()
        found[name] = (entry["dtype"], numbers)
    return found


class ExpertsTest(EndToEndTest):
    def model(self, **keys):
        return dict(dtype="float32", config=DOTS1, **keys)

    def biases(self, name):
        tensors = tensors_of(self.folder / name / "export" / "model.safetensors")
        return {key: value for key, value in tensors.items() if key.endswith(BIAS)}

    def test_biases_balance_and_are_exported_in_float32(self):
        steps = dict(max_steps=60, global_batch_size=8, gradient_accumulation_steps=1)
        loads = {}
        for rate in (0, 0.01):
            name = f"rate{rate}"
            self.train(
                name,
                "-n",
                2,
                "parallelism.expert_parallel=2",
                model=dict(dtype="bfloat16", config=DOTS1),
                training=steps,
                moe=dict(bias_update_rate=rate),
                checkpoint=dict(export_hf="final"),
            )
            rows = [row for row in self.metrics(name) if "expert_load_max" in row]
            loads[rate] = sum(row["expert_load_max"] for row in rows[-10:]) / 10
        self.assertLess(loads[0.01] - 1, 0.7 * (loads[0] - 1))
        for dtype, numbers in self.biases("rate0").values():
            self.assertEqual((dtype, set(numbers)), ("F32", {0.0}))
        biases = self.biases("rate0.01")
        self.assertEqual(len(biases), 2)  # The first layer is dense
        for dtype, numbers in biases.values():
            self.assertEqual(dtype, "F32")
            self.assertGreater(max(map(abs, numbers)), 0.02)
            for number in numbers:
                self.assertAlmostEqual(number / 0.01, round(number / 0.01), places=3)

    def test_biases_are_resumed_on_another_mesh(self):
        model = dict(dtype="float64", config=DOTS1)
        steps = dict(max_steps=12, global_batch_size=8, gradient_accumulation_steps=1)
        sections = dict(
            model=model,
            training=steps,
            moe=dict(bias_update_rate=0.01),
            checkpoint=dict(export_hf="final", save_steps=6),
        )
        want = self.train("whole", "-n", 1, **sections)
        path = self.write_recipe("moved", **sections)
        output = f"run.output_dir={self.folder / 'moved'}"
        self.shoal(
            "run", path, "-n", 4, "parallelism.tensor_parallel=2", "training.max_steps=6", output
        )
        self.shoal("run", path, "-n", 2, "parallelism.expert_parallel=2", "zero.stage=1", output)
        self.assert_losses(self.losses("moved"), want, relative=1e-10)
        self.assertEqual(self.biases("moved"), self.biases("whole"))

    def test_parity_sees_equal_biases(self):
        recipe = self.write_recipe(
            model=dict(dtype="float64", config=DOTS1), moe=dict(bias_update_rate=0.01)
        )
        output = self.shoal(
            "parity",
            recipe,
            *("-n", 1, "--ranks-b", 4, "--a", "zero.stage=0"),
            *("--b", "zero.stage=2", "parallelism.expert_parallel=2"),
            "parallelism.tensor_parallel=2",
        )
        self.assertRegex(output.strip().splitlines()[-1], r"^equal within 1e-10 over 3 steps")

    def test_a_model_without_biases_refuses_the_rate(self):
        path = self.write_recipe(model=dict(config=LLAMA), moe=dict(bias_update_rate=0.01))
        for command in ("run", "plan"):
            output = self.shoal(command, path, "-n", 1, expect=None)
            self.assertRegex(
                output,
                r"moe\.bias_update_rate: got 0\.01, but the routers of family llama have no bias, "
                r"expected 0",
            )


if __name__ == "__main__":
    unittest.main()
