#include "parallel/device_mesh.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "parallel/comm/local_communicator.h"

namespace shoal {
namespace {

TEST(DeviceMesh, SaysItsEquation) {
  EXPECT_EQ(MeshShape{}.Equation(), "1 rank = shard 1");
  EXPECT_EQ(MeshShape{.shard = 4}.Equation(), "4 ranks = shard 4");
  EXPECT_EQ((MeshShape{.replicate = 2, .shard = 3}).Equation(), "6 ranks = replicate 2 x shard 3");
}

TEST(DeviceMesh, RefusesAnotherNumberOfRanksAndAxesItLacks) {
  const absl::Status status = RunRanks(2, [](Communicator& world) {
    EXPECT_THAT(std::string(DeviceMesh::Create(world, {.shard = 3}).status().message()),
                ::testing::HasSubstr("needs 3 ranks"));
    EXPECT_EQ(DeviceMesh::Create(world, {.context = 2}).status().code(),
              absl::StatusCode::kUnimplemented);
    return absl::OkStatus();
  });
  EXPECT_TRUE(status.ok()) << status;
}

TEST(DeviceMesh, ControlTrafficIsNotCountedAsTraining) {
  const absl::Status status = RunRanks(3, [](Communicator& world) {
    absl::StatusOr<DeviceMesh> mesh = DeviceMesh::Create(world, {.shard = 3});
    if (!mesh.ok()) return mesh.status();
    EXPECT_EQ(SumOverRanks(mesh->control(), int64_t{1} << mesh->data_parallel_rank()), 7);
    EXPECT_EQ(SumOverRanks(mesh->control(), 0.5), 1.5);
    EXPECT_EQ(MaxOverRanks(mesh->control(), mesh->data_parallel_rank()), 2);
    EXPECT_EQ(mesh->shard().counters().bytes_sent, 0);
    EXPECT_GT(mesh->control().counters().bytes_sent, 0);
    return absl::OkStatus();
  });
  EXPECT_TRUE(status.ok()) << status;
}

}  // namespace
}  // namespace shoal
