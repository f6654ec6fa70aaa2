#include "parallel/comm/shm_backend.h"

#include <gtest/gtest.h>

#include <atomic>
#include <thread>
#include <vector>

#include <ATen/ops/full.h>

namespace shoal {
namespace {

void NeverAbort(int, const std::string& reason) { ADD_FAILURE() << reason; }

// As a queue's thread and the thread beside it do, each with communicators of its own.
TEST(ShmBackend, FindsPeersMemoryFromSeveralThreadsAtOnce) {
  constexpr int kThreads = 4, kRounds = 3000, kKept = 8;
  ShmBackend owner(NeverAbort), reader(NeverAbort);
  std::atomic<int> ready = 0;
  const auto work = [&](int thread) {
    std::vector<at::Tensor> kept(kKept);
    for (++ready; ready < kThreads;) std::this_thread::yield();
    for (int round = 0; round < kRounds; ++round) {
      at::Tensor& fresh = kept[round % kKept];
      fresh = owner.Allocate(100, at::kInt).fill_(thread * kRounds + round);
      for (int back = 0; back < std::min(kKept, round + 1); ++back) {
        const at::Tensor& tensor = kept[(round - back) % kKept];
        const auto* begin = reinterpret_cast<const std::byte*>(tensor.const_data_ptr<int>() + 99);
        const auto* found = reinterpret_cast<const int*>(reader.Resolve(owner.Locate(begin)));
        ASSERT_EQ(*found, thread * kRounds + round - back);
      }
    }
  };
  std::vector<std::thread> threads;
  for (int thread = 0; thread < kThreads; ++thread) threads.emplace_back(work, thread);
  for (std::thread& thread : threads) thread.join();
}

}  // namespace
}  // namespace shoal
