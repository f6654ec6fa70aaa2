// Linear layers that read the same input: q, k and v, or gate and up.
//
// [Note: one product for neighbours]
// A block declares such matrices one after the other, and the flat buffers that weights live in
// have no gaps (parallel/flat_layout.h), so in memory q, k and v are one (q + k + v, in) matrix,
// and their gradients another. Forward sees this by the addresses and runs one product instead of
// three: faster forward, and one product instead of three products and two additions backward.
// Elsewhere (weights that were loaded one by one, frozen parts, matrices stored (in, out)) the
// products run apart, to the same result.
#pragma once

#include <optional>
#include <span>
#include <string>
#include <vector>

#include "kernels/linear.h"
#include "models/adapters/lora.h"
#include "models/blocks/parameter_list.h"

namespace shoal {

// The parameters as one, stacked along dimension 0, if their values (and gradients, if they have
// any) lie end to end in one storage.
std::optional<Parameter> JoinAdjacent(std::span<const Parameter> parameters);

class Projection {
 public:
  struct Options {
    int64_t in = 0;
    std::vector<std::string>
        slots;  // Without ".weight"; one that yields several outputs is a fused matrix
    std::vector<int64_t> outs;  // Sizes of the outputs
    bool bias = false;
    LinearLayout layout = LinearLayout::kOutIn;
    double stddev = 0.02;
    // What tensor-parallel ranks share: the outputs, each rank computing its own of each, or the
    // inputs, each computing a part of the sum (the bias is then added after Leave, by AddBiasTo).
    enum class Cut { kOutputs, kInputs };
    Cut cut = Cut::kOutputs;
    // This rank's, of a group of several: one list an output, or one for the inputs.
    std::vector<std::vector<TensorCut::Range>> ranges;
  };
  Projection(ParameterList& parameters, const Options& options);

  // x: (..., in). One tensor (..., outs[i]) an output; views of one product where that is possible.
  // Sizes are of this rank's part. With the bias, unless it waits for AddBiasTo. adapters: with
  // what the matrices' adapters add, where they have any.
  std::vector<Tensor> Forward(std::span<const Parameter> weights, const Tensor& x,
                              bool adapters) const;
  // Adds the bias that Forward left out, if there is one.
  Tensor AddBiasTo(std::span<const Parameter> weights, const Tensor& sum) const;

  double multiply_adds() const { return multiply_adds_; }  // A token's, over all ranks

 private:
  std::vector<Tensor> Products(std::span<const Parameter> weights, const Tensor& x) const;

  double multiply_adds_;
  std::vector<int64_t> outs_;
  LinearLayout layout_;
  bool bias_later_;
  int first_weight_;
  int first_bias_;  // -1: none
  int count_;       // Of matrices
  LoraAdapters adapters_;
};

}  // namespace shoal
