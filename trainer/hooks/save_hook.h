// Checkpoints every few steps and at the end.
#pragma once

#include <string>

#include "checkpoint/checkpoint.h"
#include "core/log.h"
#include "trainer/hooks/eval_hook.h"
#include "trainer/trainer.h"

namespace shoal {

class SaveHook final : public Hook {
 public:
  struct Options {
    int64_t every_steps = 0;  // 0: at the end only
    std::string directory;    // OUTPUT_DIR/checkpoints
    int save_total_limit = 2;
    TrainerState
        constant_state;  // What of the state does not change while training: recipe, layout, seed
    int64_t global_batch_size = 1;
    int64_t saved_step = -1;  // The step that the run resumed from needs no saving again
  };

  // All borrowed outlive the hook.
  SaveHook(Options options, FileSystem& files, DeviceMesh& mesh, const ShardedOptimizer& optimizer,
           const EvalHook& eval, const Logger& log)
      : options_(std::move(options)),
        files_(files),
        mesh_(mesh),
        optimizer_(optimizer),
        eval_(eval),
        log_(log) {}

  absl::Status AfterStep(const Trainer& trainer, const StepMetrics& metrics) override;
  absl::Status AtEnd(const Trainer& trainer) override;

 private:
  absl::Status Save(const TrainProgress& progress);

  Options options_;
  FileSystem& files_;
  DeviceMesh& mesh_;
  const ShardedOptimizer& optimizer_;
  const EvalHook& eval_;
  const Logger& log_;
  double trained_seconds_ = 0;
};

}  // namespace shoal
