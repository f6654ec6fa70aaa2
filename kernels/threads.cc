#include "kernels/threads.h"

#include <algorithm>
#include <atomic>
#include <exception>

#include <omp.h>

#include <ATen/Parallel.h>

namespace shoal {

void ParallelFor(int64_t count, int64_t grain, const std::function<void(int64_t, int64_t)>& body) {
  if (count <= 0) return;
  const int64_t pieces =
      std::min<int64_t>(GetNumThreads(), (count + grain - 1) / std::max<int64_t>(grain, 1));
  if (pieces <= 1 || omp_in_parallel()) {
    body(0, count);
    return;
  }
  std::exception_ptr error;
  std::atomic_flag failed = ATOMIC_FLAG_INIT;
#pragma omp parallel for schedule(static, 1) num_threads(static_cast <int>(pieces))
  for (int64_t piece = 0; piece < pieces; ++piece) {
    try {
      body(count * piece / pieces, count * (piece + 1) / pieces);
    } catch (...) {
      if (!failed.test_and_set()) error = std::current_exception();
    }
  }
  if (error) std::rethrow_exception(error);
}

void SetNumThreads(int num_threads) {
  at::set_num_threads(num_threads);
  omp_set_num_threads(num_threads);
}

int GetNumThreads() { return omp_get_max_threads(); }

}  // namespace shoal
