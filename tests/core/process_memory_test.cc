#include "core/process_memory.h"

#include <gtest/gtest.h>

#include <cstring>
#include <memory>

namespace shoal {
namespace {

TEST(ProcessMemory, SeesWhatIsTouched) {
  constexpr int64_t kBytes = 64 << 20;
  const int64_t before = CurrentRssBytes();
  ASSERT_GT(before, 1 << 20);
  {
    std::unique_ptr<char[]> block(new char[kBytes]);
    std::memset(block.get(), 1, kBytes);
    EXPECT_GE(CurrentRssBytes(), before + kBytes * 9 / 10) << static_cast<int>(block[kBytes / 2]);
  }
  EXPECT_GE(PeakRssBytes(), before + kBytes * 9 / 10);
  EXPECT_LT(CurrentRssBytes(), before + kBytes / 2);
}

}  // namespace
}  // namespace shoal
