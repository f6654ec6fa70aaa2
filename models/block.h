// A model is a list of blocks: embedding, one block a layer, head. A block holds no weights;
// whoever runs it passes them in, which is what lets ZeRO gather and release a block at a time, a
// pipeline take a run of blocks, and inference share weights with training.
//
// Legend: B sequences, T tokens, C channels (hidden size), V vocabulary.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include <ATen/core/Tensor.h>

#include "core/batch.h"
#include "core/parameter.h"

namespace shoal {

class ContextParallel;  // parallel/context_parallel.h
class ExpertParallel;   // parallel/expert_parallel.h
class KeyValueCache;    // models/key_value_cache.h
struct SharedRows;      // models/shared_rows.h
class TensorParallel;   // parallel/tensor_parallel.h

// What the head computes: the training loss, all logits, each target's log-probability, or (a score
// head, which computes nothing else) a number a place.
enum class HeadMode { kLoss, kLogits, kLogprobs, kScores };

// What training asks of the routers of experts (models/blocks/expert_mlp.h).
struct RouterTraining {
  double balance_coefficient = 0;  // Of the load-balancing loss
  double z_coefficient = 0;        // Of the z-loss
  double capacity_factor = 0;      // 0: no expert is ever full
  double num_tokens = 1;           // Of the global batch: what both losses are means over
};

// What a layer's router did with a micro-batch: sums over its tokens.
struct RouterSums {
  Tensor chosen_E;     // float64, in host memory: tokens that chose each expert, room or not
  double dropped = 0;  // Choices of experts that had no room
  Tensor balance;      // (), where it was computed: the load-balancing loss of a token's sequence
  Tensor z;            // (), there too: the square of log sum exp of the logits
};

// What a forward pass of a block may read besides its input.
struct ForwardContext {
  std::span<const Parameter> weights;  // In the order of Block::parameters()
  const Batch* batch = nullptr;
  const Batch* host_batch = nullptr;  // The same in host memory; null: there `batch` is
  // Hidden states are the (1, N) rows that this names instead of (B, T) places. Null: they are the
  // places.
  const SharedRows* shared_rows = nullptr;
  KeyValueCache* cache = nullptr;  // Inference only: keys and values of earlier tokens, appended to
  HeadMode head_mode = HeadMode::kLoss;
  double loss_denominator = 1.0;  // Of HeadMode::kLoss: the global number of targets
  double label_smoothing = 0.0;   // Of HeadMode::kLoss (see CrossEntropyOptions)
  // Of HeadMode::kLoss: the loss will be the root of one backward pass, and gradients may be added
  // from the forward pass on (see CrossEntropyOptions::unit_gradient).
  bool unit_gradient = false;
  const TensorParallel* tensor = nullptr;    // Null: one rank holds each matrix whole
  const ContextParallel* context = nullptr;  // Null: one rank holds each sequence whole
  const ExpertParallel* experts = nullptr;   // Null: one rank holds all experts
  const RouterTraining* routers = nullptr;   // Set in training
  double temperature = 1.0;                  // Of HeadMode::kLogprobs: logits are divided by it
  bool adapters = true;  // false: the model without its adapters (models/adapters/)
  // Set in training: the seed of what is dropped, if the model drops anything.
  std::optional<uint64_t> dropout_seed = std::nullopt;

  // For what looks at numbers instead of computing with them.
  const Batch& InHostMemory() const { return host_batch ? *host_batch : *batch; }
  // (B, T), or (1, N) of shared rows.
  const Tensor& tokens() const;
  const Tensor& positions() const;

  // As TensorParallel's, on the rows of (..., C); Enter gives (B, T, C) and Leave (1, r, C) where
  // tensor-parallel ranks share the rows.
  Tensor Enter(const Tensor& x) const;
  Tensor Leave(const Tensor& x) const;
};

// What flows from block to block.
struct Activations {
  // Undefined before the embedding. (1, r, C) under sequence parallelism: this rank's rows.
  Tensor hidden_BTC;
  // Set by layers of experts in training. router_loss: () what they add to the training loss;
  // undefined: nothing.
  Tensor router_loss;
  std::optional<RouterSums> routing;
  // Set by the head:
  Tensor loss;  // () float32 (float64 in float64 runs): sum of target losses / loss_denominator
  Tensor logits_BTV;   // Only under HeadMode::kLogits
  Tensor logprobs_BT;  // Only under HeadMode::kLogprobs: float32 log-probability of each target, 0
                       // where ignored
  Tensor scores_BT;    // Only under HeadMode::kScores: as logprobs_BT, a number a place
};

// Where a weight of one block is really another block's (tied embeddings).
struct TiedTo {
  int block;
  int parameter;
};

class Block {
 public:
  virtual ~Block() = default;

  // Fixed order; Forward's weights come in the same order. A tied entry repeats its owner's spec.
  std::span<const ParameterSpec> parameters() const { return parameters_; }
  // Entry i: set iff parameters()[i] belongs to another block.
  std::span<const std::optional<TiedTo>> ties() const { return ties_; }

  // Differentiable in in.hidden_BTC; gradients of weights are added to ctx.weights[i].grad by the
  // operations' backward passes (see Parameter).
  virtual Activations Forward(const ForwardContext& ctx, const Activations& in) const = 0;

  // Bytes aside, the matrix products' multiply-adds x 2 of a forward pass for one token of a
  // sequence of `sequence_length` (causal attention counted at its half). Backward costs twice
  // that.
  virtual double ForwardFlopsPerToken(int64_t sequence_length) const = 0;

 protected:
  std::vector<ParameterSpec> parameters_;
  std::vector<std::optional<TiedTo>> ties_;
};

}  // namespace shoal
