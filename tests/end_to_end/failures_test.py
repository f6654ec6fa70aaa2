"""What is wrong is said once and leaves nothing behind."""

import json
import os
import signal
import time
import unittest

from harness import (
    EndToEndTest,
    descendants,
    environment,
    rank_processes,
    recipe,
    shared_memory_of,
    start,
    wait_for,
)


class FailuresTest(EndToEndTest):
    def test_a_second_job_in_the_same_folder_is_refused(self):
        path = self.write_recipe("twice", training=dict(max_steps=100000, global_batch_size=8))
        folder = f"run.output_dir={self.folder / 'twice'}"
        first = start("run", path, "-n", 2, folder)
        try:
            wait_for((self.folder / "twice/metrics.jsonl").exists, 60, "first step")
            output = self.shoal("run", path, "-n", 2, folder, expect=64)
            self.assertEqual(output.count("another job runs in"), 1, output)
        finally:
            self.end(first)

    def refused(self, text, *arguments):
        """Runs a bad recipe with a mpirun that would leave a trace; the error's lines."""
        path = self.folder / "bad.yaml"
        path.write_text(text)
        trap = self.folder / "bin/mpirun"
        trap.parent.mkdir(exist_ok=True)
        trap.write_text(f"#!/bin/sh\ntouch {self.folder}/started\n")
        trap.chmod(0o755)
        output = self.shoal(
            "run",
            path,
            "-n",
            2,
            f"run.output_dir={self.folder / 'out'}",
            *arguments,
            expect=None,
            env=environment(PATH=f"{trap.parent}:{os.environ['PATH']}"),
        )
        self.assertFalse((self.folder / "started").exists(), "ranks were started for a bad recipe")
        return output.strip().splitlines()

    def test_unknown_key(self):
        text = json.dumps(recipe(), indent=1).replace('"max_steps"', '"max_stepz"')
        lines = self.refused(text)
        where = next(i for i, line in enumerate(text.splitlines(), 1) if "max_stepz" in line)
        self.assertIn(f"bad.yaml:{where}:", lines[0])
        self.assertIn("max_steps", lines[0])

    def test_missing_file_is_one_line(self):
        bad = recipe(data=dict(train=[dict(path="/nonexistent/text.txt")]))
        lines = self.refused(json.dumps(bad, indent=1))
        self.assertEqual(len([line for line in lines if "/nonexistent/text.txt" in line]), 1, lines)

    def test_wrong_override(self):
        lines = self.refused(json.dumps(recipe()), "zero.stage=7")
        self.assertTrue(any("zero.stage" in line and "7" in line for line in lines), lines)

    def test_all_errors_at_once(self):
        bad = recipe(zero=dict(stage=9), optimizer=dict(name="adam"), training=dict(max_steps=-1))
        text = "\n".join(self.refused(json.dumps(bad, indent=1)))
        for what in ("stage", "adam", "max_steps"):
            self.assertIn(what, text)

    def test_missing_recipe(self):
        self.assertIn("no_such_recipe.yaml", self.shoal("run", "no_such_recipe.yaml", expect=None))

    def test_a_killed_rank_ends_the_job(self):
        steps = dict(max_steps=1000000, global_batch_size=8, gradient_accumulation_steps=1)
        path = self.write_recipe("long", training=steps)
        process = start("run", path, "-n", 4, f"run.output_dir={self.folder / 'long'}")
        metrics = self.folder / "long/metrics.jsonl"
        try:
            wait_for(
                lambda: (metrics.exists() and metrics.stat().st_size > 0)
                or process.poll() is not None,
                120,
                "first step",
            )
            ranks = rank_processes(process.pid)
            self.assertEqual(len(ranks), 4)
            family, segments = descendants(process.pid), shared_memory_of(ranks)
            os.kill(ranks[2], signal.SIGKILL)
            began = time.monotonic()
            output, _ = process.communicate(timeout=60)
        finally:
            self.end(process) if process.poll() is None else None
        self.assertNotEqual(process.returncode, 0, output)
        self.assertLess(time.monotonic() - began, 20, output)
        self.assertEqual([pid for pid in family if os.path.exists(f"/proc/{pid}/exe")], [])
        self.assertEqual([file for file in segments if os.path.exists(file)], [])


if __name__ == "__main__":
    unittest.main()
