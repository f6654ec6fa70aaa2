// The conformance suite on GPUs: over NCCL with one rank a GPU, and through host memory with ranks
// that share one. Ranks are threads; under mpirun, processes too.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <functional>
#include <memory>

#include <ATen/ops/full.h>
#include <ATen/ops/ones.h>

#include "parallel/comm/comm_queue.h"
#include "parallel/comm/device_communicator.h"
#include "parallel/comm/local_communicator.h"
#include "parallel/comm/mpi_communicator.h"
#include "parallel/comm/nccl_communicator.h"
#include "parallel/comm/self_check.h"
#include "parallel/comm/staged_communicator.h"
#include "tests/parallel/comm/conformance.h"

namespace shoal {
namespace {

std::shared_ptr<MpiRuntime> runtime;  // Null: not under mpirun

constexpr int kMaxRanks = 4;  // Of the suite

at::Device OfGpu(int index) { return {at::kCUDA, static_cast<at::DeviceIndex>(index)}; }

class GpuTest : public ::testing::Test {
 protected:
  void SetUp() override {
    if (NumDevices() == 0) GTEST_SKIP() << "this machine has no GPU";
  }

  using Body = std::function<void(Communicator&)>;
  using Make = std::function<absl::StatusOr<std::unique_ptr<Communicator>>(
      std::unique_ptr<Communicator> host, int rank)>;

  void OverThreads(int ranks, const Make& make, const Body& body) {
    const absl::Status status = RunRanks(ranks, [&](Communicator& threads) -> absl::Status {
      auto comm = make(threads.Split(0, threads.rank()), threads.rank());
      if (!comm.ok()) return comm.status();
      body(**comm);
      return absl::OkStatus();
    });
    EXPECT_TRUE(status.ok()) << status;
  }

  // Every number of GPUs that there are and that the suite takes.
  void OverNccl(const CommOptions& options, const Body& body) {
    for (int ranks = 1; ranks <= std::min(NumDevices(), kMaxRanks); ++ranks) {
      SCOPED_TRACE(ranks);
      OverThreads(
          ranks,
          [&](std::unique_ptr<Communicator> host, int rank) {
            UseDevice(OfGpu(rank));
            return MakeNcclCommunicator(std::move(host), OfGpu(rank), options);
          },
          body);
    }
  }

  void OnOneGpu(int ranks, const Body& body) {
    OverThreads(
        ranks,
        [](std::unique_ptr<Communicator> host, int) {
          UseDevice(OfGpu(0));
          return MakeStagedCommunicator(std::move(host), OfGpu(0));
        },
        body);
  }

