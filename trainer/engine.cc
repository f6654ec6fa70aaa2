#include "trainer/engine.h"

#include <ATen/Context.h>

#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "checkpoint/agreement.h"
#include "core/metrics_console.h"
#include "core/status.h"
#include "kernels/matmul.h"
#include "optim/grad_norm.h"
#include "parallel/pipeline/simulate.h"
#include "trainer/offload_setup.h"
#include "trainer/state_pieces.h"
#include "trainer/update_rules.h"
#include "trainer/weights_setup.h"

namespace shoal {
namespace {

// "4, 3, 3".
std::string StageSizes(const std::vector<BlockRange>& stages) {
  return absl::StrJoin(stages, ", ", [](std::string* out, const BlockRange& range) {
    absl::StrAppend(out, range.size());
  });
}

// What int8 does to the numbers, said before it does.
std::optional<std::string> DescribeQuantized(const ZeroOptions& zero, int ranks) {
  std::string what;
  if (zero.quantized_weights) what = "gathered weights";
  if (zero.quantized_gradients) absl::StrAppend(&what, what.empty() ? "" : " and ", "gradients");
  if (what.empty()) return std::nullopt;
  if (ranks == 1) return "int8      one rank holds all shards: nothing is sent, nothing rounded";
  return absl::StrFormat(
      "int8      %s are sent as int8, each off by up to 1/254 of the largest of "
      "its block of %d",
      what, kQuantizedBlock);
}

}  // namespace

void ChooseProductLibrary(const Recipe& recipe, Communicator& ranks) {
  if (!ranks.device().is_cpu()) {
    // Of libtorch's operations on a device some add in any order. The warning names those that
    // must.
    if (recipe.run().deterministic()) {
      at::globalContext().setDeterministicAlgorithms(true, /*warn_only=*/true);
      at::globalContext().setDeterministicFillUninitializedMemory(false);
    }
    return;
  }
  const at::ScalarType compute = ComputeDtype(recipe);
  const at::ScalarType dtype = compute == at::kHalf ? at::kFloat : compute;  // See kernels/matmul.h
  if (recipe.run().deterministic() || dtype == at::kDouble) return;
  const bool aten = ranks.rank() == 0 && MeasureMatMulBackend(dtype) == MatMulBackend::kAten;
  if (SumOverRanks(ranks, int64_t{aten}) > 0) SetMatMulBackend(dtype, MatMulBackend::kAten);
}

absl::StatusOr<std::unique_ptr<Engine>> Engine::Build(const LoadedRecipe& recipe, DeviceMesh mesh,
                                                      const BatchPlan& batch,
                                                      const ModelConfig& config,
                                                      std::unique_ptr<UpdateRule> rule) {
  auto engine = std::unique_ptr<Engine>(new Engine(recipe, std::move(mesh), batch, false));
  SHOAL_RETURN_IF_ERROR(engine->BuildAll(config, std::move(rule)));
  return engine;
}

absl::StatusOr<std::unique_ptr<Engine>> Engine::BuildFrozen(const LoadedRecipe& recipe,
                                                            DeviceMesh mesh, const BatchPlan& batch,
                                                            const ModelConfig& config) {
  auto engine = std::unique_ptr<Engine>(new Engine(recipe, std::move(mesh), batch, true));
  SHOAL_RETURN_IF_ERROR(engine->BuildAll(config, nullptr));
  return engine;
}

absl::Status Engine::BuildAll(const ModelConfig& config, std::unique_ptr<UpdateRule> rule) {
  SHOAL_RETURN_IF_ERROR(BuildBlocks(config));
  SHOAL_RETURN_IF_ERROR(PlanStages());
  return BuildStates(std::move(rule));
}

absl::Status Engine::BuildBlocks(const ModelConfig& config) {
  const Recipe& recipe = recipe_.proto;
  const bool sequence_parallel = recipe.parallelism().sequence_parallel();
  if (mesh_.shape().tensor > 1) tensor_.emplace(mesh_.tensor(), sequence_parallel);
  if (mesh_.shape().context > 1) context_.emplace(mesh_.context(), ContextMethodOf(recipe));
  TensorPlace place = tensor_ ? tensor_->place() : TensorPlace();
  if (mesh_.expert() != nullptr) {
    experts_.emplace(*mesh_.expert());
    place.expert_rank = experts_->rank();
    place.expert_size = experts_->size();
  }
  absl::StatusOr<Model> model = BuildModel(config, place);
  if (!model.ok()) {
    const char* key = absl::IsNotFound(model.status()) ? "model.lora.target_modules"
                                                       : "parallelism.tensor_parallel";
    return recipe_.ErrorAt(key, model.status().message());
  }
  model_ = *std::move(model);
  const int64_t own_tokens = recipe.data().seq_length() / mesh_.shape().context,
                rows = batch_.per_device * own_tokens;
  if (tensor_ && sequence_parallel && rows % mesh_.shape().tensor != 0) {
    return recipe_.ErrorAt(
        "parallelism.tensor_parallel",
        absl::StrFormat("a micro-batch's %d sequences * %d tokens do not divide over %d ranks: "
                        "change the batch or set sequence_parallel: false",
                        batch_.per_device, own_tokens, mesh_.shape().tensor));
  }
  return absl::OkStatus();
}

absl::Status Engine::PlanStages() {
  const Recipe& recipe = recipe_.proto;
  absl::StatusOr<Schedule> schedule = PipelineScheduleOf(recipe.parallelism(), batch_.accumulation);
  if (!schedule.ok())
    return recipe_.ErrorAt("parallelism.pipeline_chunks", schedule.status().message());
  absl::StatusOr<std::vector<BlockRange>> stages =
      StagesOf(model_, schedule->stages(), recipe.data().seq_length());
  if (!stages.ok())
    return recipe_.ErrorAt("parallelism.pipeline_parallel", stages.status().message());
  static constexpr Recompute kRecompute[] = {Recompute::kNone, Recompute::kSelective,
                                             Recompute::kFull};
  runner_options_ = {.tensor = tensor_ ? &*tensor_ : nullptr,
                     .context = context(),
                     .experts = experts_ ? &*experts_ : nullptr,
                     .router_z_loss = recipe.moe().router_z_loss_coef(),
                     .capacity_factor = recipe.moe().capacity_factor(),
                     .recompute = kRecompute[recipe.training().activation_checkpointing()],
                     .label_smoothing = recipe.training().label_smoothing_factor(),
                     .dropout_seed = model_.config.dropout.any()
                                         ? std::optional<uint64_t>(recipe.run().seed())
                                         : std::nullopt,
                     .schedule = *std::move(schedule),
                     .stages = *std::move(stages)};
  if (mesh_.shape().pipeline > 1) {
    runner_options_.activations = &mesh_.pipeline();
    runner_options_.gradients = &mesh_.pipeline_gradients();
  }
  const Schedule& order = runner_options_.schedule;
  mesh_.set_loss_stage(order.PlaceOf(order.stages() - 1).rank);
  return absl::OkStatus();
}

absl::StatusOr<ZeroOptions> Engine::MakeZeroOptions() {
  const std::string moves = mesh_.shard().name();
  const bool leaves_host = moves == "mpi" || moves == "nccl";
  ZeroOptions zero = ZeroOptionsOf(recipe_.proto, batch_,
                                   {.ranks = mesh_.shard().size(),
                                    .leaves_host = leaves_host,
                                    .on_device = !mesh_.shard().device().is_cpu()});
  SHOAL_ASSIGN_OR_RETURN(offload_, OpenOffloadSpace(recipe_, mesh_.control()));
  zero.offload = offload_.get();
  const at::Device device = mesh_.shard().device();
  const OffloadTo activations =
      PlaceOf(recipe_.proto.training().offload_activations(), !device.is_cpu());
  if (activations != OffloadTo::kNowhere) {
    activations_ =
        ActivationStore::Of(device, activations == OffloadTo::kDisk ? offload_.get() : nullptr);
    runner_options_.offload = activations_.get();
  }
  return zero;
}

absl::Status Engine::BuildStates(std::unique_ptr<UpdateRule> rule) {
  std::vector<std::string> freeze(recipe_.proto.model().freeze().begin(),
                                  recipe_.proto.model().freeze().end());
  if (frozen_) freeze = {".*"};
  absl::StatusOr<std::vector<BlockParameters>> blocks = DescribeParameters(model_, freeze);
  if (!blocks.ok()) return recipe_.ErrorAt("model.freeze", blocks.status().message());
  const OptimizerSection& optimizer = recipe_.proto.optimizer();
  MarkWholeUpdates(optimizer, *blocks);
  if (!frozen_) SHOAL_RETURN_IF_ERROR(ApplyGroups(recipe_, *blocks));
  const Schedule& schedule = runner_options_.schedule;
  std::vector<BlockRange> chunks;
  for (int chunk = 0; chunk < schedule.chunks; ++chunk)
    chunks.push_back(runner_options_.stages[schedule.StageOf(mesh_.pipeline().rank(), chunk)]);
  Communicator* tied_stages =
      mesh_.TieStages(RanksWithTiedWeights(*blocks, schedule, runner_options_.stages));
  SHOAL_ASSIGN_OR_RETURN(const ZeroOptions zero, MakeZeroOptions());
  parameters_ = std::make_unique<ShardedParameters>(OfChunks(*blocks, chunks), zero,
                                                    GroupsOf(mesh_, tied_stages));
  if (!frozen_ && SumOverRanks(mesh_.model_control(), parameters_->num_trainable()) == 0)
    return recipe_.ErrorAt("model.freeze", "every weight is frozen");
  optimizer_ = std::make_unique<ShardedOptimizer>(rule ? std::move(rule) : UpdateRuleOf(optimizer),
                                                  *parameters_, OptimizerOptionsOf(optimizer));
  return offload_ ? ReserveOffload(recipe_, *offload_, mesh_.control()) : absl::OkStatus();
}

absl::Status Engine::ReadStart(FileSystem& files) {
  const ModelSection& model = recipe_.proto.model();
  if (model.init() == ModelSection::pretrained)
    return Agree(mesh_.control(), ReadFolder(files, model.name_or_path()));
  InitializeRandom(recipe_.proto.run().seed());
  return absl::OkStatus();
}

void Engine::InitializeRandom(uint64_t seed) { InitializeWeights(seed, *optimizer_, *parameters_); }

absl::Status Engine::ReadFolder(FileSystem& files, const std::string& folder) {
  // A rank that holds some of the experts has weights in the folder which are not of its model.
  std::optional<Model> all_experts;
  if (experts_) {
    SHOAL_ASSIGN_OR_RETURN(all_experts, BuildModel(model_.config));
  }
  SHOAL_ASSIGN_OR_RETURN(const WeightReader reader,
                         WeightReader::Open(files, folder, all_experts ? *all_experts : model_));
  return ReadWeights(reader, recipe_.proto.run().seed(), *optimizer_, *parameters_);
}

absl::StatusOr<TrainerState> Engine::LoadCheckpoint(FileSystem& files,
                                                    const std::string& checkpoint) {
  SHOAL_ASSIGN_OR_RETURN(TrainerState state,
                         shoal::LoadCheckpoint(files, mesh_.control(), checkpoint,
                                               ToStatePieces(optimizer_->PiecesToLoad())));
  parameters_->SyncFromMaster();
  return state;
}

BlockRunner Engine::MakeRunner(const Objective* objective) {
  RunnerOptions options = runner_options_;
  options.objective = objective;
  return BlockRunner(model_, *parameters_, std::move(options));
}

std::vector<std::string> Engine::Describe() const {
  const HeldBytes held = parameters_->held_bytes();
  const int64_t total = model_.num_parameters();
  const int64_t trained = SumOverRanks(mesh_.model_control(), parameters_->num_trainable());
  const std::string layout =
      mesh_.shape().pipeline == 1
          ? ""
          : absl::StrFormat(", %s with stages of %s blocks, %.0f %% idle",
                            NameOf(runner_options_.schedule.kind),
                            StageSizes(runner_options_.stages),
                            100 * Simulate(runner_options_.schedule, {})->bubble);
  std::vector<std::string> lines = {
      absl::StrFormat("model     %s, %.2fM parameters, %.2fM trained, computed in %s",
                      model_.config.json.value("model_type", "?"), total * 1e-6, trained * 1e-6,
                      Dtype_Name(recipe_.proto.model().dtype())),
      absl::StrFormat("mesh      %s, ZeRO stage %d%s", mesh_.shape().Equation(),
                      recipe_.proto.zero().stage(), layout),
      absl::StrFormat("batch     %s, %d tokens a step", batch_.equation,
                      batch_.global * recipe_.proto.data().seq_length()),
      absl::StrFormat(
          "held/rank weights %s, gradients %s, master weights %s, optimizer %s, gathered units %s",
          HumanBytes(held.weights), HumanBytes(held.gradients), HumanBytes(held.master_weights),
          HumanBytes(optimizer_->state_bytes()), HumanBytes(held.gathered))};
  if (const at::Device device = parameters_->device(); !device.is_cpu()) {
    lines.push_back(absl::StrCat("device    ", device.str()));
    if (mesh_.control().size() > 1)
      absl::StrAppend(&lines.back(), ", ", mesh_.control().name(), " between ranks");
  }
  const int64_t states_in_host = optimizer_->state_bytes_in_host();
  if (held.weights_in_host + held.gradients_in_host + held.master_weights_in_host + states_in_host >
      0) {
    lines.push_back(absl::StrFormat(
        "in host   weights %s, gradients %s, master weights %s, optimizer %s; the host updates",
        HumanBytes(held.weights_in_host), HumanBytes(held.gradients_in_host),
        HumanBytes(held.master_weights_in_host), HumanBytes(states_in_host)));
  }
  if (parameters_->device().is_cpu() && OffloadsToHost(recipe_.proto))
    lines.push_back("in host   everything is there anyway: these ranks compute on the CPU");
  if (offload_) {
    lines.push_back(absl::StrFormat(
        "on disk   weights %s, master weights %s, optimizer %s%s, in %s",
        HumanBytes(held.weights_on_disk), HumanBytes(held.master_weights_on_disk),
        HumanBytes(optimizer_->state_bytes_on_disk()),
        recipe_.proto.training().offload_activations() == disk ? ", activations as they come" : "",
        OffloadFolder(recipe_.proto)));
  }
  if (const auto line = DescribeQuantized(parameters_->options(), mesh_.shard().size()))
    lines.push_back(*line);
  return lines;
}

}  // namespace shoal
