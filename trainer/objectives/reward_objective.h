// A reward model from pairs of answers: the score of the chosen one is to be above that of the
// rejected one (Bradley & Terry 1952; Ouyang et al. 2022). A sequence's score is the one at its
// last token.
//
// Legend: P pairs, B = 2 P sequences: row 2 p is pair p's chosen answer, 2 p + 1 the rejected one.
#pragma once

#include <string>
#include <vector>

#include "trainer/objective.h"

namespace shoal {

class RewardObjective final : public Objective {
 public:
  // centering: see BradleyTerryLoss.
  explicit RewardObjective(double centering) : centering_(centering) {}

  HeadMode head_mode() const override { return HeadMode::kScores; }
  // Share of pairs in the right order, the difference of their scores, the mean score.
  std::vector<std::string> metric_names() const override;
  double Count(const Batch& batch) const override;  // Pairs
  // Reads last_B and weight_E of the batch.
  Tensor Loss(const Batch& batch, const Activations& head,
              ObjectiveMetrics& metrics) const override;

 private:
  double centering_;
};

}  // namespace shoal
