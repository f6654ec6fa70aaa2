// Records the steps that recipe.profiling names. The last of a trainer's hooks: what the others do
// belongs to their step.
#pragma once

#include "trainer/profile/profiler.h"
#include "trainer/trainer.h"

namespace shoal {

class ProfileHook final : public Hook {
 public:
  // See Profiler. Collective.
  ProfileHook(const Profiler::Options& options, Profiler::Parts parts)
      : profiler_(options, std::move(parts)) {}

  absl::Status AfterStep(const Trainer& trainer, const StepMetrics& metrics) override {
    return profiler_.AfterStep(metrics.step);
  }
  absl::Status AtEnd(const Trainer& trainer) override {
    return profiler_.AtEnd(trainer.progress().step);
  }

 private:
  Profiler profiler_;
};

}  // namespace shoal
