"""One recipe on several layouts of ranks gives the same losses."""

import unittest

from harness import GPT2, LLAMA, EndToEndTest


class LayoutsTest(EndToEndTest):
    def test_number_of_ranks_does_not_change_losses(self):
        want = self.train("one", "-n", 1, model=dict(dtype="float64"))
        self.assertEqual(sorted(want), [1, 2, 3, 4, 5, 6])
        self.assertLess(want[6], want[1])
        for ranks in (2, 4):
            got = self.train(f"ranks{ranks}", "-n", ranks, model=dict(dtype="float64"))
            self.assert_losses(got, want, relative=1e-12)

    def test_mpirun_joins(self):
        want = self.train("started", "-n", 2)
        joined = self.train(
            "joined", command=["mpirun", "--allow-run-as-root", "--oversubscribe", "-np", "2"]
        )
        self.assert_losses(joined, want)

    def test_zero_stages_are_equal_to_the_last_bit(self):
        for ranks in (1, 2, 3):
            batch = dict(max_steps=4, global_batch_size=12, gradient_accumulation_steps=2)
            want = self.train(f"n{ranks}stage0", "-n", ranks, "zero.stage=0", training=batch)
            for stage in (1, 2, 3):
                got = self.train(
                    f"n{ranks}stage{stage}", "-n", ranks, f"zero.stage={stage}", training=batch
                )
                self.assert_losses(got, want)

    def test_bfloat16_stages_are_equal_to_the_last_bit(self):
        want = self.train("stage0", "-n", 2, "zero.stage=0", model=dict(dtype="bfloat16"))
        got = self.train("stage3", "-n", 2, "zero.stage=3", model=dict(dtype="bfloat16"))
        self.assert_losses(got, want)

    def test_accumulation_does_not_change_losses(self):
        want = self.train("whole", "-n", 2, model=dict(dtype="float64"))
        got = self.train(
            "pieces", "-n", 2, "training.gradient_accumulation_steps=4", model=dict(dtype="float64")
        )
        self.assert_losses(got, want, relative=1e-12)

    def test_tensor_and_pipeline_parallel_do_not_change_losses(self):
        model = dict(dtype="float64", config=dict(LLAMA, num_hidden_layers=3))
        batch = dict(max_steps=4, global_batch_size=12, gradient_accumulation_steps=3)
        want = self.train("one", "-n", 1, model=model, training=batch)
        for name, ranks, overrides in (
            ("tensor", 2, ["parallelism.tensor_parallel=2"]),
            ("rows", 2, ["parallelism.tensor_parallel=2", "parallelism.sequence_parallel=false"]),
            ("pipeline", 2, ["parallelism.pipeline_parallel=2"]),
            ("zbv", 2, ["parallelism.pipeline_parallel=2", "parallelism.pipeline_schedule=zbv", "zero.stage=1"]),
            ("replicate", 4, ["parallelism.data_parallel_replicate=2", "zero.stage=3"]),
            (
                "all",
                8,
                [
                    "parallelism.tensor_parallel=2",
                    "parallelism.pipeline_parallel=2",
                    "zero.stage=3",
                    "training.activation_checkpointing=full",
                ],
            ),
        ):
            got = self.train(name, "-n", ranks, *overrides, model=model, training=batch)
            self.assert_losses(got, want, relative=1e-11)

    def test_plain_mpi_carries_a_pipeline(self):
        model = dict(dtype="float64")
        batch = dict(max_steps=3, global_batch_size=12, gradient_accumulation_steps=3)
        want = self.train("one", "-n", 1, model=model, training=batch)
        got = self.train(
            "mpi",
            "-n",
            4,
            "comm.transport=mpi",
            "parallelism.tensor_parallel=2",
            "parallelism.pipeline_parallel=2",
            model=model,
            training=batch,
        )
        self.assert_losses(got, want, relative=1e-11)

    def test_what_does_not_divide_is_refused_before_training(self):
        path = self.write_recipe("heads")
        output = self.shoal("run", path, "-n", 3, "parallelism.tensor_parallel=3", expect=64)
        self.assertIn("do not divide over tensor_parallel 3", output)
        output = self.shoal("run", path, "-n", 8, "parallelism.pipeline_parallel=8", expect=64)
        self.assertIn("cannot fill 8 pipeline stages", output)

    def test_runs_are_repeatable(self):
        model = dict(dtype="float32", config=GPT2)
        want = self.train("first", "-n", 2, model=model)
        self.assert_losses(self.train("second", "-n", 2, model=model), want)

    def test_bytes_sent_follow_the_formulas(self):
        """N weights, n ranks: 2 N (n-1)/n elements a step at stages 0 to 2, 3 N (n-1)/n at 3."""
        model = dict(config=dict(LLAMA, tie_word_embeddings=False))
        layer = 2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 48 + 2 * 32
        elements = 2 * layer + 2 * 320 * 32 + 32
        for stage, passes in ((0, 2), (1, 2), (2, 2), (3, 3)):
            self.train(f"stage{stage}", "-n", 2, f"zero.stage={stage}", model=model)
            sent = [row["bytes_sent"] for row in self.metrics(f"stage{stage}") if "loss" in row][-1]
            # Units are padded to whole rows; losses, norms and counts cross too.
            self.assertAlmostEqual(
                sent, passes * 4 * elements // 2, delta=0.02 * sent, msg=f"stage {stage}"
            )


if __name__ == "__main__":
    unittest.main()
