#include "trainer/task_data.h"

#include "checkpoint/agreement.h"
#include "core/status.h"
#include "data/data_loader.h"
#include "data/example_loader.h"
#include "trainer/objectives/reward_objective.h"
#include "trainer/preference_data.h"

namespace shoal {
namespace {

// Next-token training on all of the text.
class DocumentData final : public TaskData {
 public:
  explicit DocumentData(DataLoader loader) : loader_(std::move(loader)) {}

  absl::StatusOr<std::vector<Batch>> MicroBatches(int64_t step) override {
    return loader_.MicroBatches(step);
  }
  absl::StatusOr<std::vector<Batch>> EvalBatches(int64_t max_batches) override {
    return loader_.EvalBatches(max_batches);
  }
  int64_t num_sequences() const override { return loader_.num_sequences(); }

 private:
  DataLoader loader_;
};

// Answers, or pairs of them for a reward model.
class ExampleData final : public TaskData {
 public:
  ExampleData(ExampleLoader loader, std::unique_ptr<Objective> objective)
      : loader_(std::move(loader)), objective_(std::move(objective)) {}

  absl::StatusOr<std::vector<Batch>> MicroBatches(int64_t step) override {
    return loader_.MicroBatches(step);
  }
  absl::StatusOr<std::vector<Batch>> EvalBatches(int64_t max_batches) override {
    return loader_.EvalBatches(max_batches);
  }
  int64_t num_sequences() const override { return loader_.num_examples(); }
  const Objective* objective() const override { return objective_.get(); }

 private:
  ExampleLoader loader_;
  std::unique_ptr<Objective> objective_;
};

// Each rank's places of what the ranks of its context read alike.
class CutData final : public TaskData {
 public:
  CutData(std::unique_ptr<TaskData> whole, const ContextParallel& context)
      : whole_(std::move(whole)), context_(context) {}

  absl::StatusOr<std::vector<Batch>> MicroBatches(int64_t step) override {
    return Cut(whole_->MicroBatches(step));
  }
  absl::StatusOr<std::vector<Batch>> EvalBatches(int64_t max_batches) override {
    return Cut(whole_->EvalBatches(max_batches));
  }
  int64_t num_sequences() const override { return whole_->num_sequences(); }

 private:
  absl::StatusOr<std::vector<Batch>> Cut(absl::StatusOr<std::vector<Batch>> batches) const {
    if (!batches.ok()) return batches;
    for (Batch& batch : *batches) batch = context_.OwnPlaces(batch);
    return batches;
  }

  std::unique_ptr<TaskData> whole_;
  const ContextParallel& context_;
};

// A micro-batch's rows divide over tensor-parallel ranks, and its sequences into two pieces a rank
// of a context.
int64_t LengthMultiple(const MeshShape& shape) {
  return shape.tensor * (shape.context > 1 ? 2 * shape.context : 1);
}

ExampleLoaderOptions LoaderOptions(const Recipe& recipe, const PreparedData& prepared,
                                   const Engine& engine) {
  const BatchPlan& batch = engine.batch();
  return {.train = prepared.train,
          .eval = prepared.eval,
          .kind = recipe.task() == sft ? ExampleKind::kAnswers : ExampleKind::kPreferences,
          .whole = recipe.task() == reward,
          .holdout = recipe.data().holdout(),
          .seq_length = recipe.data().seq_length(),
          .length_multiple = LengthMultiple(engine.mesh().shape()),
          .shuffle = recipe.data().shuffle(),
          .seed = recipe.run().seed(),
          .examples = static_cast<int>(batch.per_device),
          .micro_batches = static_cast<int>(batch.accumulation),
          .rank = engine.mesh().data_parallel_rank(),
          .num_ranks = engine.mesh().data_parallel_size()};
}

}  // namespace

DataKind DataKindOf(const Recipe& recipe) {
  switch (recipe.task()) {
    case sft:
      return DataKind::kAnswers;
    case dpo:
    case reward:
      return DataKind::kPreferences;
    default:
      return DataKind::kDocuments;
  }
}

absl::StatusOr<PreparedData> PrepareTaskData(const LoadedRecipe& recipe,
                                             const TaskEnvironment& environment,
                                             Communicator& ranks, bool shard_per_file) {
  const std::string& folder = recipe.proto.run().output_dir();
  absl::Status prepared = absl::OkStatus();
  if (ranks.rank() == 0) {
    prepared =
        PrepareData({.data = recipe.proto.data(),
                     .kind = DataKindOf(recipe.proto),
                     .tokenizer = recipe.proto.tokenizer(),
                     .model_path = recipe.proto.model().name_or_path(),
                     .output_dir = folder,
                     .num_threads = environment.preparation_threads,
                     .shard_per_file = shard_per_file,
                     .progress = [&](const std::string& line) { environment.log.Info(line); }})
            .status();
  }
  SHOAL_RETURN_IF_ERROR(Agree(ranks, prepared));
  return LoadPreparedData(folder);
}

namespace {

absl::StatusOr<std::unique_ptr<TaskData>> MakeWholeData(const LoadedRecipe& recipe,
                                                        const PreparedData& prepared,
                                                        Engine& engine) {
  const Recipe& proto = recipe.proto;
  if (DataKindOf(proto) == DataKind::kDocuments) {
    const BatchPlan& batch = engine.batch();
    SHOAL_ASSIGN_OR_RETURN(
        DataLoader loader,
        DataLoader::Create({.prepared = prepared,
                            .data = proto.data(),
                            .seed = proto.run().seed(),
                            .rows = static_cast<int>(batch.per_device),
                            .micro_batches = static_cast<int>(batch.accumulation),
                            .rank = engine.mesh().data_parallel_rank(),
                            .num_ranks = engine.mesh().data_parallel_size()}));
    return std::make_unique<DocumentData>(std::move(loader));
  }
  SHOAL_ASSIGN_OR_RETURN(ExampleLoader loader,
                         ExampleLoader::Create(LoaderOptions(proto, prepared, engine)));
  if (proto.task() == dpo) return MakePreferenceData(proto, std::move(loader), engine);
  std::unique_ptr<Objective> objective;
  if (proto.task() == reward)
    objective = std::make_unique<RewardObjective>(proto.reward_model().centering());
  return std::make_unique<ExampleData>(std::move(loader), std::move(objective));
}

}  // namespace

absl::StatusOr<std::unique_ptr<TaskData>> MakeTaskData(const LoadedRecipe& recipe,
                                                       const PreparedData& prepared,
                                                       Engine& engine) {
  SHOAL_ASSIGN_OR_RETURN(std::unique_ptr<TaskData> data, MakeWholeData(recipe, prepared, engine));
  const ContextParallel* context = engine.context();
  return context ? std::make_unique<CutData>(std::move(data), *context) : std::move(data);
}

}  // namespace shoal
