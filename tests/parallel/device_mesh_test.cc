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
  EXPECT_EQ((MeshShape{.context = 2, .tensor = 3}).Equation(), "6 ranks = context 2 x tensor 3");
}

TEST(DeviceMesh, RefusesAnotherNumberOfRanks) {
  const absl::Status status = RunRanks(2, [](Communicator& world) {
    EXPECT_THAT(std::string(DeviceMesh::Create(world, {.shard = 3}).status().message()),
                ::testing::HasSubstr("needs 3 ranks"));
    return absl::OkStatus();
  });
  EXPECT_TRUE(status.ok()) << status;
}

// rank = (((pipeline * 1 + replicate) * 2 + shard) * 2 + context) * 2 + tensor.
TEST(DeviceMesh, RanksOfAContextShareWeightsAndReadTheSame) {
  constexpr int kRanks = 16;
  const absl::Status status = RunRanks(kRanks, [](Communicator& world) {
    absl::StatusOr<DeviceMesh> mesh =
        DeviceMesh::Create(world, {.shard = 2, .context = 2, .tensor = 2, .pipeline = 2});
    if (!mesh.ok()) return mesh.status();
    const auto ranks_of = [&](Communicator& group) {
      return SumOverRanks(group, int64_t{1} << world.rank());
    };
    const int rank = world.rank(), tensor = rank % 2, context = rank / 2 % 2, shard = rank / 4 % 2,
              pipeline = rank / 8;
    const int64_t first = int64_t{1} << (8 * pipeline + tensor);
    EXPECT_EQ(ranks_of(mesh->shard()), first * 0b1010101);
    EXPECT_EQ(mesh->shard().rank(), 2 * shard + context);
    EXPECT_EQ(ranks_of(mesh->context()), (first << 4 * shard) * 0b101);
    EXPECT_EQ(mesh->context().rank(), context);
    EXPECT_EQ(ranks_of(mesh->tensor()), int64_t{0b11} << (rank - tensor));
    EXPECT_EQ(ranks_of(mesh->pipeline()), int64_t{0x101} << rank % 8);
    EXPECT_EQ(ranks_of(mesh->data_control()), first * 0b1010101);
    EXPECT_EQ(ranks_of(mesh->model_control()), int64_t{0x303} << (rank % 8 - tensor));
    EXPECT_EQ(mesh->replicate().size(), 1);
    EXPECT_EQ(mesh->data_parallel_size(), 2);
    EXPECT_EQ(mesh->data_parallel_rank(), shard);
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
