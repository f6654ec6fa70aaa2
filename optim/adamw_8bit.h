// AdamW whose moments take a byte each (Dettmers et al., "8-bit Optimizers via Block-wise
// Quantization", ICLR 2022): a moment is scale * code[byte], `code` one of 256 numbers of [-1, 1]
// (the second moment's of [0, 1]) that lie ten times as dense in each decade towards zero, and
// `scale` the largest magnitude of its block of 256.
//
// Blocks are of whole weights, as they lie in memory, whatever part of one a rank holds: the
// largest magnitudes are found over all ranks (a maximum in the master dtype, of one number a block
// and moment), so every mesh quantises alike. Scales are kept by every rank.
#pragma once

#include "optim/whole_rule.h"

namespace shoal {

class AdamW8Bit final : public WholeRule {
 public:
  static constexpr int64_t kBlock = 256;

  struct Options {
    double beta1 = 0.9;
    double beta2 = 0.999;
    double epsilon = 1e-8;
    double weight_decay = 0;
  };

  explicit AdamW8Bit(const Options& options);

  std::vector<State> element_states(const std::vector<int64_t>& shape,
                                    at::ScalarType master) const override;
  std::vector<State> shared_states(const std::vector<int64_t>& shape,
                                   at::ScalarType master) const override;
  std::vector<Call> Calls(const WholeUnitShape& unit) const override;
  void Update(std::span<WholeUnit> units, const UpdateOptions& options) const override;

 private:
  void UpdateUnit(WholeUnit& unit, const UpdateOptions& options) const;

  Options options_;
  Tensor codes_[2];  // (256) float64, ascending: of first and second moments
};

// The 256 numbers. Dynamic quantisation (Dettmers 2016): for each decade 10^(e-6), e = 0 .. 6, the
// middles of 2^e (unsigned: 2^(e+1)) equal parts of [0.1, 1] times the decade, with both signs or
// none, and 0 and 1.
Tensor DynamicCode(bool is_signed);

}  // namespace shoal
