// How good an answer is: rules, a program, a model, and their weighted sum.
#pragma once

#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/time/time.h"
#include "core/status.h"
#include "inference/generator.h"
#include "trainer/rlhf/prompt_set.h"

namespace shoal {

struct Answer {
  const Prompt* prompt = nullptr;
  std::string text;  // Of the tokens, special ones left out
  std::span<const int64_t> tokens;
  FinishReason finish_reason = FinishReason::kLength;
};

class Reward {
 public:
  virtual ~Reward() = default;
  // One number an answer; more is better. A function of the answer alone.
  virtual absl::StatusOr<std::vector<double>> Score(std::span<const Answer> answers) = 0;
};

// 1 if the answer is the prompt's number (its `answer`, else the value of the expression that it
// ends in) and nothing else but spaces, else 0. InvalidArgument: a prompt that asks for no number.
std::unique_ptr<Reward> MakeArithmeticReward();

// 1 if `pattern` (ECMAScript) is found in the answer, else 0. InvalidArgument: not an expression.
absl::StatusOr<std::unique_ptr<Reward>> MakeRegexReward(const std::string& pattern);

// -|n - target| / target of an answer of n tokens, at least -1.
std::unique_ptr<Reward> MakeLengthReward(int64_t target_tokens);

// 0 up to limit - buffer tokens, from there linearly to -1 at `limit` (Yu et al. 2025, "DAPO", eq.
// 13).
struct OverlongOptions {
  int64_t limit = 0;
  int64_t buffer = 0;  // In [1, limit]
};
std::unique_ptr<Reward> MakeOverlongReward(const OverlongOptions& options);

// A program of the user's, run by /bin/sh for as long as the reward lives. For each answer it reads
// a line, the prompt's own object with "completion" added, and writes a line: a number, or an
// object with "reward". Aborted: it ended, or wrote something else. DeadlineExceeded: it took
// longer than `timeout` for the answers of one call.
struct ProgramOptions {
  std::string command;
  absl::Duration timeout = absl::Seconds(60);
};
absl::StatusOr<std::unique_ptr<Reward>> MakeProgramReward(const ProgramOptions& options);

}  // namespace shoal
