// Direct preference objectives: pairs of answers, of which the first one was chosen. The formulas
// are those of rlhf/preference_losses.h; here a batch's log-probabilities become their arguments.
//
// Legend: P pairs, B = 2 P sequences: row 2 p is pair p's chosen answer, 2 p + 1 the rejected one.
#pragma once

#include <string>
#include <vector>

#include "trainer/objective.h"

namespace shoal {

class PreferenceObjective final : public Objective {
 public:
  enum class Kind { kDpo, kIpo, kKto, kSimPo };
  struct Options {
    Kind kind = Kind::kDpo;
    double beta = 0.1;
    double gamma = 0.5;                                       // Of kSimPo
    double label_smoothing = 0.0;                             // Of kDpo
    double desirable_weight = 1.0, undesirable_weight = 1.0;  // Of kKto
  };
  explicit PreferenceObjective(const Options& options) : options_(options) {}

  // Does the batch have to carry the reference's log-probabilities?
  bool needs_reference() const { return options_.kind != Kind::kSimPo; }
  // And the mean log-ratio of mismatched answers?
  bool needs_reference_point() const { return options_.kind == Kind::kKto; }

  HeadMode head_mode() const override { return HeadMode::kLogprobs; }
  // Share of pairs whose chosen answer has the higher implicit reward; rewards
  // (beta times log-ratio; of SimPO beta times mean log-probability) and the margin between them;
  // log-probabilities of the answers.
  std::vector<std::string> metric_names() const override;
  // Pairs; of KTO answers. The batch's weight_E is 0 for those that only fill it.
  double Count(const Batch& batch) const override;
  // Reads reference_B, the reference's log-probability of each answer, and reference_point, (), as
  // needed.
  Tensor Loss(const Batch& batch, const Activations& head,
              ObjectiveMetrics& metrics) const override;

  static constexpr char kReference[] = "reference_B";
  static constexpr char kReferencePoint[] = "reference_point";

 private:
  Options options_;
};

// (B): log-probabilities (B, T), 0 where there is no target, summed over each row.
Tensor SequenceLogprobs(const Tensor& logprobs_BT);

}  // namespace shoal
