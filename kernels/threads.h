// Loops over the intra-op threads (OMP_NUM_THREADS, at::set_num_threads): the same pool that
// libtorch and oneDNN use, so threads are never oversubscribed.
#pragma once

#include <cstdint>
#include <functional>

namespace shoal {

// Calls body(begin, end) over disjoint pieces of [0, count), each at least `grain` long but the
// last, and waits. How the range is cut depends on the number of threads: bodies must not split a
// reduction. Exceptions thrown by body are rethrown here. Runs inline when there is one piece or
// one thread.
void ParallelFor(int64_t count, int64_t grain, const std::function<void(int64_t, int64_t)>& body);

// Sets the number of threads for libtorch, oneDNN and ParallelFor, for the calling thread's loops.
void SetNumThreads(int num_threads);
int GetNumThreads();

}  // namespace shoal
