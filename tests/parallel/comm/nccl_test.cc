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
                                       const NcclWatch::EndJob& end_job,
                                       const NcclWatch::EndJob& on_disagreement) {
  const at::Device device = FakeDevice(ranks.rank());
  UseDevice(device);
  NcclHandle::Place place = {
      .device = device,
      .watch = std::make_shared<NcclWatch>(device, absl::Milliseconds(5), end_job),
      .ledger = std::make_shared<CallLedger>(ranks.Split(0, ranks.rank()), absl::Milliseconds(5),
                                             on_disagreement),
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
                                            "all", options);
}

std::unique_ptr<Communicator> MakeNccl(Communicator& ranks, const CommOptions& options,
                                       const NcclWatch::EndJob& on_problem) {
  return MakeNccl(ranks, options, on_problem, on_problem);
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

// What two ranks call, not alike, and what both are told.
struct Mismatch {
  const char* name;
  std::function<void(Communicator&)> calls;
  std::string first, second;
};

at::Tensor Ones(Communicator& comm, int64_t numel, at::ScalarType dtype = at::kFloat) {
  return comm.AllocateRegistered(numel, dtype).fill_(1);
}

class NcclMismatch : public ::testing::TestWithParam<Mismatch> {};

// Whether NCCL waits for ever or moves something, every rank is told both calls: by an exception,
// where it goes on, and the end of the job, where it may not.
TEST_P(NcclMismatch, NamesBothCallsOnAllRanks) {
  std::atomic<int> told = 0;
  const absl::Status status = RunRanks(2, [&](Communicator& ranks) {
    std::string message;
    {
      const auto comm = MakeNccl(
          ranks, {}, [](const std::string& problem) { ADD_FAILURE() << problem; },
          [&](const std::string& problem) {
            EXPECT_THAT(problem, HasSubstr(GetParam().first));
            EXPECT_THAT(problem, HasSubstr(GetParam().second));
            ++told;
          });
      try {
        GetParam().calls(*comm);
        for (at::Tensor x = Ones(*comm, 10);;) comm->AllReduce(x);
      } catch (const CommError& error) {
        message = error.what();
      }
    }
    EXPECT_THAT(message, HasSubstr(GetParam().first));
    EXPECT_THAT(message, HasSubstr(GetParam().second));
    return absl::OkStatus();
  });
  EXPECT_TRUE(status.ok()) << status;
  EXPECT_EQ(told, 2);
}

INSTANTIATE_TEST_SUITE_P(
    Calls, NcclMismatch,
    ::testing::Values(Mismatch{"Sizes",
                               [](Communicator& comm) {
                                 at::Tensor x = Ones(comm, 10 + comm.rank());
                                 comm.Broadcast(x, 0);
                               },
                               "rank 0 calls Broadcast(float32, 10 elements, root 0), call 0",
                               "rank 1 calls Broadcast(float32, 11 elements, root 0), call 0"},
                      Mismatch{"Nothing",
                               [](Communicator& comm) {
                                 at::Tensor x = Ones(comm, 10 * comm.rank());
                                 comm.AllReduce(x);
                               },
                               "rank 0 calls AllReduce(sum, float32, 0 elements), call 0",
                               "rank 1 calls AllReduce(sum, float32, 10 elements), call 0"},
                      Mismatch{"Kinds",
                               [](Communicator& comm) {
                                 at::Tensor x = Ones(comm, 10), y = Ones(comm, 20);
                                 comm.Broadcast(x, 0);
                                 if (comm.rank() == 0) comm.AllReduce(x);
                                 if (comm.rank() == 1) comm.AllToAll(y, Ones(comm, 20));
                               },
                               "rank 0 calls AllReduce(sum, float32, 10 elements), call 1",
                               "rank 1 calls AllToAll(float32, 20 elements), call 1"},
                      Mismatch{"Dtypes",
                               [](Communicator& comm) {
                                 at::Tensor out =
                                     Ones(comm, 20, comm.rank() == 0 ? at::kFloat : at::kInt);
                                 comm.AllGather(out, out.narrow(0, comm.rank() * 10, 10));
                               },
                               "rank 0 calls AllGather(float32, 10 elements), call 0",
                               "rank 1 calls AllGather(int32, 10 elements), call 0"},
                      Mismatch{"InASplitGroup",
                               [](Communicator& comm) {
                                 const auto part = comm.Split(0, -comm.rank());
                                 at::Tensor x = Ones(comm, 10 + comm.rank());
                                 part->AllReduce(x);
                                 for (at::Tensor y = Ones(comm, 10);;) part->AllReduce(y);
                               },
                               "rank 0 calls AllReduce(sum, float32, 11 elements), call 0",
                               "(ranks of a group: of the job's, 1 and 0)"},
                      Mismatch{"Messages",
                               [](Communicator& comm) {
                                 at::Tensor x = Ones(comm, 10), longer = Ones(comm, 11);
                                 if (comm.rank() == 0) comm.Send(x, 1), comm.Send(x, 1);
                                 if (comm.rank() == 1) comm.Recv(x, 0), comm.Recv(longer, 0);
                               },
                               "rank 0 calls Send(float32, 10 elements, to rank 1), call 1",
                               "rank 1 calls Recv(float32, 11 elements, from rank 0), call 1"}),
    [](const auto& info) { return info.param.name; });

}  // namespace
}  // namespace shoal
