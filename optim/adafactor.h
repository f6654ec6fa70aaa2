// Adafactor (Shazeer and Stern, "Adafactor: Adaptive Learning Rates with Sublinear Memory Cost",
// ICML 2018, Algorithms 4 and 5) with a given learning rate: the scheduler's, where the paper has
// min(1e-2, 1 / sqrt(t)).
//
//   d = 1 - t^-c;  matrices: R = d R + (1 - d) mean over columns of (g^2 + 1e-30), C alike over
//   rows u = g / sqrt(R C / mean(R));  vectors: V = d V + (1 - d) (g^2 + 1e-30), u = g / sqrt(V) w
//   -= lr max(1e-3, rms(w)) u / max(1, rms(u) / threshold)
//
// The means are of whole weights: a rank sums over its runs, and float64 sums go over the unit's
// ranks, rows + columns + 2 numbers a matrix and 2 a vector.
#pragma once

#include "optim/whole_rule.h"

namespace shoal {

class Adafactor final : public WholeRule {
 public:
  struct Options {
    double decay_exponent = 0.8;  // c
    double clip_threshold = 1.0;
    bool scale_parameter = true;  // false: without the factor max(1e-3, rms(w))
    double weight_decay = 0;      // Decoupled: w -= lr wd w
  };

  explicit Adafactor(const Options& options) : options_(options) {}

  std::vector<State> element_states(const std::vector<int64_t>& shape,
                                    at::ScalarType master) const override;
  std::vector<State> shared_states(const std::vector<int64_t>& shape,
                                   at::ScalarType master) const override;
  std::vector<Call> Calls(const WholeUnitShape& unit) const override;
  void Update(std::span<WholeUnit> units, const UpdateOptions& options) const override;

 private:
  void UpdateUnit(WholeUnit& unit, const UpdateOptions& options) const;

  Options options_;
};

}  // namespace shoal
