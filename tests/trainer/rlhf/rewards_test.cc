#include "trainer/rlhf/rewards.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "absl/time/clock.h"
#include "trainer/rlhf/arithmetic.h"

namespace shoal {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

Prompt Asking(const std::string& text, const std::string& answer = "") {
  return {.text = text,
          .tokens = {1},
          .answer = answer,
          .line = Json{{"prompt", text}, {"answer", answer}}};
}

std::vector<double> ScoresOf(Reward& reward, const Prompt& prompt,
                             const std::vector<std::string>& texts) {
  std::vector<Answer> answers;
  for (const std::string& text : texts) answers.push_back({.prompt = &prompt, .text = text});
  const auto scores = reward.Score(answers);
  EXPECT_TRUE(scores.ok()) << scores.status();
  return scores.value_or(std::vector<double>{});
}

TEST(Arithmetic, Evaluates) {
  EXPECT_EQ(EvaluateArithmetic("12+34="), 46);
  EXPECT_EQ(EvaluateArithmetic("What is 2 * (3 - 5) + 1 ="), -3);
  EXPECT_EQ(EvaluateArithmetic("7"), 7);
  EXPECT_EQ(EvaluateArithmetic("-(4)*-2"), 8);
  EXPECT_EQ(EvaluateArithmetic("nothing"), std::nullopt);
  EXPECT_EQ(EvaluateArithmetic("1+="), std::nullopt);
  EXPECT_EQ(EvaluateArithmetic("9223372036854775807+1="), std::nullopt);
  EXPECT_EQ(EvaluateArithmetic(std::string(100000, '(')), std::nullopt);
}

TEST(Rewards, Arithmetic) {
  const auto reward = MakeArithmeticReward();
  EXPECT_THAT(ScoresOf(*reward, Asking("12+34="), {"46", " 46\n", "46 or so", "47", "", "12+34"}),
              ElementsAre(1, 1, 0, 0, 0, 0));
  EXPECT_THAT(ScoresOf(*reward, Asking("the answer to all", "42"), {"42", "43"}),
              ElementsAre(1, 0));
  const Prompt none = Asking("hello");
  const std::vector<Answer> answers = {{.prompt = &none, .text = "1"}};
  EXPECT_THAT(reward->Score(answers).status().message(), HasSubstr("\"hello\""));
}

TEST(Rewards, RegexAndLengths) {
  EXPECT_THAT(ScoresOf(**MakeRegexReward("^[a-c]+$"), Asking("x"), {"abc", "abd", ""}),
              ElementsAre(1, 0, 0));
  EXPECT_THAT(MakeRegexReward("(").status().message(), HasSubstr("no regular expression"));

  const Prompt prompt = Asking("x");
  const std::vector<int64_t> tokens(12, 1);
  std::vector<Answer> answers;
  for (size_t n : {4, 6, 9, 12})
    answers.push_back({.prompt = &prompt, .tokens = std::span(tokens).first(n)});
  EXPECT_THAT(*MakeLengthReward(4)->Score(answers), ElementsAre(0, -0.5, -1, -1));
  EXPECT_THAT(*MakeOverlongReward({.limit = 12, .buffer = 4})->Score(answers),
              ElementsAre(0, 0, -0.25, -1));
}

absl::Status ProgramFails(const std::string& command, absl::Duration timeout) {
  auto reward = MakeProgramReward({.command = command, .timeout = timeout});
  if (!reward.ok()) return reward.status();
  const Prompt prompt = Asking("x");
  const std::vector<Answer> answers(20000, {.prompt = &prompt, .text = "some words"});
  return (*reward)->Score(answers).status();
}

// Lengths of completions, by a program that has nothing but a shell.
TEST(Rewards, ProgramAnswersLineByLine) {
  const auto reward = MakeProgramReward(
      {.command = "sed -u 's/.*\"completion\":\"\\([0-9]*\\)\".*/{\"reward\": \\1}/'"});
  ASSERT_TRUE(reward.ok()) << reward.status();
  EXPECT_THAT(ScoresOf(**reward, Asking("x"), {"12", "7"}), ElementsAre(12, 7));
  EXPECT_THAT(ScoresOf(**reward, Asking("y"), {"3"}), ElementsAre(3));
  // More than the pipes hold, in both directions at once.
  const Prompt prompt = Asking("x");
  const std::vector<Answer> many(50000, {.prompt = &prompt, .text = "5"});
  const auto scores = (*reward)->Score(many);
  ASSERT_TRUE(scores.ok()) << scores.status();
  EXPECT_EQ(*scores, std::vector<double>(50000, 5.0));
}

TEST(Rewards, ProgramsThatFail) {
  EXPECT_THAT(ProgramFails("exit 3", absl::Seconds(20)).message(), HasSubstr("ended before"));
  EXPECT_THAT(ProgramFails("head -n 1 >/dev/null; echo 1", absl::Seconds(20)).message(),
              HasSubstr("ended before"));
  EXPECT_THAT(ProgramFails("while read -r line; do echo maybe; done", absl::Seconds(20)).message(),
              HasSubstr("wrote \"maybe\""));
  const absl::Time start = absl::Now();
  const absl::Status silent = ProgramFails("sleep 1000", absl::Milliseconds(300));
  EXPECT_TRUE(absl::IsDeadlineExceeded(silent));
  EXPECT_THAT(silent.message(), HasSubstr("silent"));
  EXPECT_LT(absl::Now() - start, absl::Seconds(10));
}

}  // namespace
}  // namespace shoal
