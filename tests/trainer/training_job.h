// A small training job on rank threads, for tests that compare jobs.
#pragma once

#include <functional>
#include <map>
#include <string>
#include <vector>

#include "parallel/comm/communicator.h"
#include "trainer/trainer.h"

namespace shoal {

struct TrainingJob {
  std::string model = "llama";  // "llama", "llama-tied", "gpt2"
  at::ScalarType dtype = at::kDouble;
  int ranks = 1;
  int stage = 0;
  int micro_batches = 1;
  int steps = 4;
  double max_grad_norm = 0.5;
  bool deterministic = true;
  bool sgd = false;  // Else AdamW. SGD sees the gradients' scale
  std::vector<std::string> freeze = {};
  int poison_step = -1;  // In this step (from 0) the last rank's loss is not finite
};

struct TrainingResult {
  std::vector<StepMetrics> steps;
  std::map<std::string, std::vector<double>> state;  // Weights and optimizer states, whole, by name
};

// The global batch is 36 sequences of ragged numbers of targets, whatever the number of ranks and
// micro-batches.
TrainingResult RunTrainingJob(const TrainingJob& job);

// Of one rank, for jobs that do more. `train` is called with everything built.
struct JobParts {
  Communicator& comm;
  DeviceMesh& mesh;
  const Model& model;
  ShardedParameters& parameters;
  ShardedOptimizer& optimizer;
  Trainer& trainer;
};
absl::Status BuildTrainingJob(const TrainingJob& job, Communicator& comm,
                              const std::function<absl::Status(JobParts)>& train);

}  // namespace shoal
