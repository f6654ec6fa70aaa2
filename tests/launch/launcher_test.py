"""Starts rank_program in every way, breaks it in every way, and looks at what is left.

    launcher_test.py PATH_TO_RANK_PROGRAM
"""
import os
import signal
import subprocess
import sys
import time
import unittest

PROGRAM = None
MPIRUN = ["mpirun", "--oversubscribe"] + (["--allow-run-as-root"] if os.geteuid() == 0 else [])


def environment(**changes):
    env = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "OMPI_", "PMI", "OMP_"))}
    env.update(changes)
    return env


def run(*command, **changes):
    start = time.monotonic()
    result = subprocess.run([str(c) for c in command], capture_output=True, text=True, timeout=120,
                            env=environment(**changes))
    result.seconds = time.monotonic() - start
    return result


def segments():
    """Names in /dev/shm that this user's jobs leave."""
    names = set()
    for name in os.listdir("/dev/shm"):
        try:
            if os.stat("/dev/shm/" + name).st_uid == os.geteuid():
                names.add(name)
        except FileNotFoundError:
            pass
    return names


def left_behind(before, program_arguments):
    """What stays in /dev/shm and among the processes, once the job's have had time to go."""
    deadline = time.monotonic() + 20
    while True:
        left = [name for name in segments() - before if name.startswith(("shoal", "vader_segment"))]
        left += processes(program_arguments)
        if not left or time.monotonic() > deadline:
            return left
        time.sleep(0.05)


def processes(arguments):
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/cmdline", "rb") as file:
                words = file.read().split(b"\0")
        except OSError:
            continue
        if [w.decode(errors="replace") for w in words[:3]] == [PROGRAM, *arguments]:
            found.append(f"process {pid}")
    return found


class Starting(unittest.TestCase):
    maxDiff = None

    def test_one_rank_needs_no_mpi(self):
        result = run(PROGRAM, 1, "succeed")
        self.assertEqual((result.returncode, result.stderr), (0, ""))
        self.assertIn("1 ranks, local, sum 1,", result.stdout)

    def test_starts_its_ranks(self):
        for ranks in 2, 4:
            result = run(PROGRAM, ranks, "succeed")
            self.assertEqual((result.returncode, result.stderr), (0, ""))
            threads = max(1, os.cpu_count() // ranks)
            self.assertEqual(result.stdout, f"{ranks} ranks, shm, sum {ranks}, {threads} threads\n")

    def test_joins_ranks_of_mpirun(self):
        result = run(*MPIRUN, "-np", 2, PROGRAM, 0, "succeed")
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertIn("2 ranks, shm, sum 2,", result.stdout)

    def test_refuses_two_numbers_of_ranks(self):
        result = run(*MPIRUN, "-np", 2, PROGRAM, 3, "succeed")
        self.assertEqual(result.returncode, 64)
        self.assertIn("-n 3, but mpirun started 2 ranks", result.stderr)

    def test_says_when_slurm_gives_no_mpi(self):
        result = run(PROGRAM, 0, "succeed", SLURM_PROCID="1", SLURM_NTASKS="4")
        self.assertEqual(result.returncode, 64)
        self.assertIn("rank 1 of 4", result.stderr)
        self.assertIn("srun --mpi=pmix", result.stderr)

    def test_says_when_mpirun_is_missing(self):
        result = run(PROGRAM, 2, "succeed", PATH="/nonexistent")
        self.assertEqual(result.returncode, 127)
        self.assertIn("mpirun, which is not in PATH", result.stderr)


class Failing(unittest.TestCase):
    def check(self, ranks, behaviour, code, message):
        before = segments()
        result = run(PROGRAM, ranks, behaviour)
        self.assertEqual(result.stderr, message)
        self.assertEqual(result.returncode, code)
        self.assertEqual(left_behind(before, [str(ranks), behaviour]), [])
        return result

    def test_one_rank_ends_all_with_one_line(self):
        self.check(3, "fail-last", 65, "shoal: rank 2: shard 7 is torn\n")

    def test_a_failure_of_all_is_told_once(self):
        self.check(3, "fail-all", 65, "shoal: rank 0: no such thing\n")

    def test_a_killed_rank_is_named(self):
        self.check(3, "kill-last", 137, "shoal: rank 2 was ended by signal 9 (Killed); the system does that when "
                   "memory runs out\n")

    def test_a_rank_that_leaves_without_a_word(self):
        self.check(2, "exit-last", 9, "shoal: the ranks ended with exit code 9\n")

    def test_a_killed_mpirun(self):
        self.check(2, "kill-mpirun", 137, "shoal: mpirun was ended by signal 9 (Killed)\n")

    def test_a_killed_rank_under_plain_mpirun(self):
        before = segments()
        result = run(*MPIRUN, "-np", 2, PROGRAM, 0, "kill-last")
        self.assertEqual(result.returncode, 137)
        self.assertEqual(left_behind(before, ["0", "kill-last"]), [])

    def test_ends_when_told_to(self):
        for sent, code in (signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGKILL, -9):
            before = segments()
            program = subprocess.Popen([PROGRAM, "2", "go-on"], env=environment(), stdout=subprocess.DEVNULL,
                                       stderr=subprocess.PIPE, text=True)
            while len(processes(["2", "go-on"])) < 3 and program.poll() is None:
                time.sleep(0.02)
            program.send_signal(sent)
            self.assertEqual(program.wait(timeout=60), code)
            program.communicate()
            self.assertEqual(left_behind(before, ["2", "go-on"]), [])


if __name__ == "__main__":
    PROGRAM = os.path.realpath(sys.argv.pop(1))
    unittest.main(verbosity=2)
