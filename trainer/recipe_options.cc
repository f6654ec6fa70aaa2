#include "trainer/recipe_options.h"

#include <cmath>

#include <google/protobuf/util/json_util.h>

#include "absl/strings/str_cat.h"
#include "core/device_validation.h"
#include "core/dtype.h"
#include "core/status.h"
#include "models/family.h"

namespace shoal {

at::ScalarType ComputeDtype(const Recipe& recipe) {
  return *DtypeFromName(Dtype_Name(recipe.model().dtype()));
}

CommOptions CommOptionsOf(const Recipe& recipe) {
  return {.transport = recipe.comm().transport() == CommSection::mpi ? CommTransport::kMpi
                                                                     : CommTransport::kAuto,
          .deterministic = recipe.run().deterministic(),
          .timeout = absl::Seconds(recipe.comm().timeout_s())};
}

DeviceRequest DeviceRequestOf(const Recipe& recipe) {
  switch (recipe.run().device()) {
    case RunConfig::cpu:
      return DeviceRequest::kCpu;
    case RunConfig::cuda:
      return DeviceRequest::kCuda;
    case RunConfig::auto_device:
      break;
  }
  return WhyNotOnGpu(recipe) ? DeviceRequest::kCpu : DeviceRequest::kAuto;
}

std::optional<std::string> DescribeIdleGpus(const Recipe& recipe, const Communicator& ranks) {
  if (recipe.run().device() != RunConfig::auto_device || !ranks.device().is_cpu() ||
      NumDevices() == 0)
    return std::nullopt;
  return absl::StrCat("device    cpu: ", WhyNotOnGpu(recipe).value_or("not every rank sees a GPU"));
}

MeshShape ShapeOf(const MeshPlan& plan) {
  return {.replicate = plan.replicate,
          .shard = plan.shard,
          .context = plan.context,
          .tensor = plan.tensor,
          .pipeline = plan.pipeline,
          .expert = plan.expert};
}

OffloadTo PlaceOf(Offload offload, bool on_device) {
  if (offload == disk) return OffloadTo::kDisk;
  return offload == host_memory && on_device ? OffloadTo::kHost : OffloadTo::kNowhere;
}

ZeroOptions ZeroOptionsOf(const Recipe& recipe, const BatchPlan& batch, const ShardGroup& group) {
  ZeroOptions options{
      .stage = recipe.zero().stage(),
      .compute_dtype = ComputeDtype(recipe),
      .gradient_dtype = at::kFloat,
      .micro_batches = static_cast<int>(batch.accumulation),
      .reduce_every_micro_batch = recipe.run().deterministic(),
      .split_master = recipe.optimizer().master_weights() == OptimizerSection::split,
      .quantized_weights = recipe.zero().quantized_weights(),
      .quantized_gradients = recipe.zero().quantized_gradients(),
      .offload_optimizer = PlaceOf(recipe.zero().offload_optimizer(), group.on_device),
      .offload_parameters = PlaceOf(recipe.zero().offload_parameters(), group.on_device),
      .on_device = group.on_device};
  const ParallelismSection& parallelism = recipe.parallelism();
  const bool halves = parallelism.pipeline_schedule() == ParallelismSection::zb_h1 ||
                      parallelism.pipeline_schedule() == ParallelismSection::zbv;
  // Halves of different micro-batches interleave, so nothing is reduced before all are done.
  if (halves) options.reduce_every_micro_batch = false;
  const ZeroSection::OverlapComm overlap = recipe.zero().overlap_comm();
  // Between threads or processes of one host, moving is work for the same cores.
  const bool moves = group.ranks > 1 || options.updates_on_host();
  const bool others_move = group.leaves_host || options.updates_on_host();
  options.overlap = moves && (overlap == ZeroSection::overlap ||
                              (overlap == ZeroSection::auto_overlap && others_move));
  const bool adds_up = batch.accumulation > 1;
  switch (recipe.zero().gradient_dtype()) {
    case ZeroSection::auto_dtype:
      // Scaled gradients keep their range in float32 alone.
      options.gradient_dtype = adds_up || options.compute_dtype == at::kHalf
                                   ? options.master_dtype()
                                   : options.compute_dtype;
      break;
    case ZeroSection::gradient_float32:
      options.gradient_dtype = options.master_dtype();
      break;
    case ZeroSection::gradient_bfloat16:
      options.gradient_dtype = at::kBFloat16;
      break;
  }
  return options;
}

absl::StatusOr<Schedule> PipelineScheduleOf(const ParallelismSection& parallelism,
                                            int64_t micro_batches) {
  static constexpr ScheduleKind kKinds[] = {ScheduleKind::k1F1B, ScheduleKind::kGpipe,
                                            ScheduleKind::kInterleaved1F1B, ScheduleKind::kZbH1,
                                            ScheduleKind::kZbV};
  const ScheduleKind kind = kKinds[parallelism.pipeline_schedule()];
  const bool several = kind == ScheduleKind::kInterleaved1F1B || kind == ScheduleKind::kZbV;
  int chunks = parallelism.pipeline_chunks();
  if (chunks == 0) chunks = several && parallelism.pipeline_parallel() > 1 ? 2 : 1;
  return MakeSchedule(kind, parallelism.pipeline_parallel(), static_cast<int>(micro_batches),
                      chunks);
}

absl::StatusOr<std::vector<BlockRange>> StagesOf(const Model& model, int stages,
                                                 int64_t seq_length) {
  std::vector<double> costs;
  for (const auto& block : model.blocks) costs.push_back(block->ForwardFlopsPerToken(seq_length));
  return SplitByCost(costs, stages);
}

LrSchedule LrScheduleOf(const Recipe& recipe, int64_t num_steps) {
  static constexpr LrSchedule::Type kTypes[] = {LrSchedule::Type::kConstant,
                                                LrSchedule::Type::kLinear,
                                                LrSchedule::Type::kCosine, LrSchedule::Type::kWsd};
  const SchedulerSection& scheduler = recipe.scheduler();
  return {.type = kTypes[scheduler.type()],
          .peak = recipe.optimizer().learning_rate(),
          .min_ratio = scheduler.min_lr_ratio(),
          .total_steps = num_steps,
          .warmup_steps = StepsFromShare(scheduler.warmup_steps(), num_steps),
          .decay_steps = StepsFromShare(scheduler.decay_steps(), num_steps)};
}

int64_t NumSteps(const TrainingSection& training, const StepBudget& budget) {
  if (training.has_max_steps()) return training.max_steps();
  const double sequences =
      training.has_max_tokens()
          ? static_cast<double>(training.max_tokens()) / static_cast<double>(budget.seq_length)
          : training.num_train_epochs() * static_cast<double>(budget.sequences_per_epoch);
  return std::max<int64_t>(
      1, std::llround(std::ceil(sequences / static_cast<double>(budget.sequences_per_step))));
}

namespace {

absl::StatusOr<Json> JsonOf(const google::protobuf::Struct& config) {
  std::string text;
  const auto status = google::protobuf::util::MessageToJsonString(config, &text);
  if (!status.ok()) return absl::InternalError(absl::StrCat("model.config: ", status.ToString()));
  return Json::parse(text);
}

absl::Status CheckFits(const LoadedRecipe& recipe, const ModelConfig& config,
                       int64_t tokenizer_vocab_size) {
  const std::string vocab_key =
      recipe.IsSet("model.config.vocab_size") ? "model.config.vocab_size" : "model.name_or_path";
  if (config.vocab_size < tokenizer_vocab_size) {
    return recipe.ErrorAt(vocab_key,
                          absl::StrCat("the model has ", config.vocab_size, " rows, the tokenizer ",
                                       tokenizer_vocab_size, " ids: raise vocab_size"));
  }
  if (recipe.proto.data().seq_length() > config.max_positions) {
    return recipe.ErrorAt("data.seq_length",
                          absl::StrCat("got ", recipe.proto.data().seq_length(), ", the model has ",
                                       config.max_positions,
                                       " positions: shorten it or raise max_position_embeddings"));
  }
  return absl::OkStatus();
}

absl::Status CheckMoe(const LoadedRecipe& recipe, const ModelConfig& config) {
  const MoeSection& moe = recipe.proto.moe();
  if (moe.bias_update_rate() > 0) {
    const auto refuse = [&](const std::string& why) {
      return recipe.ErrorAt("moe.bias_update_rate",
                            absl::StrCat("got ", moe.bias_update_rate(), ", but ", why));
    };
    if (config.family->stack.router != StackOptions::Router::kBiasedSigmoid)
      return refuse(absl::StrCat("the routers of family ", config.family->model_type,
                                 " have no bias, expected 0"));
    if (config.lora)
      return refuse("adapters train alone and leave the routers' biases, expected 0");
  }
  if (config.num_experts > 0) return absl::OkStatus();
  const auto refuse = [&](const char* key) {
    return recipe.ErrorAt(key, absl::StrCat("is of models with experts, but family ",
                                            config.family->model_type, " has none"));
  };
  if (moe.router_z_loss_coef() > 0) return refuse("moe.router_z_loss_coef");
  if (moe.capacity_factor() > 0) return refuse("moe.capacity_factor");
  return absl::OkStatus();
}

}  // namespace

ContextParallel::Method ContextMethodOf(const Recipe& recipe) {
  return recipe.parallelism().context_method() == ParallelismSection::ulysses
             ? ContextParallel::Method::kUlysses
             : ContextParallel::Method::kRing;
}

absl::Status CheckContextRanks(const LoadedRecipe& recipe, const ModelConfig& config) {
  const ParallelismSection& axes = recipe.proto.parallelism();
  const int64_t ranks = axes.context_parallel(), tensor = axes.tensor_parallel();
  if (ranks == 1) return absl::OkStatus();
  const auto refuse = [&](const std::string& why) {
    return recipe.ErrorAt("parallelism.context_parallel", absl::StrCat("got ", ranks, why));
  };
  if (ContextMethodOf(recipe.proto) == ContextParallel::Method::kUlysses &&
      config.num_heads % (tensor * ranks) != 0) {
    return refuse(absl::StrCat(", expected a divisor of the ", config.num_heads,
                               tensor == 1 ? " heads" : " heads / tensor_parallel ",
                               tensor == 1 ? "" : absl::StrCat(tensor),
                               " with context_method ulysses; ring takes any"));
  }
  return absl::OkStatus();
}

absl::Status CheckExpertRanks(const LoadedRecipe& recipe, const ModelConfig& config) {
  const int ranks = recipe.proto.parallelism().expert_parallel();
  if (ranks == 1 || (config.num_experts > 0 && config.num_experts % ranks == 0))
    return absl::OkStatus();
  return recipe.ErrorAt("parallelism.expert_parallel",
                        config.num_experts == 0
                            ? absl::StrCat("got ", ranks, ", but family ",
                                           config.family->model_type, " has no experts, expected 1")
                            : absl::StrCat("got ", ranks, ", expected a divisor of the ",
                                           config.num_experts, " experts"));
}

absl::StatusOr<ModelConfig> ModelConfigOf(const LoadedRecipe& recipe, FileSystem& files,
                                          int64_t tokenizer_vocab_size) {
  const ModelSection& model = recipe.proto.model();
  SHOAL_ASSIGN_OR_RETURN(Json overrides, JsonOf(model.config()));
  std::vector<ConfigIssue> issues;
  const ConfigOptions options{.family_file = model.family_file(), .issues = &issues};
  absl::StatusOr<ModelConfig> config;
  if (model.has_name_or_path()) {
    config = LoadModelConfig(files, model.name_or_path(),
                             overrides.empty() ? Json(nullptr) : overrides, options);
  } else {
    if (!overrides.contains("vocab_size") && tokenizer_vocab_size > 0)
      overrides["vocab_size"] = tokenizer_vocab_size;
    config = ModelConfigFromJson(overrides, options);
  }
  if (!config.ok()) {
    if (issues.empty()) return config.status();
    std::vector<RecipeError> errors;
    for (const ConfigIssue& issue : issues) {
      const std::string key =
          issue.key.empty() ? "model.config" : absl::StrCat("model.config.", issue.key);
      errors.push_back({.origin = recipe.OriginOf(key), .key = key, .message = issue.message});
    }
    return RecipeErrorsToStatus(std::move(errors));
  }
  SHOAL_RETURN_IF_ERROR(CheckFits(recipe, *config, tokenizer_vocab_size));
  SHOAL_RETURN_IF_ERROR(CheckMoe(recipe, *config));
  SHOAL_RETURN_IF_ERROR(CheckExpertRanks(recipe, *config));
  SHOAL_RETURN_IF_ERROR(CheckContextRanks(recipe, *config));
  if (recipe.proto.task() == reward) UseScoreHead(*config);
  if (!model.has_lora()) return config;
  if (config->lora) {
    return recipe.ErrorAt("model.lora", absl::StrCat("given, but ", model.name_or_path(),
                                                     " holds adapters already, which go on "
                                                     "training: leave it out"));
  }
  config->lora = {
      .rank = model.lora().rank(),
      .alpha = model.lora().alpha(),
      .targets = {model.lora().target_modules().begin(), model.lora().target_modules().end()}};
  if (config->lora->targets.empty()) config->lora->targets = config->family->lora_targets;
  if (config->lora->targets.empty()) config->lora->targets = {LoraOptions::kAllLinear};
  return config;
}

}  // namespace shoal
