// The conformance suite over MPI ranks, through shared memory and through MPI's own collectives, of
// host memory and of a fake device that all share.
// Started by mpirun; each rank is a GoogleTest program of its own and all run the same tests in the
// same order.
#include <gtest/gtest.h>

#include "parallel/comm/device_communicator.h"
#include "parallel/comm/local_communicator.h"
#include "parallel/comm/mpi_communicator.h"
#include "parallel/comm/self_check.h"
#include "parallel/comm/staged_communicator.h"
#include "tests/fake_device/fake_device.h"
#include "tests/parallel/comm/conformance.h"

namespace shoal {
namespace {

std::shared_ptr<MpiRuntime> runtime;

std::unique_ptr<Communicator> Make(CommOptions options) {
  auto comm = MakeMpiCommunicator(runtime, options);
  EXPECT_TRUE(comm.ok()) << comm.status();
  return *std::move(comm);
}

class MpiConformance : public ::testing::TestWithParam<CommOptions> {};

TEST_P(MpiConformance, Everything) {
  std::unique_ptr<Communicator> comm = Make(GetParam());
  EXPECT_EQ(comm->name(), GetParam().transport == CommTransport::kAuto ? "shm" : "mpi");
  RunConformance(*comm);
}

TEST_P(MpiConformance, MismatchNamesBothCalls) {
  if (runtime->size() > 1) RunMismatch(*Make(GetParam()));
}

TEST_P(MpiConformance, TimeoutNamesTheAbsent) {
  if (runtime->size() == 1) return;
  CommOptions options = GetParam();
  options.timeout = absl::Milliseconds(200);
  std::unique_ptr<Communicator> hasty = Make(options);
  std::unique_ptr<Communicator> patient = Make(GetParam());
  RunTimeout(*hasty);
  patient->Barrier();
}

TEST_P(MpiConformance, PassesItsSelfCheck) {
  for (const CollectiveCheck& check : CheckCollectives(*Make(GetParam()), 1 << 16)) {
    EXPECT_TRUE(check.correct) << check.name << ": " << check.problem;
  }
}

TEST_P(MpiConformance, EverythingFromADevice) {
  UseDevice(FakeDevice());
  const auto comm = MakeStagedCommunicator(Make(GetParam()), FakeDevice());
  EXPECT_EQ(comm->name(),
            GetParam().transport == CommTransport::kAuto ? "staged-shm" : "staged-mpi");
  RunConformance(*comm);
}

// Small chunks, so that tensors of the suite take many.
INSTANTIATE_TEST_SUITE_P(
    Transports, MpiConformance,
    ::testing::Values(CommOptions{.transport = CommTransport::kAuto},
                      CommOptions{.transport = CommTransport::kMpi, .chunk_bytes = 100'000}),
    [](const auto& info) { return info.param.transport == CommTransport::kAuto ? "Shm" : "Mpi"; });

// The library's own sums: equal to a tolerance.
TEST(MpiFastReduction, AgreesToRounding) {
  std::unique_ptr<Communicator> comm =
      Make({.transport = CommTransport::kMpi, .deterministic = false, .chunk_bytes = 5000});
  const int size = comm->size(), rank = comm->rank();
  at::Tensor x = at::arange(9001, at::kDouble) / 7.0 + rank;
  const at::Tensor want = at::arange(9001, at::kDouble) / 7.0 * size + size * (size - 1) / 2.0;
  comm->AllReduce(x);
  EXPECT_TRUE(x.allclose(want, 1e-13, 0));
  at::Tensor in = (at::arange(3001 * size, at::kFloat) / 7.0f).contiguous();
  at::Tensor out = at::empty({3001}, at::kFloat);
  comm->ReduceScatter(out, in);
  EXPECT_TRUE(out.allclose(in.narrow(0, rank * 3001, 3001) * size, 1e-6, 0));
}

}  // namespace
}  // namespace shoal

int main(int argc, char** argv) {
  ::testing::InitGoogleTest(&argc, argv);
  auto started = shoal::MpiRuntime::Start();
  if (!started.ok()) return 1;
  shoal::runtime = *std::move(started);
  // Only rank 0 tells what passes; all tell what fails.
  if (shoal::runtime->rank() != 0) {
    auto& listeners = ::testing::UnitTest::GetInstance()->listeners();
    class FailuresOnly : public ::testing::EmptyTestEventListener {
      void OnTestPartResult(const ::testing::TestPartResult& result) override {
        if (result.failed()) {
          std::printf("rank %d: %s:%d: %s\n", shoal::runtime->rank(), result.file_name(),
                      result.line_number(), result.message());
        }
      }
    };
    delete listeners.Release(listeners.default_result_printer());
    listeners.Append(new FailuresOnly);
  }
  const int failed = RUN_ALL_TESTS();
  shoal::runtime.reset();
  return failed;
}
