#include "trainer/training_run.h"

#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "checkpoint/agreement.h"
#include "core/metrics_console.h"
#include "core/metrics_jsonl.h"
#include "core/status.h"
#include "core/tensorboard_writer.h"
#include "kernels/matmul.h"
#include "parallel/pipeline/simulate.h"
#include "trainer/hooks/save_hook.h"
#include "trainer/weights_setup.h"

namespace shoal {
namespace {

// Training batches of a DataLoader.
class LoaderBatches final : public BatchSource {
 public:
  explicit LoaderBatches(const DataLoader& loader) : loader_(loader) {}
  absl::StatusOr<std::vector<Batch>> MicroBatches(int64_t step) override {
    return loader_.MicroBatches(step);
  }

 private:
  const DataLoader& loader_;
};

// "4, 3, 3".
std::string StageSizes(const std::vector<BlockRange>& stages) {
  return absl::StrJoin(stages, ", ", [](std::string* out, const BlockRange& range) {
    absl::StrAppend(out, range.size());
  });
}

bool Reports(const LoggingSection& logging, LoggingSection::Sink sink) {
  if (logging.report_to().empty()) return true;
  for (int entry : logging.report_to()) {
    if (entry == sink) return true;
  }
  return false;
}

}  // namespace

TrainingRun::TrainingRun(const LoadedRecipe& recipe, const TaskEnvironment& environment,
                         DeviceMesh mesh)
    : recipe_(recipe),
      environment_(environment),
      paths_(recipe.proto.run().output_dir()),
      mesh_(std::move(mesh)) {}

absl::StatusOr<std::unique_ptr<TrainingRun>> TrainingRun::Build(
    const LoadedRecipe& recipe, Communicator& world, const TaskEnvironment& environment) {
  SHOAL_ASSIGN_OR_RETURN(const MeshPlan plan, PlanMesh(recipe, world.size()));
  SHOAL_ASSIGN_OR_RETURN(DeviceMesh mesh, DeviceMesh::Create(world, ShapeOf(plan)));
  auto run = std::unique_ptr<TrainingRun>(new TrainingRun(recipe, environment, std::move(mesh)));
  SHOAL_ASSIGN_OR_RETURN(run->batch_, PlanBatch(recipe, run->mesh_.data_parallel_size()));
  run->ChooseProductLibrary();
  SHOAL_RETURN_IF_ERROR(run->Prepare());
  SHOAL_RETURN_IF_ERROR(run->BuildModelAndLoader());
  SHOAL_RETURN_IF_ERROR(run->PlanStages());
  SHOAL_RETURN_IF_ERROR(run->BuildStates());
  run->Describe();
  SHOAL_RETURN_IF_ERROR(run->FillStates());
  return run;
}

void TrainingRun::ChooseProductLibrary() {
  const at::ScalarType dtype = ComputeDtype(recipe_.proto);
  if (recipe_.proto.run().deterministic() || dtype == at::kDouble) return;
  Communicator& control = mesh_.control();
  const bool aten = control.rank() == 0 && MeasureMatMulBackend(dtype) == MatMulBackend::kAten;
  if (SumOverRanks(control, int64_t{aten}) > 0) SetMatMulBackend(dtype, MatMulBackend::kAten);
}

absl::Status TrainingRun::Prepare() {
  Communicator& control = mesh_.control();
  absl::Status prepared = absl::OkStatus();
  if (control.rank() == 0) {
    prepared =
        PrepareData({.data = recipe_.proto.data(),
                     .tokenizer = recipe_.proto.tokenizer(),
                     .model_path = recipe_.proto.model().name_or_path(),
                     .output_dir = paths_.root,
                     .num_threads = environment_.preparation_threads,
                     .progress = [this](const std::string& line) { environment_.log.Info(line); }})
            .status();
    if (prepared.ok()) {
      prepared =
          WriteFileAtomically(environment_.files, paths_.resolved_recipe, recipe_.ResolvedYaml());
    }
  }
  SHOAL_RETURN_IF_ERROR(Agree(control, prepared));
  SHOAL_ASSIGN_OR_RETURN(prepared_, LoadPreparedData(paths_.root));
  return absl::OkStatus();
}

absl::Status TrainingRun::BuildModelAndLoader() {
  const Recipe& recipe = recipe_.proto;
  SHOAL_ASSIGN_OR_RETURN(const ModelConfig config,
                         ModelConfigOf(recipe_, environment_.files, prepared_.vocab_size));
  const bool sequence_parallel = recipe.parallelism().sequence_parallel();
  if (mesh_.shape().tensor > 1) tensor_.emplace(mesh_.tensor(), sequence_parallel);
  absl::StatusOr<Model> model = BuildModel(config, tensor_ ? tensor_->place() : TensorPlace());
  if (!model.ok()) return recipe_.ErrorAt("parallelism.tensor_parallel", model.status().message());
  model_ = *std::move(model);
  const int64_t rows = batch_.per_device * recipe.data().seq_length();
  if (tensor_ && sequence_parallel && rows % mesh_.shape().tensor != 0) {
    return recipe_.ErrorAt(
        "parallelism.tensor_parallel",
        absl::StrFormat("a micro-batch's %d sequences * %d tokens do not divide over %d ranks: "
                        "change the batch or set sequence_parallel: false",
                        batch_.per_device, recipe.data().seq_length(), mesh_.shape().tensor));
  }
  SHOAL_ASSIGN_OR_RETURN(DataLoader loader,
                         DataLoader::Create({.prepared = prepared_,
                                             .data = recipe.data(),
                                             .seed = recipe.run().seed(),
                                             .rows = static_cast<int>(batch_.per_device),
                                             .micro_batches = static_cast<int>(batch_.accumulation),
                                             .rank = mesh_.data_parallel_rank(),
                                             .num_ranks = mesh_.data_parallel_size()}));
  loader_ = std::make_unique<DataLoader>(std::move(loader));
  num_steps_ = NumSteps(recipe.training(), {.sequences_per_epoch = loader_->num_sequences(),
                                            .sequences_per_step = batch_.global,
                                            .seq_length = recipe.data().seq_length()});
  return absl::OkStatus();
}

absl::Status TrainingRun::PlanStages() {
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
                     .recompute = kRecompute[recipe.training().activation_checkpointing()],
                     .label_smoothing = recipe.training().label_smoothing_factor(),
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

absl::Status TrainingRun::BuildStates() {
  std::vector<std::string> freeze(recipe_.proto.model().freeze().begin(),
                                  recipe_.proto.model().freeze().end());
  absl::StatusOr<std::vector<BlockParameters>> blocks = DescribeParameters(model_, freeze);
  if (!blocks.ok()) return recipe_.ErrorAt("model.freeze", blocks.status().message());
  const Schedule& schedule = runner_options_.schedule;
  std::vector<BlockRange> chunks;
  for (int chunk = 0; chunk < schedule.chunks; ++chunk)
    chunks.push_back(runner_options_.stages[schedule.StageOf(mesh_.pipeline().rank(), chunk)]);
  Communicator* tied_stages =
      mesh_.TieStages(RanksWithTiedWeights(*blocks, schedule, runner_options_.stages));
  parameters_ = std::make_unique<ShardedParameters>(
      OfChunks(*blocks, chunks),
      ZeroOptionsOf(recipe_.proto, batch_,
                    {.ranks = mesh_.shard().size(), .leaves_host = mesh_.shard().name() == "mpi"}),
      GroupsOf(mesh_, tied_stages));
  if (SumOverRanks(mesh_.model_control(), parameters_->num_trainable()) == 0)
    return recipe_.ErrorAt("model.freeze", "every weight is frozen");
  optimizer_ = std::make_unique<ShardedOptimizer>(
      UpdateRuleOf(recipe_.proto.optimizer()), *parameters_,
      ShardedOptimizer::Options{.decay_all = recipe_.proto.optimizer().decay_all()});
  return absl::OkStatus();
}

void TrainingRun::Describe() const {
  const HeldBytes held = parameters_->held_bytes();
  const Logger& log = environment_.log;
  const int64_t total = model_.num_parameters();
  const int64_t trained = SumOverRanks(mesh_.model_control(), parameters_->num_trainable());
  const std::string layout =
      mesh_.shape().pipeline == 1
          ? ""
          : absl::StrFormat(", %s with stages of %s blocks, %.0f %% idle",
                            NameOf(runner_options_.schedule.kind),
                            StageSizes(runner_options_.stages),
                            100 * Simulate(runner_options_.schedule, {})->bubble);
  log.Info(absl::StrFormat("model     %s, %.2fM parameters, %.2fM trained, computed in %s",
                           model_.config.json.value("model_type", "?"), total * 1e-6,
                           trained * 1e-6, Dtype_Name(recipe_.proto.model().dtype())));
  log.Info(absl::StrFormat("mesh      %s, ZeRO stage %d%s", mesh_.shape().Equation(),
                           recipe_.proto.zero().stage(), layout));
  log.Info(absl::StrFormat("batch     %s, %d tokens a step", batch_.equation,
                           batch_.global * recipe_.proto.data().seq_length()));
  log.Info(absl::StrFormat("data      %d sequences an epoch, %d steps are %.2f epochs",
                           loader_->num_sequences(), num_steps_, loader_->EpochAt(num_steps_)));
  log.Info(absl::StrFormat(
      "held/rank weights %s, gradients %s, master weights %s, optimizer %s, gathered units %s",
      HumanBytes(held.weights), HumanBytes(held.gradients), HumanBytes(held.master_weights),
      HumanBytes(optimizer_->state_bytes()), HumanBytes(held.gathered)));
}

absl::StatusOr<std::string> TrainingRun::CheckpointToResume() {
  const std::string& resume = recipe_.proto.checkpoint().resume();
  if (resume != "auto" && resume != "never") return resume;
  std::vector<std::string> skipped;
  SHOAL_ASSIGN_OR_RETURN(
      const std::optional<std::string> newest,
      FindNewestValid(environment_.files, mesh_.control(), paths_.checkpoints, &skipped));
  for (const std::string& line : skipped) {
    if (mesh_.control().rank() == 0) environment_.log.Warning(line);
  }
  if (newest && resume == "never") {
    return recipe_.ErrorAt("checkpoint.resume",
                           absl::StrCat("never, but ", *newest,
                                        " is there: choose another run.output_dir or remove it"));
  }
  return newest.value_or("");
}

std::string TrainingRun::DataFingerprint() const {
  return absl::StrFormat("%d documents, %d tokens, vocabulary %d, seq_length %d, seed %d",
                         prepared_.train_documents, prepared_.train_tokens, prepared_.vocab_size,
                         recipe_.proto.data().seq_length(), recipe_.proto.run().seed());
}

absl::Status TrainingRun::Resume(const std::string& checkpoint) {
  SHOAL_ASSIGN_OR_RETURN(resumed_, LoadCheckpoint(environment_.files, mesh_.control(), checkpoint,
                                                  ToStatePieces(optimizer_->PiecesToLoad())));
  if (resumed_->data().fingerprint() != DataFingerprint()) {
    return recipe_.ErrorAt("checkpoint.resume",
                           absl::StrCat(checkpoint, " was trained on other data (",
                                        resumed_->data().fingerprint(), ") than the recipe's (",
                                        DataFingerprint(), "): choose another run.output_dir"));
  }
  if (resumed_->data().sequences() != resumed_->step() * batch_.global) {
    return recipe_.ErrorAt(
        "training",
        absl::StrFormat(
            "%s is at sequence %d after %d steps, and steps of %d sequences do not lead there: "
            "set global_batch_size: %d",
            checkpoint, resumed_->data().sequences(), resumed_->step(), batch_.global,
            resumed_->data().sequences() / std::max<int64_t>(1, resumed_->step())));
  }
  parameters_->SyncFromMaster();
  progress_ = {.step = resumed_->step(),
               .updates = resumed_->step() - resumed_->skipped_steps(),
               .tokens = resumed_->tokens(),
               .skipped_in_a_row = resumed_->skipped_in_a_row()};
  environment_.log.Info(
      absl::StrFormat("resumed   %s, written by %d ranks", checkpoint, resumed_->layout().ranks()));
  return absl::OkStatus();
}

absl::Status TrainingRun::FillStates() {
  SHOAL_ASSIGN_OR_RETURN(const std::string checkpoint, CheckpointToResume());
  if (!checkpoint.empty()) return Resume(checkpoint);
  if (recipe_.proto.model().init() == ModelSection::random) {
    InitializeWeights(recipe_.proto.run().seed(), *optimizer_, *parameters_);
    return absl::OkStatus();
  }
  SHOAL_ASSIGN_OR_RETURN(
      const WeightReader reader,
      WeightReader::Open(environment_.files, recipe_.proto.model().name_or_path(), model_));
  return ReadWeights(reader, *optimizer_, *parameters_);
}

absl::StatusOr<std::unique_ptr<LogHook>> TrainingRun::MakeLogHook() {
  const LoggingSection& logging = recipe_.proto.logging();
  std::vector<std::unique_ptr<MetricsSink>> sinks;
  absl::Status opened = absl::OkStatus();
  const auto add = [&](absl::StatusOr<std::unique_ptr<MetricsSink>> sink) {
    if (!sink.ok())
      opened = sink.status();
    else
      sinks.push_back(std::move(*sink));
  };
  if (mesh_.control().rank() == 0) {
    if (Reports(logging, LoggingSection::jsonl_file)) {
      add(OpenJsonlSink(environment_.files, paths_.metrics, progress_.step));
    }
    if (Reports(logging, LoggingSection::tensorboard)) {
      add(OpenTensorboardSink(environment_.files, paths_.tensorboard, progress_.step,
                              recipe_.ResolvedYaml()));
    }
    if (Reports(logging, LoggingSection::console)) {
      add(MakeConsoleSink(stdout,
                          {.max_steps = num_steps_, .rewrite_line = environment_.rewrite_line}));
    }
  }
  SHOAL_RETURN_IF_ERROR(Agree(mesh_.control(), opened));
  // A backward pass costs twice a forward one.
  return std::make_unique<LogHook>(
      LogHook::Options{.every_steps = logging.steps(),
                       .train_flops_per_token =
                           3 * model_.ForwardFlopsPerToken(recipe_.proto.data().seq_length()),
                       .compute_dtype = ComputeDtype(recipe_.proto),
                       .threads_per_rank = environment_.threads_per_rank},
      mesh_, std::move(sinks));
}

TrainerState TrainingRun::ConstantState() const {
  TrainerState state;
  state.set_recipe_yaml(recipe_.ResolvedYaml());
  state.set_seed(recipe_.proto.run().seed());
  state.set_shoal_version(environment_.version);
  state.mutable_data()->set_fingerprint(DataFingerprint());
  if (resumed_) state.set_trained_seconds(resumed_->trained_seconds());
  TrainerState::Layout& layout = *state.mutable_layout();
  layout.set_ranks(mesh_.shape().num_ranks());
  layout.set_zero_stage(recipe_.proto.zero().stage());
  layout.set_shard(mesh_.shape().shard);
  layout.set_replicate(mesh_.shape().replicate);
  layout.set_tensor(mesh_.shape().tensor);
  layout.set_pipeline(mesh_.shape().pipeline);
  (*state.mutable_extra())["config_json"] = model_.config.json.dump();
  return state;
}

Trainer TrainingRun::MakeTrainer(int64_t num_steps, BlockRunner& runner, BatchSource& batches) {
  const Recipe& recipe = recipe_.proto;
  Trainer trainer({.num_steps = num_steps,
                   .max_grad_norm = recipe.training().max_grad_norm(),
                   .learning_rate = LrScheduleOf(recipe, num_steps_),
                   .stop_on_non_finite = recipe.training().nan_policy() == TrainingSection::stop,
                   .max_skipped_steps = recipe.training().max_skipped_steps()},
                  {.mesh = mesh_,
                   .runner = runner,
                   .parameters = *parameters_,
                   .optimizer = *optimizer_,
                   .batches = batches});
  trainer.Resume(progress_);
  return trainer;
}

absl::Status TrainingRun::TrainWatched(int64_t steps, std::unique_ptr<Hook> hook) {
  BlockRunner runner(model_, *parameters_, runner_options_);
  LoaderBatches batches(*loader_);
  Trainer trainer = MakeTrainer(std::min(num_steps_, progress_.step + steps), runner, batches);
  trainer.AddHook(std::move(hook));
  SHOAL_RETURN_IF_ERROR(trainer.Run());
  progress_ = trainer.progress();
  return absl::OkStatus();
}

absl::Status TrainingRun::Train() {
  const Recipe& recipe = recipe_.proto;
  BlockRunner runner(model_, *parameters_, runner_options_);
  LoaderBatches batches(*loader_);
  Trainer trainer = MakeTrainer(num_steps_, runner, batches);

  SHOAL_ASSIGN_OR_RETURN(std::unique_ptr<LogHook> log, MakeLogHook());
  LogHook& rows = *log;
  SHOAL_ASSIGN_OR_RETURN(std::vector<Batch> held_out,
                         loader_->EvalBatches(recipe.eval().max_batches()));
  auto eval = std::make_unique<EvalHook>(EvalHook::Options{.every_steps = recipe.eval().steps()},
                                         std::move(held_out), mesh_, runner, rows);
  if (resumed_ && resumed_->has_eval_loss()) eval->set_loss(resumed_->eval_loss());
  auto save = std::make_unique<SaveHook>(
      SaveHook::Options{.every_steps = recipe.checkpoint().save_steps(),
                        .directory = paths_.checkpoints,
                        .save_total_limit = recipe.checkpoint().save_total_limit(),
                        .constant_state = ConstantState(),
                        .global_batch_size = batch_.global,
                        .saved_step = resumed_ ? progress_.step : -1},
      environment_.files, mesh_, *optimizer_, *eval, environment_.log);
  trainer.AddHook(std::move(log));
  trainer.AddHook(std::move(eval));
  trainer.AddHook(std::move(save));
  SHOAL_RETURN_IF_ERROR(trainer.Run());
  progress_ = trainer.progress();
  return rows.Close();
}

}  // namespace shoal
