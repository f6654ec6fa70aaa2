// Tensors whose memory waits in a file come back as they were, and take memory only while they are
// held.
#include <sys/resource.h>

#include <csignal>
#include <cstdlib>
#include <filesystem>
#include <iostream>

#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "core/offload.h"
#include "core/tensor_memory.h"

namespace shoal {
namespace {

constexpr int64_t kNumel = 300'000;  // Not whole pages
const int64_t kBytes = OffloadSpace::Rounded(4 * kNumel);

class Offload : public testing::TestWithParam<const char*> {
 protected:
  static void SetUpTestSuite() { CountTensorMemory(); }
  void SetUp() override {
    auto space = OffloadSpace::Open(GetParam());
    ASSERT_TRUE(space.ok()) << space.status();
    space_ = *std::move(space);
    before_ = TensorBytes();
  }
  int64_t Taken() const { return TensorBytes() - before_; }

  std::unique_ptr<OffloadSpace> space_;
  int64_t before_ = 0;
};

// A disk, and (where there is one) a file system in memory, which has no direct access.
INSTANTIATE_TEST_SUITE_P(, Offload, testing::Values(".", "/dev/shm"),
                         [](const auto& info) { return info.index == 0 ? "Disk" : "Memory"; });

TEST_P(Offload, StartsAsZerosAndKeepsWhatIsWritten) {
  const at::Tensor all = space_->Zeros(kNumel, at::kFloat);
  const at::Tensor part = all.narrow(0, 1000, 5000);  // A view outlives every absence
  EXPECT_EQ(Taken(), 0);
  {
    const OffloadHold hold(part, OffloadAccess::kUpdate);
    EXPECT_EQ(Taken(), kBytes);
    EXPECT_TRUE(at::equal(all, at::zeros({kNumel})));
    all.copy_(at::arange(kNumel, at::kFloat));
  }
  space_->Drain();
  EXPECT_EQ(Taken(), 0);
  EXPECT_EQ(space_->bytes_written(), kBytes);
  EXPECT_EQ(space_->bytes_read(), 0);
  {
    const OffloadHold hold(all, OffloadAccess::kRead);
    EXPECT_TRUE(at::equal(part, at::arange(1000, 6000, at::kFloat)));
  }
  EXPECT_EQ(Taken(), 0);  // What was only read needs no writing
  EXPECT_EQ(space_->bytes_written(), kBytes);
  EXPECT_EQ(space_->bytes_read(), kBytes);
}

TEST_P(Offload, WhatIsReplacedIsNotRead) {
  const at::Tensor all = space_->Zeros(kNumel, at::kFloat);
  {
    const OffloadHold hold(all, OffloadAccess::kUpdate);
    all.fill_(3);
  }
  space_->Drain();
  {
    const OffloadHold hold(all, OffloadAccess::kReplace);
    all.narrow(0, 0, 10).fill_(1);
  }
  space_->Drain();
  EXPECT_EQ(space_->bytes_read(), 0);
  const OffloadHold hold(all, OffloadAccess::kRead);
  EXPECT_EQ(all.sum().item<float>(), 10);
}

// One thread reads ahead while tensors are updated and written back.
TEST_P(Offload, StreamsThroughTheMemoryOfTwo) {
  std::vector<at::Tensor> rows;
  for (int i = 0; i < 8; ++i) rows.push_back(space_->Zeros(kNumel, at::kFloat));
  ASSERT_TRUE(space_->Reserve().ok());
  EXPECT_EQ(space_->bytes_reserved(), 8 * kBytes);
  ResetPeakTensorBytes();
  const int64_t peak_before = PeakTensorBytes();
  for (int pass = 0; pass < 20; ++pass) {
    OffloadHold hold;
    hold.Add(rows[0], OffloadAccess::kUpdate);
    for (size_t i = 0; i < rows.size(); ++i) {
      if (i + 1 < rows.size()) PrefetchOffloaded(rows[i + 1], OffloadAccess::kUpdate);
      rows[i].add_(static_cast<double>(i + 1));
      if (i + 1 < rows.size()) hold.Only(rows[i + 1], OffloadAccess::kUpdate);
    }
  }
  space_->Drain();
  EXPECT_NEAR(PeakTensorBytes() - peak_before, 2 * kBytes, 4096);
  for (size_t i = 0; i < rows.size(); ++i) {
    const OffloadHold hold(rows[i], OffloadAccess::kRead);
    EXPECT_TRUE(at::equal(rows[i], at::full({kNumel}, 20.0F * static_cast<float>(i + 1)))) << i;
  }
}

TEST_P(Offload, TensorsOfAScopeGoAndComeBack) {
  auto kept = std::make_unique<OffloadedTensors>(*space_);
  at::Tensor here, output, temporary;
  {
    const TensorMemoryScope scope(kept.get());
    here = at::arange(kNumel, at::kFloat);
    temporary = here + 1;
    output = temporary * 2;
    const TensorMemoryScope none(nullptr);
    const at::Tensor elsewhere = here + 1;
    EXPECT_NEAR(Taken(), 4 * kBytes, 4096);
  }
  temporary = at::Tensor();
  kept->Leave(output);
  kept->PutAside();
  space_->Drain();
  EXPECT_EQ(Taken(), kBytes);  // The output
  EXPECT_EQ(space_->bytes_written(), kBytes);
  OffloadedTensors next(*space_);
  next.Join(output);
  next.PutAside();
  space_->Drain();
  EXPECT_EQ(Taken(), 0);
  kept->Prefetch();
  kept->Bring();
  EXPECT_TRUE(at::equal(here, at::arange(kNumel, at::kFloat)));
  kept.reset();
  here = at::Tensor();
  next.Bring();
  EXPECT_TRUE(at::equal(output, (at::arange(kNumel, at::kFloat) + 1) * 2));
  output = at::Tensor();
  EXPECT_EQ(Taken(), 0);
}

TEST_P(Offload, TensorsOutliveTheSpace) {
  const at::Tensor all = space_->Zeros(kNumel, at::kFloat);
  {
    const OffloadHold hold(all, OffloadAccess::kUpdate);
    all.fill_(3);
  }
  space_.reset();
  EXPECT_EQ(Taken(), 0);
}

void TouchWhatIsAside() {
  const auto space = *OffloadSpace::Open(".");
  const at::Tensor all = space->Zeros(kNumel, at::kFloat);
  all.fill_(1);
}

TEST(OffloadDeathTest, WhatIsAsideCannotBeTouched) { EXPECT_DEATH(TouchWhatIsAside(), ""); }

TEST(OffloadErrors, NameTheFolder) {
  EXPECT_THAT(std::string(OffloadSpace::Open("no/such/folder").status().message()),
              testing::HasSubstr("cannot make a file for scratch in no/such/folder"));
  auto file = ScratchFile::Create(".");
  ASSERT_TRUE(file.ok()) << file.status();
  const absl::Status full = (*file)->Reserve(int64_t{1} << 60);
  EXPECT_TRUE(absl::IsResourceExhausted(full)) << full;
  EXPECT_THAT(std::string(full.message()),
              testing::HasSubstr("cannot reserve 1152921504606846976 bytes for scratch in ."));
}

// Exits with 3 if it learns of a file that may not grow.
void WriteTooMuch() {
  const auto space = *OffloadSpace::Open("/dev/shm");
  const at::Tensor all = space->Zeros(kNumel, at::kFloat);
  const rlimit limit{4096, 4096};
  ::setrlimit(RLIMIT_FSIZE, &limit);
  ::signal(SIGXFSZ, SIG_IGN);
  {
    const OffloadHold hold(all, OffloadAccess::kUpdate);
    all.fill_(1);
  }
  try {
    space->Drain();
  } catch (const OffloadError& error) {
    std::cerr << error.what() << std::endl;
    std::_Exit(3);
  }
  std::_Exit(0);
}

TEST(OffloadDeathTest, WhoWaitsLearnsOfTheDisksError) {
  EXPECT_EXIT(WriteTooMuch(), testing::ExitedWithCode(3),
              "cannot write 1200128 bytes to scratch in /dev/shm: File too large");
}

// Nothing of it has a name, so nothing can be left behind.
TEST(OffloadFolder, IsLeftEmpty) {
  const std::string folder = testing::TempDir() + "/offload_leaves_no_file";
  std::filesystem::create_directories(folder);
  const auto space = OffloadSpace::Open(folder);
  ASSERT_TRUE(space.ok()) << space.status();
  const at::Tensor all = (*space)->Zeros(kNumel, at::kFloat);
  {
    const OffloadHold hold(all, OffloadAccess::kUpdate);
    all.fill_(1);
  }
  (*space)->Drain();
  EXPECT_TRUE(std::filesystem::is_empty(folder));
  std::filesystem::remove(folder);
}

}  // namespace
}  // namespace shoal
