#include "parallel/comm/call_ledger.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "parallel/comm/local_communicator.h"

namespace shoal {
namespace {

using ::testing::Each;

Signature Sum(int64_t numel) {
  return {.kind = CollectiveKind::kAllReduce, .dtype = at::kFloat, .numel = numel};
}

// What each rank was told, after `body` on every rank and the ledger's end; empty: nothing.
std::vector<std::string> Problems(
    int ranks, const std::function<void(CallLedger& ledger, Communicator& comm)>& body,
    absl::Duration period = absl::Milliseconds(1)) {
  std::vector<std::string> told(ranks);
  const absl::Status status = RunRanks(ranks, [&](Communicator& comm) {
    CallLedger ledger(comm.Split(0, comm.rank()), period, [&](const std::string& problem) {
      EXPECT_EQ(told[comm.rank()], "") << "told twice";
      told[comm.rank()] = problem;
    });
    body(ledger, comm);
    return absl::OkStatus();
  });
  EXPECT_TRUE(status.ok()) << status;
  return told;
}

// The same calls until ranks know better.
void NoteUntilTold(CallLedger::Page& page) {
  try {
    while (true) page.Note(Sum(1));
  } catch (const CommError&) {
  }
}

TEST(CallLedger, IsSilentWhileRanksAgree) {
  const auto told = Problems(4, [](CallLedger& ledger, Communicator& comm) {
    const auto all = ledger.Open("all", 4, comm.rank());
    for (int round = 0; round < 50; ++round) {
      const int half = comm.rank() % 2;
      const auto part = ledger.Open(absl::StrCat("all/", round, ":", half), 2, comm.rank() / 2);
      for (int call = 0; call < 100; ++call) {
        EXPECT_EQ(part->Note(Sum(call + half)).sequence, static_cast<uint64_t>(call));
        all->Note(Sum(call));
      }
      if (round % 10 == 9) comm.Barrier();  // Else ranks drift apart
    }
  });
  EXPECT_THAT(told, Each(""));
}

TEST(CallLedger, NamesTheFirstCallsThatDifferOnEveryRank) {
  const auto told = Problems(3, [](CallLedger& ledger, Communicator& comm) {
    const auto page = ledger.Open("all", 3, comm.rank());
    for (int call = 0; call < 5000; ++call)
      page->Note(Sum(comm.rank() == 2 && call >= 4321 ? 1000 + call : call));
    NoteUntilTold(*page);
    EXPECT_THROW(ledger.ThrowIfDisagreed(), CommError);
  });
  EXPECT_THAT(told, Each("ranks disagree: rank 0 calls AllReduce(sum, float32, 4321 elements), "
                         "call 4321; rank 2 calls AllReduce(sum, float32, 5321 elements), "
                         "call 4321"));
}

TEST(CallLedger, ToldWhoIsMeantInAGroup) {
  const auto told = Problems(4, [](CallLedger& ledger, Communicator& comm) {
    const auto page = ledger.Open(absl::StrCat("all/0:", comm.rank() / 2), 2, comm.rank() % 2);
    page->Note(comm.rank() == 3 ? Signature{.kind = CollectiveKind::kBroadcast, .numel = 7}
                                : Sum(7));
    NoteUntilTold(*page);
  });
  EXPECT_THAT(told, Each("ranks disagree: rank 0 calls AllReduce(sum, float32, 7 elements), "
                         "call 0; rank 1 calls Broadcast(uint8, 7 elements, root 0), call 0 "
                         "(ranks of a group: of the job's, 2 and 3)"));
}

TEST(CallLedger, SetsMessagesBesideTheirReceives) {
  const auto told = Problems(2, [](CallLedger& ledger, Communicator& comm) {
    const auto page = ledger.Open("all/0>1", 2, comm.rank());
    const CollectiveKind kind = comm.rank() == 0 ? CollectiveKind::kSend : CollectiveKind::kRecv;
    for (int message = 0; message < 10; ++message) {
      page->Note({.kind = kind,
                  .dtype = at::kFloat,
                  .root = 1 - comm.rank(),
                  .numel = message == 8 ? 10 + comm.rank() : 10});
    }
    NoteUntilTold(*page);
  });
  EXPECT_THAT(told, Each("ranks disagree: rank 0 calls Send(float32, 10 elements, to rank 1), "
                         "call 8; rank 1 calls Recv(float32, 11 elements, from rank 0), call 8"));
}

TEST(CallLedger, ComparesWhatIsThereWhenItEnds) {
  const auto told = Problems(
      2,
      [](CallLedger& ledger, Communicator& comm) {
        ledger.Open("all", 2, comm.rank())->Note(Sum(comm.rank()));
      },
      absl::Hours(1));
  EXPECT_THAT(told, Each(testing::HasSubstr("rank 1 calls AllReduce(sum, float32, 1 elements)")));
}

TEST(CallLedger, ARankThatIsBehindDoesNotDisagree) {
  const auto told = Problems(2, [](CallLedger& ledger, Communicator& comm) {
    const auto page = ledger.Open("all", 2, comm.rank());
    for (int call = 0; call < 100 + 50 * comm.rank(); ++call) page->Note(Sum(call));
    if (comm.rank() == 1) ledger.Open("of rank 1 alone yet", 2, 1)->Note(Sum(1));
  });
  EXPECT_THAT(told, Each(""));
}

}  // namespace
}  // namespace shoal
