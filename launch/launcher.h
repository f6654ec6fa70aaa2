// Starts the ranks of a job on this host: mpirun as a child of this process, running this program
// again.
#pragma once

namespace shoal {

// Runs this program with the same arguments on `num_ranks` ranks and returns the job's exit code:
// that of the rank that failed first, 128 + the signal if one was killed (then one line on stderr
// names both), 127 if mpirun cannot be found. What ranks print passes through; mpirun's own reports
// about ended ranks do not. SIGINT, SIGTERM and SIGHUP end the ranks; they end too if this process
// dies. OMP_NUM_THREADS, unless set, shares the cores among the ranks.
int LaunchRanks(int argc, const char* const* argv, int num_ranks);

}  // namespace shoal
