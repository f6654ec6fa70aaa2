#include "launch/launcher_output.h"

#include <gtest/gtest.h>

namespace shoal {
namespace {

const std::string kFrame = std::string(74, '-') + "\n";
const std::string kNoticed =
    kFrame +
    "mpirun noticed that process rank 1 with PID 0 on node box exited on signal 9 (Killed).\n" +
    kFrame;

// Whole, and a byte at a time: the same comes through.
std::string Through(const std::string& text, LauncherOutput** kept = nullptr) {
  std::string whole, bytewise;
  LauncherOutput first([&](absl::string_view bytes) { whole.append(bytes.data(), bytes.size()); });
  static LauncherOutput* second = nullptr;
  delete second;
  second = new LauncherOutput(
      [&](absl::string_view bytes) { bytewise.append(bytes.data(), bytes.size()); });
  first.Add(text);
  first.Finish();
  for (char byte : text) second->Add(absl::string_view(&byte, 1));
  second->Finish();
  if (kept != nullptr) *kept = second;
  EXPECT_EQ(whole, bytewise);
  return whole;
}

TEST(LauncherOutput, PassesTheRanksLinesOn) {
  for (const std::string text :
       {"", "hello\nworld\n", "no end", "--dashes\n[brackets]\n", "a\rb\rc"}) {
    EXPECT_EQ(Through(text), text);
  }
}

TEST(LauncherOutput, PassesProgressOnBeforeItsLineEnds) {
  std::string got;
  LauncherOutput output([&](absl::string_view bytes) { got.append(bytes.data(), bytes.size()); });
  output.Add("step 1");
  EXPECT_EQ(got, "step 1");
  output.Add("\rstep 2");
  EXPECT_EQ(got, "step 1\rstep 2");
}

TEST(LauncherOutput, ReadsWhoWasKilledAndKeepsTheReportBack) {
  LauncherOutput* output = nullptr;
  EXPECT_EQ(Through("before\n" + kNoticed + "after\n", &output), "before\nafter\n");
  ASSERT_TRUE(output->killed().has_value());
  EXPECT_EQ(output->killed()->rank, 1);
  EXPECT_EQ(output->killed()->signal, 9);
  EXPECT_FALSE(output->rank_explained());
}

TEST(LauncherOutput, KeepsARanksWordInTheMiddleOfAReport) {
  LauncherOutput* output = nullptr;
  const std::string text =
      kFrame + "MPI_ABORT was invoked on rank 2\nshoal: rank 2: torn\nwith errorcode 65.\n" +
      kFrame + "[box:7] 1 more process has sent help message help-mpi-api.txt / mpi-abort\n";
  EXPECT_EQ(Through(text, &output), "shoal: rank 2: torn\n");
  EXPECT_TRUE(output->rank_explained());
}

TEST(LauncherOutput, PassesOtherReportsOn) {
  const std::string slots =
      kFrame + "There are not enough slots available in the system\n" + kFrame;
  EXPECT_EQ(Through(slots), slots);
  EXPECT_EQ(Through(kFrame + "cut short"), kFrame + "cut short");
}

}  // namespace
}  // namespace shoal
