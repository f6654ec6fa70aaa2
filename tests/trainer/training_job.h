// A small training job on rank threads, for tests that compare jobs.
#pragma once

#include <functional>
#include <map>
#include <string>
#include <vector>

#include "core/recipe.h"
#include "parallel/comm/communicator.h"
#include "parallel/context_parallel.h"
#include "trainer/trainer.h"

namespace shoal {

struct TrainingJob {
  std::string model = "llama";  // "llama", "gpt2", "mixtral", "dots1"; see ConfigOf
  at::ScalarType dtype = at::kDouble;
  // Where ranks compute: each on a device of its own if there are as many, and what they exchange
  // goes through host memory.
  c10::DeviceType device = c10::kCPU;
  int ranks = 1;  // Of the whole mesh; the shard axis takes what the others leave
  int replicate = 1;
  int tensor = 1;
  bool sequence_parallel = true;
  int context = 1;
  ContextParallel::Method context_method = ContextParallel::Method::kRing;
  int pipeline = 1;
  int expert = 1;
  ScheduleKind schedule = ScheduleKind::k1F1B;
  int chunks = 1;
  Recompute recompute = Recompute::kNone;
  int layers = 2;
  int stage = 0;
  int micro_batches = 1;
  int steps = 4;
  double max_grad_norm = 0.5;
  bool deterministic = true;
  bool overlap = false;
  bool split_master = false;
  bool quantized_weights = false;
  bool quantized_gradients = false;
  std::optional<LossScaling> loss_scaling = std::nullopt;
  OffloadTo offload_optimizer = OffloadTo::kNowhere;
  OffloadTo offload_parameters = OffloadTo::kNowhere;
  OffloadTo offload_activations = OffloadTo::kNowhere;
  bool sgd = false;       // Else AdamW. SGD sees the gradients' scale
  std::string rule = {};  // As a recipe's optimizer.name: instead of both
  bool groups = false;    // Some weights with a learning rate and a weight decay of their own
  double ema_decay = 0;   // Above 0: a running mean of the weights
  std::vector<std::string> freeze = {};
  // What is minimised: cross entropy, or an objective over pairs: "dpo", "ipo", "simpo", "reward"
  // (on a score head). A micro-batch then holds an even number of sequences.
  std::string objective = {};
  // Sequences are pairs that begin alike and end in padding; with `lengths` the batches say where.
  bool pairs = false;
  bool lengths = false;
  double router_z_loss = 0;
  double capacity_factor = 0;
  double router_bias_rate = 0;
  bool lora = false;     // Adapters on every matrix train instead of the weights
  int poison_step = -1;  // In this step (from 0) the last rank's loss is not finite

  int64_t seq_length = 7;
  bool documents = false;  // Several a sequence, of different lengths; positions restart

  int data_ranks() const { return ranks / (tensor * pipeline * context); }
  MeshShape mesh() const {
    return {.replicate = replicate,
            .shard = data_ranks() / replicate,
            .context = context,
            .tensor = tensor,
            .pipeline = pipeline,
            .expert = expert};
  }
  bool operator==(const TrainingJob&) const = default;
};

struct TrainingResult {
  std::vector<StepMetrics> steps;
  std::map<std::string, std::vector<double>> state;  // Weights and optimizer states, whole, by name
};

// Every pipeline schedule, with the chunks it takes.
struct PipelineCase {
  ScheduleKind schedule;
  int chunks;
  int highest_stage;  // Of ZeRO
};
inline constexpr PipelineCase kPipelines[] = {{ScheduleKind::kGpipe, 1, 3},
                                              {ScheduleKind::k1F1B, 1, 3},
                                              {ScheduleKind::kInterleaved1F1B, 2, 3},
                                              {ScheduleKind::kZbH1, 1, 1},
                                              {ScheduleKind::kZbV, 2, 1}};

// Weights and optimizer states by name, as float64, the parts that this rank saves put in their
// places.
void CollectState(const ShardedOptimizer& optimizer,
                  std::map<std::string, std::vector<double>>& state);

// The global batch is 36 sequences of ragged numbers of targets, whatever the number of ranks and
// micro-batches.
TrainingResult RunTrainingJob(const TrainingJob& job);

// What the job gives on one rank, in one piece, with nothing that must not change it; made once.
const TrainingResult& OnOneRank(const TrainingJob& job);

// Losses, norms, weights and moments to the last bit.
void ExpectSameBits(const TrainingResult& got, const TrainingResult& want, const std::string& what);
// Relative to the largest element of each tensor.
void ExpectClose(const TrainingResult& got, const TrainingResult& want, double tolerance,
                 const std::string& what);
std::string Describe(const TrainingJob& job);

// Of each rank, at its start: runs `body` with a communicator of all ranks on devices of that type.
absl::Status OnDevice(c10::DeviceType type, Communicator& host,
                      const std::function<absl::Status(Communicator&)>& body);

// What a recipe would say of the job's optimizer.
LoadedRecipe OptimizerRecipe(const TrainingJob& job);

// Of one rank, for jobs that do more. `train` is called with everything built.
struct JobParts {
  Communicator& comm;
  DeviceMesh& mesh;
  const Model& model;
  ShardedParameters& parameters;
  ShardedOptimizer& optimizer;
  Trainer& trainer;
};
// `comm` is of the job's device (OnDevice).
absl::Status BuildTrainingJob(const TrainingJob& job, Communicator& comm,
                              const std::function<absl::Status(JobParts)>& train);

}  // namespace shoal
