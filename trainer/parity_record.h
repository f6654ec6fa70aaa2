// One side of `shoal parity`: the first steps of a run, recorded as checkpoints that also hold the
// gradients.
//
//   folder/step-0/   the start: weights and moments (step-N if the recipe resumes from step N)
//   folder/step-1/   "gradient/...", "weights/...", "adam_m/...", "adam_v/..."; loss and norm
//
// As in every checkpoint, tensors lie there in an order that does not depend on the mesh.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "checkpoint/checkpoint.h"
#include "core/recipe.h"
#include "trainer/task.h"
#include "trainer/trainer.h"

namespace shoal {

// OK if both recipes train the same model on the same data by the same rule, whatever the layout,
// precision and number of ranks. FailedPrecondition: the first key in which they do not, with both
// values. InvalidArgument: a mesh or batch that does not come out.
absl::Status CheckComparable(const LoadedRecipe& a, int ranks_a, const LoadedRecipe& b,
                             int ranks_b);

// Trains the first `steps` steps of the recipe (fewer if it has fewer) and records them in
// `folder`. Collective. What fails in tensor mathematics or in a collective comes back as a Status.
absl::Status RecordRun(const LoadedRecipe& recipe, Communicator& world,
                       const TaskEnvironment& environment, const std::string& folder,
                       int64_t steps);

// Writes the steps of a trainer. Everything borrowed outlives the hook.
class RecordHook final : public Hook {
 public:
  struct Parts {
    FileSystem& files;
    DeviceMesh& mesh;
    const Model& model;
    const ShardedParameters& parameters;
    const ShardedOptimizer& optimizer;
  };
  RecordHook(const std::string& folder, const Parts& parts) : folder_(folder), parts_(parts) {}

  // What the first step starts from. Collective.
  absl::Status RecordStart(int64_t step);
  absl::Status AfterStep(const Trainer& trainer, const StepMetrics& metrics) override;

 private:
  absl::Status Save(const TrainerState& state, const std::vector<StatePiece>& pieces);

  std::string folder_;
  Parts parts_;
};

inline constexpr char kGradientKind[] = "gradient";

// What a step's folder says beside its tensors.
struct StepRecord {
  struct Weight {
    std::string name;
    bool transposed;  // In memory, and so in the folder: see ParameterSpec
  };
  int64_t step = 0;
  std::optional<double> loss;  // Empty, as the norm: the start
  std::optional<double> grad_norm;
  std::vector<Weight> weights;  // In the model's order
};
// The shortest text that reads back to `value`.
std::string Digits(double value);

TrainerState ToTrainerState(const StepRecord& record);
StepRecord FromTrainerState(const TrainerState& state);

}  // namespace shoal
