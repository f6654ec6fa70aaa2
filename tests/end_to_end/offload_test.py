"""Weights, states and activations on disk: the same losses, memory as planned, nothing left behind."""

import json
import signal
import subprocess
import unittest

from harness import LLAMA, ROOT, SHOAL, EndToEndTest, environment, start, wait_for

ALL = [
    "zero.offload_optimizer=disk",
    "zero.offload_parameters=disk",
    "training.offload_activations=disk",
]


class OffloadTest(EndToEndTest):
    def test_equals_a_run_in_memory_and_leaves_nothing(self):
        sections = dict(
            model=dict(dtype="bfloat16"),
            optimizer=dict(ema=dict(decay=0.7)),
            eval=dict(steps=3),
            checkpoint=dict(export_hf="final"),
        )
        want = self.train("memory", "-n", 2, **sections)
        got = self.train("disk", "-n", 2, *ALL, **sections)
        self.assert_losses(got, want)
        evals = [[row["eval_loss"] for row in self.metrics(n) if "eval_loss" in row] for n in ("memory", "disk")]
        self.assertEqual(evals[0], evals[1])
        exports = [(self.folder / n / "export/model.safetensors").read_bytes() for n in ("memory", "disk")]
        self.assertEqual(exports[0], exports[1])
        self.assertFalse((self.folder / "disk/offload").exists())

    def test_resumes_after_a_kill_in_any_way(self):
        steps = dict(max_steps=24, global_batch_size=8, gradient_accumulation_steps=1)
        save = dict(save_steps=4, export_hf="never")
        want = self.train("memory", "-n", 2, training=steps, checkpoint=save)
        path = self.write_recipe("killed", training=steps, checkpoint=save)
        folder = self.folder / "killed"
        scratch = self.folder / "scratch"
        arguments = [*ALL, f"run.output_dir={folder}", f"zero.offload_dir={scratch}"]
        process = start("run", path, "-n", 2, *arguments)
        try:
            wait_for(lambda: (folder / "checkpoints/step-4").exists() or process.poll() is not None, 120, "checkpoint")
        finally:
            self.end(process)
        self.assertEqual(process.returncode, -signal.SIGKILL, "the run ended before it was killed")
        self.assertEqual(list(scratch.iterdir()), [])
        # The rest in memory up to step 12, then on disk again.
        self.shoal("run", path, "-n", 2, f"run.output_dir={folder}", "training.max_steps=12")
        self.shoal("run", path, "-n", 2, *arguments)
        self.assert_losses(self.losses("killed"), want)

    def test_memory_and_disk_are_as_planned(self):
        model = dict(dtype="float32", config=dict(LLAMA, num_hidden_layers=6, hidden_size=256, intermediate_size=768))
        training = dict(max_steps=3, global_batch_size=16, gradient_accumulation_steps=2)
        path = self.write_recipe(model=model, training=training)
        peaks = {}
        for name, overrides in (("memory", []), ("states", ALL[:1]), ("weights", ALL[:2]), ("all", ALL)):
            run = self.shoal("run", path, "-n", 2, *overrides, f"run.output_dir={self.folder / name}")
            plan = self.shoal("plan", path, "-n", 2, "--hardware", "h100", "--json", *overrides)
            memory = json.loads(plan)["ranks"][0]["memory_bytes"]
            row = [row for row in self.metrics(name) if "loss" in row][-1]
            peaks[name] = (row["peak_tensor_bytes"], memory["total_estimate"])
            self.assertLess(abs(peaks[name][1] / peaks[name][0] - 1), 0.03, f"{name}: {peaks[name]}")
            if name == "memory":
                self.assertNotIn("on disk", run)
                continue
            self.assertIn(f"in {self.folder / name}/offload", run)
            moved = memory["disk"]["activations_moved_estimate"]
            for way in ("read", "written"):
                want = memory["disk"][way] + moved
                self.assertLessEqual(abs(row[f"offload_bytes_{way}"] - want), 0.05 * moved, f"{name}: {way}")
        # Each thing that goes takes its bytes along.
        self.assertLess(peaks["states"][0], 0.8 * peaks["memory"][0])
        self.assertLess(peaks["all"][0], peaks["states"][0])

    def test_a_folder_that_cannot_be_used(self):
        path = self.write_recipe()
        file = self.folder / "file"
        file.write_text("")
        output = self.shoal("run", path, "-n", 2, *ALL, f"zero.offload_dir={file}", f"run.output_dir={self.folder}/r", expect=None)
        self.assertIn(f"zero.offload_dir: rank 0: {file} is a file, not a folder", output)

    def test_a_disk_that_fills_up(self):
        disk = self.folder / "disk"
        disk.mkdir()
        # A file system of 1 MiB, which this process and those below it see.
        mounted = ["unshare", "-rm", "sh", "-c", f'mount -t tmpfs -o size=1m none {disk} && exec "$@"', "sh"]
        if subprocess.run([*mounted, "true"], stderr=subprocess.DEVNULL).returncode != 0:
            self.skipTest("mounts are not allowed here")
        model = dict(config=dict(LLAMA, hidden_size=128, intermediate_size=256))

        def run(name, **sections):
            path = self.write_recipe(name, model=model, **sections)
            command = [*mounted, SHOAL, "run", path, "-n", 2, f"zero.offload_dir={disk}"]
            command.append(f"run.output_dir={self.folder}/{name}")
            done = subprocess.run(
                [*map(str, command)],
                cwd=ROOT,
                env=environment(),
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                timeout=300,
            )
            self.assertNotEqual(done.returncode, 0, done.stdout)
            return done.stdout

        # States have their room reserved, activations have not.
        output = run("states", zero=dict(stage=3, offload_optimizer="disk"))
        self.assertRegex(output, "zero.offload_dir: rank [01]: cannot reserve [0-9]+ bytes for scratch in .*disk")
        self.assertFalse((self.folder / "states/metrics.jsonl").exists() and self.metrics("states"))
        training = dict(global_batch_size=64, max_steps=2, offload_activations="disk")
        output = run("activations", training=training)
        self.assertRegex(output, "cannot write [0-9]+ bytes to scratch in .*disk: No space left on device")


if __name__ == "__main__":
    unittest.main()
