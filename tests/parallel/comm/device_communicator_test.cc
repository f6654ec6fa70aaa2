#include "parallel/comm/device_communicator.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <ATen/ops/full.h>
#include <ATen/ops/ones.h>

#include "absl/strings/str_cat.h"
#include "parallel/comm/local_communicator.h"
#include "parallel/comm/staged_communicator.h"
#include "tests/fake_device/fake_device.h"

namespace shoal {
namespace {

using ::testing::HasSubstr;

TEST(PlanDevices, GivesEveryRankOfAHostTheNextGpu) {
  const std::vector<std::string> a = {"a0", "a1"}, b = {"b0", "b1"};
  const std::vector<RankPlace> places = {{"a", a}, {"b", b}, {"a", a}, {"b", b}};
  const int want[] = {0, 0, 1, 1};
  for (int rank = 0; rank < 4; ++rank) {
    const DevicePlan plan = PlanDevices(places, rank);
    EXPECT_EQ(plan.gpu, want[rank]) << rank;
    EXPECT_TRUE(plan.each_its_own);
  }
}

TEST(PlanDevices, SharesWhereRanksOutnumberGpus) {
  const std::vector<RankPlace> places(3, {"a", {"a0", "a1"}});
  EXPECT_EQ(PlanDevices(places, 2).gpu, 0);
  for (int rank = 0; rank < 3; ++rank) EXPECT_FALSE(PlanDevices(places, rank).each_its_own);
}

// As srun --gpus-per-task=1 does: every rank sees its own GPU as number 0.
TEST(PlanDevices, KnowsGpusByNameNotByNumber) {
  EXPECT_TRUE(PlanDevices({{"a", {"a0"}}, {"a", {"a1"}}}, 1).each_its_own);
  EXPECT_EQ(PlanDevices({{"a", {"a0"}}, {"a", {"a1"}}}, 1).gpu, 0);
  EXPECT_FALSE(PlanDevices({{"a", {"a0"}}, {"a", {"a0"}}}, 0).each_its_own);
}

TEST(MakeDeviceCommunicator, LeavesTheCpuAlone) {
  for (DeviceRequest request : {DeviceRequest::kCpu, DeviceRequest::kAuto}) {
    if (request == DeviceRequest::kAuto && NumDevices() > 0) continue;
    auto comm = MakeDeviceCommunicator(MakeSingleRankCommunicator(), request, {});
    ASSERT_TRUE(comm.ok()) << comm.status();
    EXPECT_EQ((*comm)->name(), "local");
    EXPECT_TRUE((*comm)->device().is_cpu());
  }
}

TEST(MakeDeviceCommunicator, SaysWhyThereIsNoGpu) {
  if (NumDevices() > 0) GTEST_SKIP() << "this machine has a GPU";
  const absl::Status status = RunRanks(2, [](Communicator& comm) {
    return MakeDeviceCommunicator(comm.Split(0, comm.rank()), DeviceRequest::kCuda, {}).status();
  });
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(status.message()), HasSubstr("run.device: cuda, but "));
  EXPECT_THAT(std::string(status.message()),
              ::testing::AnyOf(HasSubstr("this build has no CUDA"), HasSubstr("sees no GPU")));
}

TEST(StagedCommunicator, MovesWhatAutogradHasSavedWithoutItsNotice) {
  const absl::Status status = RunRanks(2, [](Communicator& comm) {
    const at::Device device = FakeDevice(comm.rank());
    UseDevice(device);
    const auto staged = MakeStagedCommunicator(comm.Split(0, comm.rank()), device);
    at::Tensor weight = at::full({4}, static_cast<float>(comm.rank()), device);
    at::Tensor x = at::ones({4}, device).set_requires_grad(true);
    const at::Tensor y = (x * weight).sum();
    staged->AllReduce(weight);  // As a gather fills the memory of weights
    y.backward();
    EXPECT_EQ(x.grad().cpu()[3].item<float>(), 1);
    return absl::OkStatus();
  });
  EXPECT_TRUE(status.ok()) << status;
}

TEST(StagedCommunicator, RefusesTensorsInTwoPlaces) {
  const auto staged = MakeStagedCommunicator(MakeSingleRankCommunicator(), FakeDevice());
  at::Tensor there = at::ones({4}, FakeDevice()), here = at::ones({4});
  at::Tensor elsewhere = at::ones({4}, FakeDevice(1));
  try {
    staged->AllGather(there, here);
    ADD_FAILURE() << "no error";
  } catch (const CommError& error) {
    EXPECT_THAT(error.what(), HasSubstr("tensor is on cpu; this call moves memory of"));
  }
  EXPECT_THROW(staged->AllReduce(elsewhere), CommError);
}

TEST(UseDevice, RunsBackwardPassesOnTheThreadThatBeginsThem) {
  std::thread([] {
    UseDevice(FakeDevice());
    at::Tensor x = at::ones({2}, FakeDevice()).set_requires_grad(true);
    std::thread::id where;
    const at::Tensor y = x * 2;
    y.register_hook([&](const at::Tensor&) { where = std::this_thread::get_id(); });
    y.sum().backward();
    EXPECT_EQ(where, std::this_thread::get_id());
  }).join();
}

}  // namespace
}  // namespace shoal
