"""Every optimizer from a recipe, groups of weights, and the running mean of the weights."""

import json
import struct
import unittest

from harness import EndToEndTest

GROUPS = [
    {"pattern": "embed_tokens", "learning_rate_multiplier": 0.3, "weight_decay": 0},
    {"pattern": "layernorm|norm\\.weight", "weight_decay": 0.2},
]


def tensors(path):
    """Name -> bytes of a safetensors file."""
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    header.pop("__metadata__", None)
    return {
        name: data[8 + length + entry["data_offsets"][0] : 8 + length + entry["data_offsets"][1]]
        for name, entry in header.items()
    }


class OptimizersTest(EndToEndTest):
    def test_ranks_equal_one_process(self):
        rates = {"lion": 1e-3, "adafactor": 3e-2, "muon": 3e-3, "adamw_8bit": 3e-3}
        for rule, rate in rates.items():
            sections = dict(
                model=dict(dtype="float64"),
                optimizer=dict(name=rule, learning_rate=rate, groups=GROUPS, ema=dict(decay=0.5)),
            )
            one = self.train(f"{rule}-1", "-n", 1, "zero.stage=0", **sections)
            self.assertLess(one[6], one[1], rule)
            two = self.train(f"{rule}-2", "-n", 2, "zero.stage=3", **sections)
            self.assert_losses(two, one, relative=1e-10)
            tensor = self.train(f"{rule}-t", "-n", 2, "parallelism.tensor_parallel=2", "zero.stage=1", **sections)
            self.assert_losses(tensor, one, relative=1e-10)

    def test_the_mean_is_evaluated_and_exported(self):
        def run(name, **ema):
            optimizer = dict(name="adamw", learning_rate=3e-3, ema=dict(decay=0.7, **ema))
            losses = self.train(name, "-n", 1, optimizer=optimizer, checkpoint=dict(export_hf="final"))
            rows = self.metrics(name)
            saved = tensors(self.folder / name / "checkpoints/step-6/rank-00000.safetensors")
            return losses, [row["eval_loss"] for row in rows if "eval_loss" in row][-1], saved

        def exported(name):
            return tensors(self.folder / name / "export/model.safetensors")["model.norm.weight"]

        mean_losses, mean_loss, saved = run("mean")
        self.assertEqual(exported("mean"), saved["ema/model.norm.weight"])
        self.assertNotEqual(exported("mean"), saved["weights/model.norm.weight"])
        losses, loss, saved = run("plain", use_for_eval=False, use_for_export=False)
        self.assertEqual(exported("plain"), saved["weights/model.norm.weight"])
        self.assertEqual(losses, mean_losses)
        self.assertNotEqual(loss, mean_loss)

    def test_a_group_without_a_weight_is_refused(self):
        path = self.write_recipe(optimizer=dict(groups=[dict(pattern="model.norm.wieght", weight_decay=0)]))
        for command in (["run", path, "-n", 2, f"run.output_dir={self.folder}/run"], ["plan", path, "-n", 2]):
            output = self.shoal(*command, expect=None)
            self.assertIn("optimizer.groups.0.pattern", output)
            self.assertIn('did you mean "model.norm.weight"?', output)


if __name__ == "__main__":
    unittest.main()
