// The recipe's rewards together: each rank scores its share of the answers, and all get the sums.
#pragma once

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "core/recipe.h"
#include "parallel/comm/communicator.h"
#include "trainer/rlhf/rewards.h"

namespace shoal {

class RewardSum {
 public:
  struct Sources {
    FileSystem& files;
    const Tokenizer& tokenizer;  // The policy's; outlives the sum
    at::Device device;           // Where models that reward are asked
  };
  // Of recipe.rlhf.rewards. Errors name the key to blame.
  static absl::StatusOr<std::unique_ptr<RewardSum>> Create(const LoadedRecipe& recipe,
                                                           const Sources& sources);

  struct Scores {
    std::vector<double> rewards;                        // One an answer: the weighted sum
    std::vector<std::pair<std::string, double>> means;  // Of each reward without its weight
  };
  // Of the same answers on every rank, dealt out over `ranks` in runs. Collective; an error of one
  // rank is returned on all.
  absl::StatusOr<Scores> Score(std::span<const Answer> answers, Communicator& ranks);

 private:
  struct Term {
    std::string name;
    double weight;
    std::unique_ptr<Reward> reward;
  };
  RewardSum() = default;
  absl::StatusOr<at::Tensor> ScoreShare(std::span<const Answer> answers, Communicator& ranks);

  std::vector<Term> terms_;
};

}  // namespace shoal
