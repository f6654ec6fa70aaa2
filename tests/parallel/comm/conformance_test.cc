// The conformance suite over rank threads.
#include <gtest/gtest.h>

#include <functional>

#include "parallel/comm/local_communicator.h"
#include "parallel/comm/self_check.h"
#include "tests/parallel/comm/conformance.h"

namespace shoal {
namespace {

class LocalConformance : public ::testing::TestWithParam<int> {
 protected:
  void Run(const std::function<void(Communicator&)>& body, const CommOptions& options = {}) {
    const absl::Status status = RunRanks(
        GetParam(),
        [&](Communicator& comm) {
          body(comm);
          return absl::OkStatus();
        },
        options);
    EXPECT_TRUE(status.ok()) << status;
  }
};

TEST_P(LocalConformance, Everything) { Run(RunConformance); }

TEST_P(LocalConformance, MismatchNamesBothCalls) {
  if (GetParam() > 1) Run(RunMismatch);
}

TEST_P(LocalConformance, TimeoutNamesTheAbsent) {
  if (GetParam() > 1) Run(RunTimeout, {.timeout = absl::Milliseconds(50)});
}

TEST_P(LocalConformance, PassesItsSelfCheck) {
  Run([](Communicator& comm) {
    for (const CollectiveCheck& check : CheckCollectives(comm, 1 << 16)) {
      EXPECT_TRUE(check.correct) << check.name << ": " << check.problem;
      EXPECT_GT(check.bytes_per_second, 0);
    }
  });
}

INSTANTIATE_TEST_SUITE_P(Ranks, LocalConformance, ::testing::Values(1, 2, 3, 4));

}  // namespace
}  // namespace shoal
