"""Recipes with profiling: a trace of all ranks, a table, a row of metrics; the same losses."""

import json
import unittest

from harness import ROOT, EndToEndTest

PROFILING = dict(start_step=3, steps=2)
TRAINING = dict(max_steps=4, global_batch_size=8, gradient_accumulation_steps=1)
MESHES = [
    (1, [], "forward layer 1"),
    (2, ["zero.stage=3", "zero.overlap_comm=true"], "gather weights layer 1"),
    (2, ["comm.transport=mpi", "zero.stage=2", "zero.overlap_comm=true"], "reduce-scatter"),
    (2, ["comm.transport=mpi", "parallelism.pipeline_parallel=2", "zero.stage=0"], "receive"),
    (4, ["parallelism.tensor_parallel=2", "parallelism.pipeline_parallel=2"], "receive"),
]


class ProfileTest(EndToEndTest):
    def trace(self, name, steps):
        return json.loads((self.folder / name / f"trace-{steps}.json").read_text())

    def row(self, name):
        rows = (self.folder / name / "metrics.jsonl").read_text().splitlines()
        found = [row for row in map(json.loads, rows) if "profile_rank0_seconds" in row]
        self.assertTrue(found, rows)
        return found[-1]

    def check(self, name, steps, ranks):
        """What holds of any trace; its spans."""
        trace, row = self.trace(name, steps), self.row(name)
        spans = [event for event in trace["traceEvents"] if event["ph"] == "X"]
        self.assertEqual({span["pid"] for span in spans}, set(range(ranks)))
        for rank in range(ranks):
            profile = trace["otherData"]["ranks"][rank]
            self.assertAlmostEqual(
                sum(profile["seconds_by_kind"].values()), profile["seconds"], delta=1e-9
            )
            prefix = f"profile_rank{rank}_"
            self.assertEqual(row[prefix + "seconds"], profile["seconds"])
            self.assertEqual(row[prefix + "waiting_seconds"], profile["seconds_by_kind"]["waiting"])
            self.assertGreater(row[prefix + "products_of_peak"], 0)
            # Processes of one host share a clock, so ranks leave a barrier at one time.
            window = [s for s in spans if s["pid"] == rank and s["name"] == "recorded"]
            self.assertEqual(len(window), 1)
            self.assertLess(window[0]["ts"], 50e3, "rank begins 50 ms after rank 0")
        return spans

    def test_meshes_of_processes(self):
        for i, (ranks, overrides, wanted) in enumerate(MESHES):
            with self.subTest(ranks=ranks, overrides=overrides):
                plain = self.train(f"plain{i}", "-n", ranks, *overrides, training=TRAINING)
                name = f"profiled{i}"
                losses = self.train(
                    name, "-n", ranks, *overrides, training=TRAINING, profiling=PROFILING
                )
                self.assertEqual(losses, plain)
                spans = self.check(name, "3-4", ranks)
                self.assertIn(wanted, {span["name"] for span in spans})
                for step in ("step 3", "step 4", "optimizer", "gradient norm", "data"):
                    count = sum(span["name"] == step for span in spans)
                    self.assertEqual(count, ranks if "step" in step else 2 * ranks, step)

    def test_hooks_belong_to_the_window_and_the_table_is_logged(self):
        path = self.write_recipe(
            "hooks",
            training=TRAINING,
            profiling=PROFILING,
            eval=dict(steps=4),
            checkpoint=dict(save_steps=2, export_hf="never"),
        )
        output = self.shoal("run", path, "-n", 2, f"run.output_dir={self.folder / 'hooks'}")
        self.assertRegex(output, r"profile   steps 3 to 4: .*/trace-3-4.json\n")
        self.assertRegex(output, r"rank 1 waited \d+\.\d\d s of \d+\.\d\d s")
        names = [span["name"] for span in self.check("hooks", "3-4", 2)]
        self.assertEqual(names.count("evaluation"), 2)
        self.assertEqual(names.count("checkpoint"), 2)

    def test_a_resumed_run_counts_from_where_it_resumes(self):
        save = dict(save_steps=2, export_hf="never")
        path = self.write_recipe("run", training=TRAINING, profiling=PROFILING, checkpoint=save)
        out = f"run.output_dir={self.folder / 'run'}"
        self.shoal("run", path, "-n", 2, out)
        self.check("run", "3-4", 2)
        self.shoal("run", path, "-n", 2, out, "training.max_steps=9")
        self.check("run", "7-8", 2)
        self.assertTrue((self.folder / "run/trace-3-4.json").exists())
        output = self.shoal("run", path, "-n", 2, out, "training.max_steps=10")
        self.assertIn("profile   nothing: the run ended after 1 steps", output)

    def test_federated_rounds_are_recorded(self):
        path = self.write_recipe(
            "rounds",
            training=dict(TRAINING, max_grad_norm=1),
            optimizer=dict(name="sgd", learning_rate=0.5, weight_decay=0),
            zero=dict(stage=0),
            data=dict(
                train=[dict(path=str(ROOT / b)) for b in ("README.md", "docs/recipes.md")],
            ),
            federated=dict(local_steps=2),
            profiling=PROFILING,
        )
        whole = json.loads(path.read_text())
        whole["task"] = "federated"
        path.write_text(json.dumps(whole))
        self.shoal("run", path, "-n", 2, f"run.output_dir={self.folder / 'rounds'}")
        names = [span["name"] for span in self.check("rounds", "3-4", 2)]
        self.assertEqual(names.count("round 3"), 2)
        self.assertEqual(names.count("round 4"), 2)
        self.assertIn("forward layer 0", names)


if __name__ == "__main__":
    unittest.main()
