// The training loop. A step reads in Trainer::TrainStep; logging, evaluation and saving are hooks.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "core/offload.h"
#include "optim/lr_schedule.h"
#include "optim/sharded_optimizer.h"
#include "parallel/device_mesh.h"
#include "trainer/batch_source.h"
#include "trainer/block_runner.h"
#include "trainer/loss_scale.h"

namespace shoal {

// What a step did. Equal on every rank, but for `seconds`.
struct StepMetrics {
  int64_t step = 0;  // From 1
  double loss = 0;   // Mean over what the global batch counts (targets, pairs), before the update
  double grad_norm = 0;  // Before clipping
  double learning_rate = 0;
  int64_t tokens = 0;      // Read by this step, over all ranks
  int64_t bytes_sent = 0;  // By this rank, along all axes of the mesh
  // Of this rank in this step, in the memory that it trains in; 0 where nothing counts them.
  int64_t peak_tensor_bytes = 0;
  // By this rank; set where something is offloaded to disk.
  struct OffloadBytes {
    int64_t read = 0;
    int64_t written = 0;
  };
  std::optional<OffloadBytes> offload;
  // The same of a device's activations, from host memory and to it; set where they are offloaded.
  std::optional<OffloadBytes> offload_host;
  double seconds = 0;
  double loss_scale = 1;  // Of this step's gradients, where the optimizer finds them
  bool skipped = false;   // Loss or gradients were not finite: weights and states are as before
  // The objective's means (see ObjectiveMetrics), and what routers did (see RoutingTotals).
  std::vector<std::pair<std::string, double>> objective;
};

// What a resumed run continues from, beside weights and optimizer states.
struct TrainProgress {
  int64_t step = 0;     // Steps taken, skipped ones included
  int64_t updates = 0;  // Steps whose update was applied: the optimizer's own count
  int64_t tokens = 0;
  int64_t skipped_in_a_row = 0;                        // Not for overflow under loss scaling
  std::optional<LossScale> loss_scale = std::nullopt;  // Of the next step; empty: as it begins
};

class Trainer;

// Called on every rank, in the order in which hooks were added.
class Hook {
 public:
  virtual ~Hook() = default;
  virtual absl::Status AfterStep(const Trainer& trainer, const StepMetrics& metrics) = 0;
  // Once, after the last step.
  virtual absl::Status AtEnd(const Trainer& trainer) { return absl::OkStatus(); }
};

class Trainer {
 public:
  struct Options {
    int64_t num_steps = 0;
    double max_grad_norm = 0;     // 0: no clipping
    double router_bias_rate = 0;  // See MoveRouterBiases; 0: biases stay as they are
    LrSchedule learning_rate;
    bool stop_on_non_finite = false;
    int64_t max_skipped_steps = 10;  // So many in a row end the run
    // Set: non-finite gradients are those of too large a scale, and end the run only at the
    // smallest.
    std::optional<LossScaling> loss_scaling = std::nullopt;
  };
  // Borrowed; all outlive the trainer.
  struct Parts {
    DeviceMesh& mesh;
    BlockRunner& runner;
    ShardedParameters& parameters;
    ShardedOptimizer& optimizer;
    BatchSource& batches;
    OffloadSpace* offload = nullptr;  // Of whatever is offloaded
  };

  Trainer(const Options& options, const Parts& parts) : options_(options), parts_(parts) {
    Resume({});
  }

  void AddHook(std::unique_ptr<Hook> hook) { hooks_.push_back(std::move(hook)); }
  void Resume(const TrainProgress& progress);

  // One optimizer step. Collective over the mesh. A failed collective throws CommError.
  absl::StatusOr<StepMetrics> TrainStep();
  // TrainStep and then the hooks. Collective.
  absl::StatusOr<StepMetrics> Step();
  // The hooks' end. Collective.
  absl::Status End();
  // Steps until options.num_steps, and the end. Collective.
  absl::Status Run();

  const Options& options() const { return options_; }
  const TrainProgress& progress() const { return progress_; }

 private:
  struct Offloaded {
    std::optional<StepMetrics::OffloadBytes> disk, host;
  };
  Offloaded OffloadedSoFar() const;
  absl::Status CountSkipped(const StepMetrics& metrics);

  Options options_;
  Parts parts_;
  TrainProgress progress_;
  std::vector<std::unique_ptr<Hook>> hooks_;
};

}  // namespace shoal
