"""A run that was killed goes on as if nothing had happened."""

import signal
import unittest

from harness import EndToEndTest, start, wait_for


class ResumeTest(EndToEndTest):
    STEPS = dict(max_steps=40, global_batch_size=8, gradient_accumulation_steps=1)
    SAVE = dict(save_steps=8, export_hf="never")

    def killed_run(self, name, ranks):
        """Starts a run and ends all its processes with SIGKILL once it has a checkpoint."""
        path = self.write_recipe(name, training=self.STEPS, checkpoint=self.SAVE)
        process = start("run", path, "-n", ranks, f"run.output_dir={self.folder / name}")
        try:
            wait_for(
                lambda: (self.folder / name / "checkpoints/step-8").exists()
                or process.poll() is not None,
                120,
                "first checkpoint",
            )
        finally:
            self.end(process)
        self.assertEqual(process.returncode, -signal.SIGKILL, "the run ended before it was killed")
        return path

    def test_resumed_losses_equal_uninterrupted_ones(self):
        want = self.train("whole", "-n", 2, training=self.STEPS, checkpoint=self.SAVE)
        path = self.killed_run("killed", 2)
        output = self.shoal("run", path, "-n", 2, f"run.output_dir={self.folder / 'killed'}")
        self.assertIn("step-", output, "a resumed run says from where")
        self.assert_losses(self.losses("killed"), want)

    def test_resumes_on_another_number_of_ranks(self):
        want = self.train("whole", "-n", 2, training=self.STEPS, checkpoint=self.SAVE)
        path = self.killed_run("killed", 2)
        self.shoal(
            "run",
            path,
            "-n",
            3,
            "training.global_batch_size=8",
            "training.per_device_train_batch_size=8",
            f"run.output_dir={self.folder / 'killed'}",
            expect=None,
        )  # 8 rows do not divide among 3 ranks: refused, not rounded
        self.shoal("run", path, "-n", 4, f"run.output_dir={self.folder / 'killed'}")
        self.assert_losses(self.losses("killed"), want, relative=1e-5)

    def test_resumes_on_another_mesh(self):
        model = dict(dtype="float64")
        layouts = [
            (4, ["parallelism.tensor_parallel=2", "parallelism.pipeline_parallel=2"]),
            (2, ["parallelism.tensor_parallel=2", "zero.stage=0"]),
            (1, []),
        ]
        path = self.write_recipe("moved", model=model, training=self.STEPS, checkpoint=self.SAVE)
        for steps, (ranks, overrides) in zip((10, 20, 40), layouts):
            self.shoal(
                "run",
                path,
                "-n",
                ranks,
                *overrides,
                f"training.max_steps={steps}",
                "scheduler.type=constant",
                f"run.output_dir={self.folder / 'moved'}",
            )
        steady = self.train(
            "steady",
            "-n",
            1,
            "scheduler.type=constant",
            model=model,
            training=self.STEPS,
            checkpoint=self.SAVE,
        )
        self.assert_losses(self.losses("moved"), steady, relative=1e-10)

    def test_a_finished_run_trains_nothing_again(self):
        want = self.train("run", "-n", 2, checkpoint=self.SAVE)
        rows = len(self.metrics("run"))
        self.shoal(
            "run", self.folder / "run.yaml", "-n", 2, f"run.output_dir={self.folder / 'run'}"
        )
        self.assertEqual(len(self.metrics("run")), rows)
        self.assert_losses(self.losses("run"), want)


if __name__ == "__main__":
    unittest.main()
