// The conformance suite over rank threads, on their host memory and on fake devices.
#include <gtest/gtest.h>

#include <functional>
#include <tuple>

#include "absl/strings/str_cat.h"
#include "parallel/comm/device_communicator.h"
#include "parallel/comm/local_communicator.h"
#include "parallel/comm/self_check.h"
#include "parallel/comm/staged_communicator.h"
#include "tests/fake_device/fake_device.h"
#include "tests/parallel/comm/conformance.h"

namespace shoal {
namespace {

enum class Where {
  kHost,
  kStagedHost,    // Staged, with host memory in the place of the device's
  kStagedDevice,  // Staged, each rank with a fake device of its own
  kSharedDevice,  // Staged, all ranks on one
};

const char* NameOf(Where where) {
  switch (where) {
    case Where::kHost:
      return "Host";
    case Where::kStagedHost:
      return "StagedHost";
    case Where::kStagedDevice:
      return "StagedDevice";
    case Where::kSharedDevice:
      return "SharedDevice";
  }
  return "";
}

class LocalConformance : public ::testing::TestWithParam<std::tuple<int, Where>> {
 protected:
  static int Ranks() { return std::get<0>(GetParam()); }

  void Run(const std::function<void(Communicator&)>& body, const CommOptions& options = {}) {
    const Where where = std::get<1>(GetParam());
    const absl::Status status = RunRanks(
        Ranks(),
        [&](Communicator& comm) {
          if (where == Where::kHost) {
            body(comm);
            return absl::OkStatus();
          }
          const at::Device device = where == Where::kStagedHost     ? at::Device(at::kCPU)
                                    : where == Where::kSharedDevice ? FakeDevice()
                                                                    : FakeDevice(comm.rank());
          if (!device.is_cpu()) UseDevice(device);
          const auto staged = MakeStagedCommunicator(comm.Split(0, comm.rank()), device);
          EXPECT_EQ(staged->name(), "staged-local");
          EXPECT_EQ(staged->device(), device);
          body(*staged);
          return absl::OkStatus();
        },
        options);
    EXPECT_TRUE(status.ok()) << status;
  }
};

TEST_P(LocalConformance, Everything) { Run(RunConformance); }

TEST_P(LocalConformance, MismatchNamesBothCalls) {
  if (Ranks() > 1) Run(RunMismatch);
}

TEST_P(LocalConformance, TimeoutNamesTheAbsent) {
  if (Ranks() > 1) Run(RunTimeout, {.timeout = absl::Milliseconds(50)});
}

TEST_P(LocalConformance, PassesItsSelfCheck) {
  Run([](Communicator& comm) {
    for (const CollectiveCheck& check : CheckCollectives(comm, 1 << 16)) {
      EXPECT_TRUE(check.correct) << check.name << ": " << check.problem;
      EXPECT_GT(check.bytes_per_second, 0);
    }
  });
}

INSTANTIATE_TEST_SUITE_P(
    Ranks, LocalConformance,
    ::testing::Values(std::tuple(1, Where::kHost), std::tuple(2, Where::kHost),
                      std::tuple(3, Where::kHost), std::tuple(4, Where::kHost),
                      std::tuple(3, Where::kStagedHost), std::tuple(1, Where::kStagedDevice),
                      std::tuple(2, Where::kSharedDevice), std::tuple(3, Where::kStagedDevice),
                      std::tuple(4, Where::kStagedDevice)),
    [](const auto& info) {
      return absl::StrCat(NameOf(std::get<1>(info.param)), std::get<0>(info.param));
    });

}  // namespace
}  // namespace shoal
