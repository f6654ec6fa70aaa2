#include "core/process_memory.h"

#include <gtest/gtest.h>

#include <sys/mman.h>

#include <cstring>

namespace shoal {
namespace {

TEST(ProcessMemory, SeesWhatIsTouched) {
  constexpr int64_t kBytes = 64 << 20;
  const int64_t before = CurrentRssBytes();
  ASSERT_GT(before, 1 << 20);
  void* block = mmap(nullptr, kBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  ASSERT_NE(block, MAP_FAILED);
  std::memset(block, 1, kBytes);
  EXPECT_GE(CurrentRssBytes(), before + kBytes * 9 / 10);
  munmap(block, kBytes);
  EXPECT_GE(PeakRssBytes(), before + kBytes * 9 / 10);
  EXPECT_LT(CurrentRssBytes(), before + kBytes / 2);
}

}  // namespace
}  // namespace shoal
