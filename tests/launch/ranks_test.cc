#include "launch/ranks.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>

namespace shoal {
namespace {

using ::testing::HasSubstr;
using Variables = std::map<std::string, std::string>;

absl::StatusOr<RankEnvironment> Read(const Variables& variables, int requested) {
  return ReadRankEnvironment(
      [&](const char* name) {
        const auto found = variables.find(name);
        return found == variables.end() ? nullptr : found->second.c_str();
      },
      requested);
}

TEST(ReadRankEnvironment, FindsNobody) {
  const auto found = Read({{"PATH", "/bin"}}, 4);
  ASSERT_TRUE(found.ok()) << found.status();
  EXPECT_FALSE(found->started());
  EXPECT_TRUE(MustLaunch(*found, 4));
  EXPECT_FALSE(MustLaunch(*found, 1));
  EXPECT_FALSE(MustLaunch(*found, 0));
}

TEST(ReadRankEnvironment, FindsOpenMpi) {
  const auto found = Read({{"OMPI_COMM_WORLD_SIZE", "4"}, {"OMPI_COMM_WORLD_RANK", "2"}}, 4);
  ASSERT_TRUE(found.ok()) << found.status();
  EXPECT_EQ(found->launcher, "mpirun");
  EXPECT_EQ(found->rank, 2);
  EXPECT_EQ(found->size, 4);
  EXPECT_FALSE(MustLaunch(*found, 4));
}

TEST(ReadRankEnvironment, FindsSlurmWithPmix) {
  const auto found = Read(
      {{"SLURM_PROCID", "3"}, {"SLURM_NTASKS", "8"}, {"SLURM_STEP_ID", "0"}, {"PMIX_RANK", "3"}},
      0);
  ASSERT_TRUE(found.ok()) << found.status();
  EXPECT_EQ(found->launcher, "srun");
  EXPECT_EQ(found->rank, 3);
  EXPECT_EQ(found->size, 8);
}

TEST(ReadRankEnvironment, RefusesSlurmWithoutMpi) {
  const Variables step = {{"SLURM_PROCID", "1"}, {"SLURM_NTASKS", "4"}, {"SLURM_STEP_ID", "0"}};
  EXPECT_THAT(std::string(Read(step, 4).status().message()), HasSubstr("rank 1 of 4"));
  EXPECT_THAT(std::string(Read(step, 0).status().message()), HasSubstr("srun --mpi=pmix"));
}

TEST(ReadRankEnvironment, LetsABatchScriptLaunch) {
  const auto found = Read({{"SLURM_PROCID", "0"}, {"SLURM_NTASKS", "4"}}, 4);
  ASSERT_TRUE(found.ok()) << found.status();
  EXPECT_TRUE(MustLaunch(*found, 4));
}

TEST(ReadRankEnvironment, RefusesTwoNumbersOfRanks) {
  const auto found = Read({{"OMPI_COMM_WORLD_SIZE", "1"}}, 2);
  EXPECT_EQ(found.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(found.status().message()), HasSubstr("-n 2, but mpirun started 1 rank:"));
}

TEST(JoinRanks, TakesTheDeviceAskedForOrSaysWhyNot) {
  const auto on_cpu = JoinRanks({}, {});
  ASSERT_TRUE(on_cpu.ok()) << on_cpu.status();
  EXPECT_TRUE((*on_cpu)->device().is_cpu());
  const auto on_gpu = JoinRanks({}, {}, DeviceRequest::kCuda);
  if (NumDevices() > 0) {
    ASSERT_TRUE(on_gpu.ok()) << on_gpu.status();
    EXPECT_EQ((*on_gpu)->device().type(), at::kCUDA);
  } else {
    EXPECT_THAT(std::string(on_gpu.status().message()), HasSubstr("run.device: cuda, but "));
  }
}

TEST(ThreadsPerRank, SharesTheCores) {
  EXPECT_GE(ThreadsPerRank(1), ThreadsPerRank(2));
  EXPECT_EQ(ThreadsPerRank(1 << 20), 1);
}

}  // namespace
}  // namespace shoal
