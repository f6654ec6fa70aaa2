#include "trainer/plan/recipe_plan.h"

#include "absl/strings/str_cat.h"
#include "core/status.h"
#include "data/tokenizer.h"
#include "trainer/recipe_options.h"
#include "trainer/update_rules.h"

namespace shoal {
namespace {

// Ids of the tokenizer that an embedding must have rows for, where the model does not say.
absl::StatusOr<int64_t> VocabularyOf(const LoadedRecipe& recipe) {
  const TokenizerSection& tokenizer = recipe.proto.tokenizer();
  if (tokenizer.has_train()) return tokenizer.train().vocab_size();
  if (!tokenizer.name_or_path().empty()) {
    SHOAL_ASSIGN_OR_RETURN(const Tokenizer loaded, Tokenizer::Load(tokenizer.name_or_path()));
    return loaded.vocab_size();
  }
  return recipe.ErrorAt("model.config",
                        "vocab_size is missing, and there is no tokenizer to take it from");
}

}  // namespace

absl::StatusOr<ModelConfig> PlannedModel(const LoadedRecipe& recipe, FileSystem& files) {
  const ModelSection& model = recipe.proto.model();
  int64_t vocabulary = 0;
  if (!model.has_name_or_path() && model.config().fields().count("vocab_size") == 0) {
    SHOAL_ASSIGN_OR_RETURN(vocabulary, VocabularyOf(recipe));
  }
  return ModelConfigOf(recipe, files, vocabulary);
}

Planner PlannerOf(const LoadedRecipe& recipe, ModelConfig config) {
  const auto& freeze = recipe.proto.model().freeze();
  return Planner(std::move(config), {freeze.begin(), freeze.end()}, recipe.proto.optimizer());
}

PlanJob JobOf(const Recipe& recipe, const MeshShape& mesh, const BatchPlan& batch,
              const Hardware& hardware) {
  static constexpr Recompute kRecompute[] = {Recompute::kNone, Recompute::kSelective,
                                             Recompute::kFull};
  const bool on_device = recipe.run().device() == RunConfig::cuda;
  // A job on several hosts speaks MPI, one on GPUs NCCL.
  const bool leaves_host = mesh.num_ranks() > hardware.ranks_per_host ||
                           recipe.comm().transport() == CommSection::mpi || on_device;
  PlanJob job{
      .mesh = mesh,
      .zero = ZeroOptionsOf(
          recipe, batch,
          {.ranks = mesh.weight_shards(), .leaves_host = leaves_host, .on_device = on_device}),
      .sequence_parallel = recipe.parallelism().sequence_parallel(),
      .recompute = kRecompute[recipe.training().activation_checkpointing()],
      .label_smoothing = recipe.training().label_smoothing_factor(),
      .sequences = batch.per_device,
      .seq_length = recipe.data().seq_length(),
      .context_method = ContextMethodOf(recipe),
      .optimizer_states = static_cast<int>(UpdateRuleOf(recipe.optimizer())->state_names().size()),
      .whole_rule = WholeRuleOf(recipe.optimizer()),
      .ema = recipe.optimizer().has_ema(),
      .offload_activations = PlaceOf(recipe.training().offload_activations(), on_device)};
  // A small one suffices to see the kind and its chunks. Sizes that it does not take fail later,
  // where they are planned.
  ParallelismSection small = recipe.parallelism();
  small.set_pipeline_parallel(std::min(small.pipeline_parallel(), 2));
  if (const auto schedule = PipelineScheduleOf(small, 1); schedule.ok()) {
    job.schedule = schedule->kind;
    job.chunks = schedule->chunks;
  }
  return job;
}

absl::StatusOr<Plan> PlanRecipe(const LoadedRecipe& recipe, int ranks, const Hardware& hardware,
                                Planner& planner) {
  SHOAL_ASSIGN_OR_RETURN(const MeshPlan mesh, PlanMesh(recipe, ranks));
  SHOAL_ASSIGN_OR_RETURN(const BatchPlan batch, PlanBatch(recipe, mesh.data_parallel_ranks));
  const PlanJob job = JobOf(recipe.proto, ShapeOf(mesh), batch, hardware);
  const auto blame = [&](const char* key, const absl::Status& status) {
    return recipe.ErrorAt(key, status.message());
  };
  const auto schedule = PipelineScheduleOf(recipe.proto.parallelism(), 1);
  if (!schedule.ok()) return blame("parallelism.pipeline_chunks", schedule.status());
  SHOAL_RETURN_IF_ERROR(CheckExpertRanks(recipe, planner.config()));
  const auto first = BuildModel(planner.config(), {.size = job.mesh.tensor});
  if (!first.ok()) return blame("parallelism.tensor_parallel", first.status());
  const auto model = planner.Outline(job);
  if (!model.ok()) return blame("model.freeze", model.status());
  std::vector<BlockParameters> blocks = (*model)->parts[0].blocks;
  SHOAL_RETURN_IF_ERROR(ApplyGroups(recipe, blocks));
  if (job.shares_rows() && job.rows() % job.mesh.tensor != 0) {
    return recipe.ErrorAt(
        "parallelism.tensor_parallel",
        absl::StrCat("a micro-batch's ", job.sequences, " sequences * ",
                     job.seq_length / job.mesh.context, " tokens do not divide over ",
                     job.mesh.tensor, " ranks: change the batch or set sequence_parallel: false"));
  }
  if (const auto stages = planner.Pipeline(job); !stages.ok())
    return blame("parallelism.pipeline_parallel", stages.status());
  return planner.Make(job);
}

}  // namespace shoal
