// The NCCL communicator over fake devices and fake_nccl.cc: everything of ours but the library's
// own kernels. Those are tested where there are GPUs (tests/gpu).
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <cstring>
#include <functional>
#include <mutex>

#include <ATen/ops/arange.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/full.h>

#include "absl/synchronization/notification.h"
#include "parallel/comm/device_communicator.h"
#include "parallel/comm/local_communicator.h"
#include "parallel/comm/nccl_collectives.h"
#include "parallel/comm/self_check.h"
#include "tests/fake_device/fake_device.h"
#include "tests/parallel/comm/conformance.h"
#include "tests/parallel/comm/fake_nccl.h"

namespace shoal {
namespace {

using ::testing::HasSubstr;

std::unique_ptr<Communicator> MakeNccl(Communicator& ranks, const CommOptions& options,
                                       const NcclWatch::EndJob& end_job) {
  const at::Device device = FakeDevice(ranks.rank());
  UseDevice(device);
  NcclHandle::Place place = {
      .device = device,
      .watch = std::make_shared<NcclWatch>(device, absl::Milliseconds(5), end_job),
      .timeout = options.timeout};
  const ncclUniqueId mine = NcclHandle::NewId();
  const std::string shared =
      BroadcastString(ranks, std::string(mine.internal, sizeof(mine.internal)), 0);
  ncclUniqueId id;
  std::memcpy(id.internal, shared.data(), shared.size());
  auto handle = std::make_unique<NcclHandle>(place);
  handle->Begin(id, ranks.size(), ranks.rank());
  handle->AwaitReady([] { return std::string("start"); });
  return std::make_unique<NcclCommunicator>(ranks.Split(0, ranks.rank()), std::move(handle), place,
                                            options);
}

class NcclConformance : public ::testing::TestWithParam<int> {
 protected:
  void Run(const std::function<void(Communicator&)>& body, const CommOptions& options = {}) {
    const absl::Status status = RunRanks(GetParam(), [&](Communicator& ranks) {
      body(*MakeNccl(ranks, options, [](const std::string& problem) { ADD_FAILURE() << problem; }));
      return absl::OkStatus();
    });
    EXPECT_TRUE(status.ok()) << status;
  }
};

TEST_P(NcclConformance, Everything) { Run(RunConformance); }

TEST_P(NcclConformance, EverythingInSmallChunks) { Run(RunConformance, {.chunk_bytes = 100'000}); }

TEST_P(NcclConformance, PassesItsSelfCheck) {
  Run([](Communicator& comm) {
    for (const CollectiveCheck& check : CheckCollectives(comm, 1 << 16))
      EXPECT_TRUE(check.correct) << check.name << ": " << check.problem;
  });
}

TEST_P(NcclConformance, ItsOwnSumsAgreeToRounding) {
  const auto body = [](Communicator& comm) {
    const int size = comm.size(), rank = comm.rank();
    const at::Tensor values = at::arange(9001, at::kDouble) / 7.0;
    at::Tensor x = (values + rank).to(comm.device());
    comm.AllReduce(x);
    EXPECT_TRUE(x.cpu().allclose(values * size + size * (size - 1) / 2.0, 1e-13, 0));
    at::Tensor in = (at::arange(3001 * size, at::kFloat) / 7.0f).to(comm.device());
    at::Tensor out = at::empty({3001}, in.options());
    comm.ReduceScatter(out, in);
    EXPECT_TRUE(out.cpu().allclose(in.cpu().narrow(0, rank * 3001, 3001) * size, 1e-6, 0));
    at::Tensor greatest = at::full({3}, static_cast<double>(rank), x.options());
    comm.AllReduce(greatest, ReduceOp::kMax);
    EXPECT_EQ(greatest.cpu()[2].item<double>(), size - 1);
  };
  Run(body, {.deterministic = false});
}

INSTANTIATE_TEST_SUITE_P(Ranks, NcclConformance, ::testing::Values(1, 2, 3, 4));

TEST(NcclCommunicator, ThrowsWhereARankDoesNotCome) {
  const absl::Status status = RunRanks(2, [](Communicator& ranks) {
    const auto comm = MakeNccl(ranks, {.timeout = absl::Milliseconds(100)}, [](const auto&) {});
    if (ranks.rank() == 0) {
      at::Tensor x = comm->AllocateRegistered(10, at::kFloat).fill_(1);
      std::string message;
      try {
        comm->Broadcast(x, 0);
      } catch (const CommError& error) {
        message = error.what();
      }
      EXPECT_THAT(message,
                  HasSubstr("Broadcast(float32, 10 elements, root 0), call 0: waited 100ms"));
      EXPECT_THROW(comm->AllReduce(x), CommError) << "the group stays broken";
    }
    ranks.Barrier();
    return absl::OkStatus();
  });
  EXPECT_TRUE(status.ok()) << status;
}

TEST(NcclCommunicator, EndsTheJobWhenNcclFailsBehindItsBack) {
  std::atomic<int> told = 0;
  const absl::Status status = RunRanks(2, [&](Communicator& ranks) {
    absl::Notification ended;
    const auto comm = MakeNccl(ranks, {}, [&](const std::string& problem) {
      EXPECT_THAT(problem, HasSubstr("NCCL: remote process exited"));
      ++told;
      ended.Notify();
    });
    ranks.Barrier();
    if (ranks.rank() == 0) BreakFakeNccl();
    ended.WaitForNotification();
    at::Tensor x = comm->AllocateRegistered(10, at::kFloat).fill_(1);
    EXPECT_THROW(comm->AllReduce(x), CommError);
    ranks.Barrier();
    if (ranks.rank() == 0) MendFakeNccl();
    ranks.Barrier();
    return absl::OkStatus();
  });
  EXPECT_TRUE(status.ok()) << status;
  EXPECT_EQ(told, 2);
}

}  // namespace
}  // namespace shoal
