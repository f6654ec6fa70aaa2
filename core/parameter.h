// What a model declares of a weight, and what an operation receives of it.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include <ATen/core/Tensor.h>

namespace shoal {

using Tensor = at::Tensor;

// How a weight starts when no checkpoint brings it.
struct Initializer {
  enum class Kind { kZeros, kOnes, kNormal };
  Kind kind = Kind::kNormal;
  double stddev = 0.02;  // of kNormal, mean 0
};

// Which part of a weight a rank holds under tensor parallelism (Shoeybi et al. 2019).
struct TensorCut {
  // The dimension that is cut when several ranks share the weight, whether or not they do; -1: each
  // holds it whole. In memory and in checkpoints this dimension comes first, so that a rank's part
  // is one run of elements a range.
  int dim = -1;
  int64_t full_size = 0;  // Of that dimension over all ranks; 0: nobody shares it
  struct Range {
    int64_t begin, end;   // Of dimension `dim`
    bool shared = false;  // Other ranks hold these rows too,
    bool owned = true;    // and this one owns them: see ParameterSpec::owned
  };
  std::vector<Range> ranges;  // This rank's, laid end to end; empty: all
};

// One weight as its model declares it; holds no memory.
struct ParameterSpec {
  std::string
      name;  // Unique in the model and in Hugging Face's terms: "model.layers.3.mlp.up_proj.weight"
  std::vector<int64_t> shape;  // Of this rank's part, dimensions as on disk
  Initializer init;
  bool decay = true;      // Weight decay applies (norms, biases and embeddings may opt out)
  bool trainable = true;  // Frozen weights get no gradient and no optimizer state
  // Not trained by gradients: a rule of its own writes it, if it is trainable, the same on all
  // ranks (trainer/router_bias.h). Each rank holds it whole, in master precision.
  bool buffer = false;
  TensorCut cut;
  // Of ranks that hold the same elements beside data parallelism (tensor-parallel ranks, tied
  // weights of two pipeline stages) one owns them: it saves them and counts them in norms.
  bool owned = true;
  // Each tensor-parallel rank adds a part of the gradient of what they share.
  bool partial_gradient = false;
  // Another pipeline stage holds this weight too (tied embeddings), and both gradients add up.
  bool tied_across_stages = false;
  // Above 1: of an expert. So many ranks share the experts, and this one holds this weight.
  int expert_ranks = 1;
  // Not of the model's own files but of an adapter beside it (models/adapters/).
  bool adapter = false;
  // The optimizer updates it as a whole, not element by element (optim/whole_rule.h).
  bool whole_update = false;
  double learning_rate_multiplier = 1;
  std::optional<double> weight_decay;  // Instead of the optimizer's, whatever `decay` says

  bool has_gradient() const { return trainable && !buffer; }
  int64_t numel() const {
    int64_t n = 1;
    for (int64_t size : shape) n *= size;
    return n;
  }
  // Of the whole weight, as on disk.
  std::vector<int64_t> full_shape() const {
    std::vector<int64_t> full = shape;
    if (cut.full_size > 0) full[cut.dim] = cut.full_size;
    return full;
  }
  int64_t full_numel() const {
    int64_t n = 1;
    for (int64_t size : full_shape()) n *= size;
    return n;
  }
  // In memory the second dimension comes first.
  bool transposed() const { return cut.dim == 1; }
  // Of the whole weight, dimensions in the order of memory.
  std::vector<int64_t> memory_shape() const {
    std::vector<int64_t> full = full_shape();
    if (transposed()) std::swap(full[0], full[1]);
    return full;
  }
};

// Elements [first, first + count) of the whole weight, in the order of memory.
struct ElementRun {
  int64_t first;
  int64_t count;
  bool owned;
};

// Where elements [first, first + count) of this rank's part lie in the whole weight, in order.
std::vector<ElementRun> RunsInWhole(const ParameterSpec& spec, int64_t first, int64_t count);

// A weight bound to memory for the duration of a forward or backward pass. Operations read `value`
// and, in their backward pass, ADD the weight's gradient into `grad` instead of returning it to
// autograd: the gradient lands in the flat buffer that ZeRO reduces, without a copy.
struct Parameter {
  Tensor value;  // spec.shape, compute dtype. requires_grad iff `grad` is defined
  Tensor grad;   // spec.shape, gradient dtype (may differ from value's); undefined if frozen or
                 // under no-grad
};

}  // namespace shoal
