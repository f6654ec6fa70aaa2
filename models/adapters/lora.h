// Low-rank adapters of a block's matrices (Hu et al. 2021, "LoRA"): beside y = x W^T an adapted
// matrix adds scale (x A^T) B^T, with A (rank, in) and B (out, rank); W itself does not train. B
// starts at zero, so a new adapter changes nothing.
//
// An adapter is two weights of the block like any others: it is sharded, gathered, reduced, saved
// and counted as they are. Under tensor parallelism A or B is cut as its matrix is on that side,
// the other is held whole, and its gradient is a sum over the ranks.
#pragma once

#include <span>
#include <string>
#include <vector>

#include "models/adapters/lora_options.h"
#include "models/blocks/parameter_list.h"

namespace shoal {

class LoraAdapters {
 public:
  struct Matrix {
    std::string slot;           // Without ".weight"
    std::vector<int64_t> outs;  // Sizes of its outputs, this rank's
    TensorCut out_cut;          // Of B's rows
  };
  LoraAdapters() = default;
  // Adapters of those of `matrices`, neighbours that read the same input, that the model's
  // LoraOptions name. in: this rank's inputs, cut as `in_cut` says (of A's columns).
  LoraAdapters(ParameterList& parameters, int64_t in, const TensorCut& in_cut,
               const std::vector<Matrix>& matrices);

  // Adds to `outputs`, the matrices' one after the other, what the adapters make of x (..., in).
  void AddTo(std::span<const Parameter> weights, const Tensor& x,
             std::vector<Tensor>& outputs) const;

 private:
  struct Adapter {
    int b;             // Place of its B; A's are first_a_ and up, in this order
    size_t first_out;  // Of the outputs
    std::vector<int64_t> outs;
  };
  double scale_ = 0;
  int64_t rank_ = 0;
  int first_a_ = -1;
  std::vector<Adapter> adapters_;
};

// "model.layers.0.self_attn.q_proj" ends in one of the targets, at a dot.
bool IsLoraTarget(const LoraOptions& options, const std::string& module);

// Of a weight "M.weight": "M.lora_A.weight" and "M.lora_B.weight".
std::string LoraWeightName(const std::string& weight, const char* part);

// What an adapter adds to its matrix W, in W's layout: scale B A, transposed if W is (in, out).
// Float32 or float64, as A.
Tensor LoraDelta(const Tensor& a, const Tensor& b, double scale, bool in_out);

}  // namespace shoal
