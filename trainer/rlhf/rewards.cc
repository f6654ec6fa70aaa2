#include "trainer/rlhf/rewards.h"

#include <algorithm>
#include <cmath>
#include <regex>

#include "absl/strings/numbers.h"
#include "trainer/rlhf/arithmetic.h"

namespace shoal {
namespace {

// A reward of each answer by itself.
template <typename Rule>
class RuleReward final : public Reward {
 public:
  explicit RuleReward(Rule rule) : rule_(std::move(rule)) {}

  absl::StatusOr<std::vector<double>> Score(std::span<const Answer> answers) override {
    std::vector<double> rewards;
    for (const Answer& answer : answers) {
      SHOAL_ASSIGN_OR_RETURN(const double reward, rule_(answer));
      rewards.push_back(reward);
    }
    return rewards;
  }

 private:
  Rule rule_;
};

template <typename Rule>
std::unique_ptr<Reward> MakeRule(Rule rule) {
  return std::make_unique<RuleReward<Rule>>(std::move(rule));
}

std::optional<int64_t> WholeNumber(absl::string_view text) {
  int64_t value;
  return absl::SimpleAtoi(text, &value) ? std::optional(value) : std::nullopt;
}

absl::StatusOr<double> RewardArithmetic(const Answer& answer) {
  const std::optional<int64_t> wanted = answer.prompt->answer.empty()
                                            ? EvaluateArithmetic(answer.prompt->text)
                                            : WholeNumber(answer.prompt->answer);
  if (!wanted) {
    return absl::InvalidArgumentError(
        absl::StrCat("reward arithmetic: the prompt \"", answer.prompt->text,
                     "\" ends in no expression and names no number as its answer"));
  }
  return WholeNumber(answer.text) == wanted ? 1.0 : 0.0;
}

}  // namespace

std::unique_ptr<Reward> MakeArithmeticReward() { return MakeRule(RewardArithmetic); }

absl::StatusOr<std::unique_ptr<Reward>> MakeRegexReward(const std::string& pattern) {
  try {
    return MakeRule([regex = std::regex(pattern)](const Answer& answer) -> absl::StatusOr<double> {
      try {
        return std::regex_search(answer.text, regex) ? 1.0 : 0.0;
      } catch (const std::regex_error& error) {
        return absl::ResourceExhaustedError(absl::StrCat("reward regex: ", error.what()));
      }
    });
  } catch (const std::regex_error& error) {
    return absl::InvalidArgumentError(
        absl::StrCat("\"", pattern, "\" is no regular expression: ", error.what()));
  }
}

std::unique_ptr<Reward> MakeLengthReward(int64_t target_tokens) {
  return MakeRule([target_tokens](const Answer& answer) -> absl::StatusOr<double> {
    const double off = std::abs(static_cast<double>(answer.tokens.size()) - target_tokens);
    return -std::min(1.0, off / target_tokens);
  });
}

std::unique_ptr<Reward> MakeOverlongReward(const OverlongOptions& options) {
  return MakeRule([options](const Answer& answer) -> absl::StatusOr<double> {
    const double over = static_cast<double>(answer.tokens.size()) -
                        static_cast<double>(options.limit - options.buffer);
    return -std::clamp(over / static_cast<double>(options.buffer), 0.0, 1.0);
  });
}

}  // namespace shoal
