#include "parallel/comm/local_communicator.h"

#include <gtest/gtest.h>

#include <ATen/ops/arange.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/full.h>

namespace shoal {
namespace {

TEST(RunRanks, GivesEveryRankItsPlace) {
  absl::Status status = RunRanks(4, [](Communicator& comm) -> absl::Status {
    at::Tensor x = at::full({3}, static_cast<float>(comm.rank()));
    comm.AllReduce(x);
    EXPECT_EQ(x[1].item<float>(), 6);
    return absl::OkStatus();
  });
  EXPECT_TRUE(status.ok()) << status;
}

TEST(RunRanks, NamesTheRankThatFailedAndWakesTheOthers) {
  absl::Status status = RunRanks(4, [](Communicator& comm) -> absl::Status {
    if (comm.rank() == 2) return absl::DataLossError("shard 7 is torn");
    at::Tensor x = at::full({100000}, 1.0f);
    comm.AllReduce(x);
    ADD_FAILURE() << "the collective went on without rank 2";
    return absl::OkStatus();
  });
  EXPECT_EQ(status, absl::DataLossError("rank 2: shard 7 is torn"));
}

TEST(RunRanks, WakesRanksThatWaitInASplitGroup) {
  absl::Status status = RunRanks(4, [](Communicator& comm) -> absl::Status {
    std::unique_ptr<Communicator> half = comm.Split(comm.rank() / 2, 0);
    if (comm.rank() == 3) throw std::runtime_error("out of luck");
    half->Barrier();
    comm.Barrier();
    return absl::OkStatus();
  });
  EXPECT_EQ(status, absl::InternalError("rank 3: out of luck"));
}

TEST(RunRanks, LetsNobodyUseABrokenGroup) {
  absl::Status status = RunRanks(2, [](Communicator& comm) -> absl::Status {
    at::Tensor x = at::full({comm.rank() + 1}, 1.0f);
    EXPECT_THROW(comm.AllReduce(x), CommError);
    EXPECT_THROW(comm.Barrier(), CommError);
    return absl::OkStatus();
  });
  EXPECT_TRUE(status.ok()) << status;
}

TEST(SingleRank, NeedsNobody) {
  std::unique_ptr<Communicator> comm = MakeSingleRankCommunicator();
  EXPECT_EQ(comm->size(), 1);
  at::Tensor x = at::arange(5);
  comm->AllReduce(x);
  at::Tensor out = at::empty({5}, at::kLong);
  comm->AllGather(out, x);
  EXPECT_TRUE(out.equal(at::arange(5)));
  comm->Barrier();
  EXPECT_EQ(comm->Split(0, 0)->size(), 1);
  EXPECT_EQ(comm->Split(-1, 0), nullptr);
  EXPECT_EQ(comm->counters().bytes_sent, 0);
  EXPECT_EQ(comm->counters().calls, 3);
}

}  // namespace
}  // namespace shoal
