// Muon (Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks"; its scale
// for AdamW's learning rate: Liu et al. 2025, "Muon is Scalable for LLM Training", section 2.2).
//
//   m = mu m + (1 - mu) g;  u = mu m + (1 - mu) g, or m without nesterov
//   w -= lr (scale orthogonalise(u) + wd w)
//
// orthogonalise: Newton-Schulz iterations in the master dtype, X = u / |u|, then
// X = a X + (b A + c A^2) X with A = X X^T and (a, b, c) = (3.4445, -4.7750, 2.0315), which bring
// the singular values near 1.
//
// The momentum is sharded like the weights. A step gathers a unit's u, deals its matrices out over
// all ranks that share them (the costliest first, each to the rank with least to do), and scatters
// the results: of P padded elements of a unit a rank sends 2 P (N-1)/N over N shards, in the master
// dtype, and under tensor parallelism sums the whole matrices twice. Several units go together
// where one has fewer matrices than there are ranks; so many are held whole, twice, while it lasts.
#pragma once

#include "optim/whole_rule.h"

namespace shoal {

class Muon final : public WholeRule {
 public:
  enum class Scale {
    kMatchAdamW,  // 0.2 sqrt(max(rows, columns))
    kOriginal,    // sqrt(max(1, rows / columns))
  };
  struct Options {
    double momentum = 0.95;
    bool nesterov = true;
    int iterations = 5;
    Scale scale = Scale::kMatchAdamW;
    double weight_decay = 0;
  };

  explicit Muon(const Options& options) : options_(options) {}

  std::vector<State> element_states(const std::vector<int64_t>& shape,
                                    at::ScalarType master) const override;
  std::vector<State> shared_states(const std::vector<int64_t>& shape,
                                   at::ScalarType master) const override;
  std::vector<Call> Calls(const WholeUnitShape& unit) const override;
  // A matrix for each rank.
  bool FillsRound(size_t weights, size_t ranks) const override { return weights >= ranks; }
  void Update(std::span<WholeUnit> units, const UpdateOptions& options) const override;

 private:
  Tensor Momenta(WholeUnit& unit, double grad_scale) const;
  void UpdateRound(std::span<WholeUnit> units, const UpdateOptions& options) const;
  void Apply(WholeUnit& unit, const Tensor& steps, const UpdateOptions& options) const;

  Options options_;
};

// The matrix with its singular values brought near 1; float32 or float64.
Tensor Orthogonalize(const Tensor& matrix, int iterations);

}  // namespace shoal
