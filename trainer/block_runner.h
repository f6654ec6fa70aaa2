// Runs a rank's blocks forward and backward over sharded weights, in the order of a pipeline
// schedule; gradient accumulation is the schedule of one stage. Each block is differentiated on its
// own, from the output it left to the input it took, so its weights need to be gathered, and its
// graph to live, just then.
#pragma once

#include <map>
#include <memory>
#include <span>
#include <vector>

#include "core/activation_store.h"
#include "core/batch.h"
#include "kernels/weight_gradients.h"
#include "models/model.h"
#include "parallel/pipeline/schedule.h"
#include "parallel/pipeline/stage_split.h"
#include "parallel/sharded_parameters.h"
#include "trainer/device_batch.h"
#include "trainer/objective.h"
#include "trainer/routing_totals.h"

namespace shoal {

// Activations that are not kept for the backward pass but computed again (Chen et al. 2016): none,
// those of every second layer, of every layer. Only a layer's input is then kept.
enum class Recompute { kNone, kSelective, kFull };

struct RunnerOptions {
  const TensorParallel* tensor = nullptr;    // What the model was built for; null: one rank
  const ContextParallel* context = nullptr;  // What the batches were cut for; null: one rank
  const ExpertParallel* experts = nullptr;   // As `tensor`; null: one rank
  double router_z_loss = 0;                  // Weight of the routers' z-loss (see MoeSection)
  double capacity_factor = 0;                // See RouterTraining
  Recompute recompute = Recompute::kNone;
  // Set: what a block keeps for its backward pass goes there after its forward pass and comes back
  // a block ahead of the backward pass. Two blocks' are in memory at most, beside the head's.
  ActivationStore* offload = nullptr;
  double label_smoothing = 0.0;  // Of the training loss (see CrossEntropyOptions)
  std::optional<uint64_t> dropout_seed = std::nullopt;  // Set where the model drops activations
  // Outlives the runner. Null: the cross entropy of all targets, fused with the head's product.
  const Objective* objective = nullptr;
  Schedule schedule;               // Of this step's micro-batches
  std::vector<BlockRange> stages;  // The blocks of each stage of the pipeline
  // The ranks of the pipeline, twice: activations and gradients must not wait for each other. Null:
  // one rank.
  Communicator* activations = nullptr;
  Communicator* gradients = nullptr;
};

// One stage, whose schedule accumulates gradients.
RunnerOptions OneStage(const Model& model, int micro_batches);

class BlockRunner {
 public:
  // All must outlive the runner. `parameters` are of this rank's blocks, its chunks one after the
  // other.
  BlockRunner(const Model& model, ShardedParameters& parameters, RunnerOptions options);

  // Forward and backward of every micro-batch (there are options().micro_batches of them). Leaves
  // the reduced gradients in the optimizer's slices. Returns this rank's sum of losses /
  // denominator, 0 where it has no head; so with what it adds to the objective's `metrics`. What
  // routers add to the loss is trained, but not in the sum. Collective.
  struct StepCounts {
    double denominator = 1;  // Over all ranks and micro-batches, as the next
    double tokens = 1;
    // Gradients come out multiplied by this, losses do not.
    double loss_scale = 1;
  };
  double ForwardBackward(std::span<const Batch> micro_batches, const StepCounts& counts,
                         ObjectiveMetrics& metrics, RoutingTotals& routing);

  // Loss as above, without gradients. Collective.
  double Loss(const Batch& batch, double denominator, ObjectiveMetrics& metrics);

  struct HeadOptions {
    HeadMode mode = HeadMode::kLogprobs;
    double temperature = 1.0;
    bool adapters = true;
  };
  // What the head gives, without gradients; nothing where this rank has no head. Log-probabilities
  // are, bit for bit, those that a training pass over the same micro-batch starts from. Collective.
  Activations Head(const Batch& batch, const HeadOptions& options);

  const Objective* objective() const { return options_.objective; }
  const ActivationStore* offload() const { return options_.offload; }
  // What a batch adds to the denominator.
  double Count(const Batch& batch) const;
  ObjectiveMetrics MakeMetrics() const;
  RoutingTotals MakeRoutingTotals() const { return RoutingTotals(model_.config); }
  // After a step; `routing`: reduced (see router_bias.h).
  void MoveRouterBiases(const RoutingTotals& routing, double rate);

 private:
  struct BlockPass {
    Activations in;  // Its hidden_BTC is a leaf of the block's own graph
    Activations out;
    bool recompute = false;              // `out` has no graph: it is made anew
    std::unique_ptr<KeptTensors> aside;  // What the block keeps, and `in`; null: they stay
  };
  // One micro-batch in one chunk, between its forward and its backward.
  struct ChunkPass {
    std::vector<BlockPass> blocks;
    WeightGradientWork weight_work;
    bool head_zeroed = false;  // The head's gradients were zeroed before its forward pass
  };
  struct Step;

  int rank() const { return options_.activations ? options_.activations->rank() : 0; }
  int StageOfChunk(int chunk) const { return options_.schedule.StageOf(rank(), chunk); }
  bool IsHead(int block) const { return block + 1 == static_cast<int>(model_.blocks.size()); }
  // Of `parameters`, by the block's number in the model.
  int Local(int chunk, int block) const;

  // What all blocks but attention run over, where that is the same to every one of them.
  std::optional<SharedRows> Share(const Batch& batch) const;
  DeviceBatch Move(const Batch& batch, const std::optional<SharedRows>& shared) const {
    return MoveToDevice(batch, shared, parameters_.device());
  }
  ForwardContext Context(const DeviceBatch& batch, double denominator) const;
  ForwardContext TrainingContext(const Step& step, int micro_batch) const;
  // The head's output and, under an objective, its loss.
  Activations RunHead(const ForwardContext& context, const Activations& in,
                      ObjectiveMetrics& metrics) const;
  // A forward pass through all blocks but the head: the head's input, where this rank has it.
  Activations RunStages(const ForwardContext& base);
  std::span<const Parameter> HeadWeights();
  // Of what is made between a block and the next: see RunnerOptions::offload.
  std::unique_ptr<KeptTensors> MakeAside() const;
  void Forward(Step& step, int chunk, int micro_batch, bool backward_is_next);
  void Backward(Step& step, int chunk, int micro_batch, bool split);
  void BlockBackward(Step& step, int chunk, int micro_batch, int block, ChunkPass& pass,
                     Tensor& gradient);

  // Tensors between stages, by message or, within a rank, by hand.
  using Box = std::map<std::pair<int, int>, Tensor>;  // By (stage that wants it, micro-batch)
  Tensor Take(Box& box, Communicator* comm, int from_stage, int stage, int micro_batch,
              at::IntArrayRef places) const;
  void Give(Box& box, Communicator* comm, int to_stage, int micro_batch,
            const Tensor& tensor) const;

  const Model& model_;
  ShardedParameters& parameters_;
  RunnerOptions options_;
  std::vector<int> first_local_;  // By chunk: place of its first block among this rank's
  bool splits_backward_ = false;  // The schedule makes backward passes in halves
};

}  // namespace shoal