  static void PassSelfCheck(Communicator& comm) {
    for (const CollectiveCheck& check : CheckCollectives(comm, 1 << 20))
      EXPECT_TRUE(check.correct) << comm.name() << " " << check.name << ": " << check.problem;
  }
};

TEST_F(GpuTest, NcclDoesEverything) { OverNccl({}, RunConformance); }

TEST_F(GpuTest, NcclDoesEverythingInSmallChunks) {
  OverNccl({.chunk_bytes = 100'000}, RunConformance);
}

TEST_F(GpuTest, NcclPassesItsSelfCheck) { OverNccl({}, PassSelfCheck); }

TEST_F(GpuTest, NcclsOwnSumsAgreeToRounding) {
  OverNccl({.deterministic = false}, [](Communicator& comm) {
    const int size = comm.size(), rank = comm.rank();
    for (const auto& [dtype, tolerance] :
         {std::pair(at::kDouble, 1e-13), std::pair(at::kFloat, 1e-6)}) {
      const auto options = at::TensorOptions().dtype(dtype).device(comm.device());
      at::Tensor x = at::full({90001}, 1.0 / (7 + rank), options);
      double want = 0;
      for (int other = 0; other < size; ++other) want += 1.0 / (7 + other);
      comm.AllReduce(x);
      EXPECT_NEAR(x.cpu()[90000].item<double>(), want, tolerance);
      at::Tensor in = at::full({size * 3001}, 1.0 / (7 + rank), options);
      at::Tensor out = in.narrow(0, rank * 3001, 3001);
      comm.ReduceScatter(out, in);
      EXPECT_NEAR(out.cpu()[0].item<double>(), want, tolerance);
    }
  });
}

TEST_F(GpuTest, RanksShareAGpuThroughTheHost) {
  for (int ranks : {1, 2, 3}) {
    SCOPED_TRACE(ranks);
    OnOneGpu(ranks, RunConformance);
  }
  OnOneGpu(2, PassSelfCheck);
}

TEST_F(GpuTest, SharedGpuTellsMismatchesAndAbsence) { OnOneGpu(2, RunMismatch); }

// Work beside comes after what the current stream has been given, and before what follows its Wait,
// though no host call waits; memory that it has let go is not given out too early.
TEST_F(GpuTest, QueueOrdersStreams) {
  OverNccl({}, [](Communicator& comm) {
    const auto options = at::TensorOptions().dtype(at::kFloat).device(comm.device());
    CommQueue queue(comm.device());
    for (int round = 0; round < 20; ++round) {
      at::Tensor slow = at::ones({2048, 2048}, options);
      for (int step = 0; step < 8; ++step) slow = slow.matmul(slow) / 2048;  // All ones
      at::Tensor sent = slow.flatten();
      at::Tensor result = at::full({sent.numel()}, -1.0, options);
      const CommQueue::Ticket ticket =
          queue.Post([&comm, result, sent = std::exchange(sent, at::Tensor())]() mutable {
            result.copy_(sent);
            comm.AllReduce(result);
          });
      const at::Tensor meanwhile = at::full({2048 * 2048}, 5.0, options);
      queue.Wait(ticket);
      const at::Tensor sum = result + meanwhile;
      EXPECT_EQ(sum.min().item<float>(), comm.size() + 5.0f) << round;
      EXPECT_EQ(sum.max().item<float>(), comm.size() + 5.0f) << round;
    }
  });
}

// As `shoal run` joins: NCCL where each process has a GPU of its own, else through the host.
TEST_F(GpuTest, ProcessesDoEverything) {
  if (runtime == nullptr) GTEST_SKIP() << "not under mpirun";
  for (CommTransport transport : {CommTransport::kAuto, CommTransport::kMpi}) {
    const CommOptions options = {.transport = transport};
    auto host = MakeMpiCommunicator(runtime, options);
    ASSERT_TRUE(host.ok()) << host.status();
    auto comm = MakeDeviceCommunicator(*std::move(host), DeviceRequest::kCuda, options);
    ASSERT_TRUE(comm.ok()) << comm.status();
    EXPECT_EQ((*comm)->device().type(), at::kCUDA);
    if (NumDevices() < runtime->size()) {
      EXPECT_EQ((*comm)->name(), transport == CommTransport::kAuto ? "staged-shm" : "staged-mpi");
    }
    RunConformance(**comm);
    PassSelfCheck(**comm);
  }
}

TEST(NoGpu, IsToldInOneLine) {
  if (NumDevices() > 0) GTEST_SKIP() << "this machine has a GPU";
  auto comm = MakeDeviceCommunicator(MakeSingleRankCommunicator(), DeviceRequest::kCuda, {});
  EXPECT_NE(comm.status().message().find("this machine sees no GPU"), absl::string_view::npos)
      << comm.status();
  comm = MakeDeviceCommunicator(MakeSingleRankCommunicator(), DeviceRequest::kAuto, {});
  ASSERT_TRUE(comm.ok()) << comm.status();
  EXPECT_TRUE((*comm)->device().is_cpu());
}

}  // namespace
}  // namespace shoal

int main(int argc, char** argv) {
  ::testing::InitGoogleTest(&argc, argv);
  if (std::getenv("OMPI_COMM_WORLD_SIZE") != nullptr) {
    auto started = shoal::MpiRuntime::Start();
    if (!started.ok()) return 1;
    shoal::runtime = *std::move(started);
  }
  const int failed = RUN_ALL_TESTS();
  shoal::runtime.reset();
  return failed;
}
