#include "trainer/run_state.h"

#include "checkpoint/export.h"
#include "core/status.h"
#include "models/adapters/adapter_folder.h"
#include "trainer/hooks/profile_hook.h"

namespace shoal {

Trainer::Options TrainerOptionsOf(const Recipe& recipe, int64_t num_steps) {
  std::optional<LossScaling> loss_scaling;
  if (recipe.model().dtype() == float16) {
    const LossScalingSection& given = recipe.training().loss_scaling();
    loss_scaling = {.initial_scale = given.initial_scale(),
                    .growth_interval = given.growth_interval(),
                    .min_scale = given.min_scale()};
  }
  return {.num_steps = num_steps,
          .max_grad_norm = recipe.training().max_grad_norm(),
          .router_bias_rate = recipe.moe().bias_update_rate(),
          .learning_rate = LrScheduleOf(recipe, num_steps),
          .stop_on_non_finite = recipe.training().nan_policy() == TrainingSection::stop,
          .max_skipped_steps = recipe.training().max_skipped_steps(),
          .loss_scaling = loss_scaling};
}

absl::StatusOr<std::unique_ptr<LogHook>> MakeLogHook(const LoadedRecipe& recipe,
                                                     const TaskEnvironment& environment,
                                                     Engine& engine, const RunSteps& steps,
                                                     int64_t seq_length) {
  const LoggingSection& logging = recipe.proto.logging();
  SHOAL_ASSIGN_OR_RETURN(std::vector<std::unique_ptr<MetricsSink>> sinks,
                         OpenMetricsSinks(recipe, environment, engine.mesh().control(), steps));
  // A backward pass costs twice a forward one.
  return std::make_unique<LogHook>(
      LogHook::Options{.every_steps = logging.steps(),
                       .train_flops_per_token = 3 * engine.model().ForwardFlopsPerToken(seq_length),
                       .compute_dtype = ComputeDtype(recipe.proto),
                       .threads_per_rank = environment.threads_per_rank,
                       .device = engine.parameters().device()},
      engine.mesh(), std::move(sinks));
}

void AddProfileHook(const Recipe& recipe, const TaskEnvironment& environment, LogHook& rows,
                    Trainer& trainer) {
  if (recipe.profiling().steps() == 0) return;
  // On a device a product's span is the time in which it was asked for.
  const bool spans_products = rows.mesh().shard().device().is_cpu();
  trainer.AddHook(std::make_unique<ProfileHook>(
      ProfilerOptionsOf(recipe),
      Profiler::Parts{
          .ranks = rows.mesh().control(),
          .files = environment.files,
          .log = environment.log,
          .matrix_peak = [&rows,
                          spans_products] { return spans_products ? rows.MatrixPeak() : 0.0; },
          .write_row = [&rows](const MetricsRow& row) { return rows.Write(row); }}));
}

TrainerState ConstantStateOf(const LoadedRecipe& recipe, const TaskEnvironment& environment,
                             const Engine& engine, const std::string& data_fingerprint,
                             const TrainerState* trained_before) {
  TrainerState state;
  state.set_recipe_yaml(recipe.ResolvedYaml());
  state.set_seed(recipe.proto.run().seed());
  state.set_shoal_version(environment.version);
  state.mutable_data()->set_fingerprint(data_fingerprint);
  if (trained_before) state.set_trained_seconds(trained_before->trained_seconds());
  TrainerState::Layout& layout = *state.mutable_layout();
  const MeshShape& shape = engine.mesh().shape();
  layout.set_ranks(shape.num_ranks());
  layout.set_zero_stage(recipe.proto.zero().stage());
  layout.set_shard(shape.shard);
  layout.set_replicate(shape.replicate);
  layout.set_tensor(shape.tensor);
  layout.set_pipeline(shape.pipeline);
  layout.set_context(shape.context);
  layout.set_expert(shape.expert);
  const ModelConfig& config = engine.model().config;
  (*state.mutable_extra())[kConfigStateKey] = config.json.dump();
  const OptimizerSection& optimizer = recipe.proto.optimizer();
  if (optimizer.has_ema() && optimizer.ema().use_for_export())
    (*state.mutable_extra())[kExportMeansKey] = "true";
  if (config.lora) {
    (*state.mutable_extra())[kAdapterConfigStateKey] =
        PeftConfig(engine.model(), recipe.proto.model().name_or_path());
  }
  return state;
}

TrainProgress ProgressOf(const TrainerState& state) {
  std::optional<LossScale> loss_scale;
  if (state.has_loss_scale())
    loss_scale = {.scale = state.loss_scale(), .finite_steps = state.finite_steps()};
  return {.step = state.step(),
          .updates = state.step() - state.skipped_steps(),
          .tokens = state.tokens(),
          .skipped_in_a_row = state.skipped_in_a_row(),
          .loss_scale = loss_scale};
}

}  // namespace shoal
