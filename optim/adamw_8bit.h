// AdamW whose moments take a byte each (Dettmers et al., "8-bit Optimizers via Block-wise
// Quantization", ICLR 2022): a moment is scale * code[byte], `code` one of 256 numbers of [-1, 1]
// (the second moment's of [0, 1]) that lie ten times as dense in each decade towards zero, and
// `scale` the largest magnitude of its block of 256.
//
// Blocks are of whole weights, as they lie in memory, whatever part of one a rank holds: the
// largest magnitudes are found over all ranks (a maximum in the master dtype, of one number a block
// and moment), so every mesh quantises alike. Scales are kept by every rank.
#pragma once

#include <mutex>

#include "kernels/device_kernel_table.h"
#include "kernels/optimizer_step.h"
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
  void UpdateByKernels(const DeviceKernels& device, WholeUnit& unit,
                       const UpdateOptions& options) const;
  AdamWOptions OptionsOf(const WholeWeight& weight, const UpdateOptions& options) const;
  Tensor TablesOn(c10::Device device) const;

  Options options_;
  mutable std::mutex mutex_;
  // (4, 256) float64: the numbers of first and second moments, and the middles between neighbours
  // of both, where the last of a row is unused. On the device that was last asked for.
  mutable Tensor tables_;
};

// The 256 numbers. Dynamic quantisation (Dettmers 2016): for each decade 10^(e-6), e = 0 .. 6, the
// middles of 2^e (unsigned: 2^(e+1)) equal parts of [0.1, 1] times the decade, with both signs or
// none, and 0 and 1.
Tensor DynamicCode(bool is_signed);

}  // namespace shoal
