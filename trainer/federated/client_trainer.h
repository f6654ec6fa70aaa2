// A client's local training: the trainer's own steps (trainer/trainer.h) from given weights, with
// fresh or given optimizer states. Of a model of several stacked copies it trains as many clients
// at once.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "parallel/device_mesh.h"
#include "trainer/block_runner.h"
#include "trainer/federated/corrected_rule.h"
#include "trainer/federated/weight_vector.h"
#include "trainer/trainer.h"

namespace shoal {

// An optimizer's states between two visits of a client: vectors by name, in host memory, and the
// updates so far.
struct KeptStates {
  std::map<std::string, Tensor> vectors;
  int64_t updates = 0;
};

class ClientTrainer {
 public:
  struct Options {
    Trainer::Options trainer;      // num_steps and learning_rate aside
    bool corrected = false;        // The rule is a CorrectedRule with kCorrection,
    bool pulled_to_start = false;  // with kStart
  };
  // Borrowed; all outlive the trainer.
  struct Parts {
    DeviceMesh& mesh;
    const Model& model;
    const RunnerOptions& runner_options;
    ShardedParameters& parameters;
    ShardedOptimizer& optimizer;
    int copies = 1;
  };
  ClientTrainer(const Options& options, const Parts& parts);

  // What one client begins with, in host memory or where the weights are; undefined tensors: zeros.
  struct Start {
    Tensor weights;     // (size())
    Tensor correction;  // (size()) if options.corrected
    const KeptStates* states = nullptr;
  };
  struct Work {
    int64_t steps = 0;
    double learning_rate = 0;
    BatchSource& batches;
    std::vector<Start> starts;  // One a copy
    uint64_t seed = 0;          // Of what the model drops, where it does
  };
  struct Outcome {
    double loss = 0;     // Mean over the steps (of a stack: and over its clients)
    int64_t tokens = 0;  // Read, over all ranks of the group
    int64_t updates = 0;
    // Losses or gradients stayed non-finite (of a stack: one copy's, once): there is no update.
    bool diverged = false;
  };
  // Collective over the mesh.
  absl::StatusOr<Outcome> Train(const Work& work);

  // update (size()) = start less the weights that copy `copy` came out with. `start` lies where the
  // weights do, `update` there or in host memory.
  void ReadUpdate(int copy, const Tensor& start, Tensor& update) const;
  // The inner rule's states of a copy, and their names.
  KeptStates ReadStates(int copy, int64_t updates) const;

  std::vector<std::string> state_names() const;

  const WeightVector& vector() const { return vector_; }

 private:
  void Begin(const std::vector<Start>& starts);

  const Options options_;
  const Parts parts_;
  const std::vector<OptimizerSlice> slices_;
  const WeightVector vector_;
  std::vector<Tensor> weights_;  // Views, one a slice
  BlockRunner runner_;
};

}  // namespace shoal
