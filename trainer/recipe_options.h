// From the recipe's sections to the options of the objects that they describe. The recipe is read
// here and nowhere below.
#pragma once

#include <memory>
#include <optional>
#include <string>

#include "core/recipe.h"
#include "core/recipe_validation.h"
#include "models/model.h"
#include "optim/lr_schedule.h"
#include "parallel/comm/comm_options.h"
#include "parallel/comm/device_communicator.h"
#include "parallel/context_parallel.h"
#include "parallel/device_mesh.h"
#include "parallel/pipeline/schedule.h"
#include "parallel/pipeline/stage_split.h"
#include "parallel/sharded_unit.h"

namespace shoal {

at::ScalarType ComputeDtype(const Recipe& recipe);
CommOptions CommOptionsOf(const Recipe& recipe);
// run.device; auto is the CPU for a recipe that asks for what runs there alone (WhyNotOnGpu).
DeviceRequest DeviceRequestOf(const Recipe& recipe);
// A line for the log where auto leaves GPUs alone that this process sees; empty: it does not.
std::optional<std::string> DescribeIdleGpus(const Recipe& recipe, const Communicator& ranks);
MeshShape ShapeOf(const MeshPlan& plan);
// Of ranks that compute on a device or on the CPU, where host memory holds all anyway.
OffloadTo PlaceOf(Offload offload, bool on_device);
// The ranks that will share the states.
struct ShardGroup {
  int ranks = 1;
  bool leaves_host = false;  // What they send crosses a network, or goes from device to device
  bool on_device = false;    // They compute on one that is not the host's
};
// Without the space on disk.
ZeroOptions ZeroOptionsOf(const Recipe& recipe, const BatchPlan& batch, const ShardGroup& group);
// The pipeline's schedule. InvalidArgument: sizes that the kind does not take.
absl::StatusOr<Schedule> PipelineScheduleOf(const ParallelismSection& parallelism,
                                            int64_t micro_batches);
// Blocks of every stage, cut so that stages cost alike. InvalidArgument: too few blocks.
absl::StatusOr<std::vector<BlockRange>> StagesOf(const Model& model, int stages,
                                                 int64_t seq_length);
LrSchedule LrScheduleOf(const Recipe& recipe, int64_t num_steps);

// Steps of the run by whichever of max_steps, num_train_epochs and max_tokens is given, rounded up.
struct StepBudget {
  int64_t sequences_per_epoch = 0;
  int64_t sequences_per_step = 0;
  int64_t seq_length = 0;
};
int64_t NumSteps(const TrainingSection& training, const StepBudget& budget);

// The model that `model` describes: name_or_path's config.json with model.config over it, or
// model.config alone. A missing vocab_size becomes the tokenizer's (0: there is none); one that is
// too small, and a seq_length beyond the model's positions, are errors with the place of
// the key to blame.
absl::StatusOr<ModelConfig> ModelConfigOf(const LoadedRecipe& recipe, FileSystem& files,
                                          int64_t tokenizer_vocab_size);

// parallelism.context_method.
ContextParallel::Method ContextMethodOf(const Recipe& recipe);

// What parallelism.context_parallel above 1 asks of the model: with ulysses it divides the heads of
// a tensor-parallel rank.
absl::Status CheckContextRanks(const LoadedRecipe& recipe, const ModelConfig& config);

// parallelism.expert_parallel divides the model's experts, if it is above 1.
absl::Status CheckExpertRanks(const LoadedRecipe& recipe, const ModelConfig& config);

}  // namespace shoal
