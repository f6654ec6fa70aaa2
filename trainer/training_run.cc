#include "trainer/training_run.h"

#include "absl/strings/str_format.h"
#include "checkpoint/agreement.h"
#include "core/status.h"
#include "trainer/hooks/loss_scale_hook.h"
#include "trainer/hooks/save_hook.h"
#include "trainer/run_folder.h"
#include "trainer/run_state.h"

namespace shoal {

absl::StatusOr<std::unique_ptr<TrainingRun>> TrainingRun::Build(
    const LoadedRecipe& recipe, Communicator& world, const TaskEnvironment& environment) {
  SHOAL_ASSIGN_OR_RETURN(const MeshPlan plan, PlanMesh(recipe, world.size()));
  SHOAL_ASSIGN_OR_RETURN(DeviceMesh mesh, DeviceMesh::Create(world, ShapeOf(plan)));
  SHOAL_ASSIGN_OR_RETURN(const BatchPlan batch, PlanBatch(recipe, mesh.data_parallel_size()));
  ChooseProductLibrary(recipe.proto, mesh.control());
  auto run = std::unique_ptr<TrainingRun>(new TrainingRun(recipe, environment));
  SHOAL_ASSIGN_OR_RETURN(run->prepared_, PrepareTaskData(recipe, environment, mesh.control()));
  SHOAL_RETURN_IF_ERROR(WriteResolvedRecipe(recipe, environment, mesh.control()));
  SHOAL_ASSIGN_OR_RETURN(const ModelConfig config,
                         ModelConfigOf(recipe, environment.files, run->prepared_.vocab_size));
  SHOAL_ASSIGN_OR_RETURN(run->engine_, Engine::Build(recipe, std::move(mesh), batch, config));
  SHOAL_RETURN_IF_ERROR(run->BuildData());
  run->Describe();
  SHOAL_RETURN_IF_ERROR(run->FillStates());
  return run;
}

absl::Status TrainingRun::BuildData() {
  SHOAL_ASSIGN_OR_RETURN(data_, MakeTaskData(recipe_, prepared_, *engine_));
  num_steps_ =
      NumSteps(recipe_.proto.training(), {.sequences_per_epoch = data_->num_sequences(),
                                          .sequences_per_step = engine_->batch().global,
                                          .seq_length = recipe_.proto.data().seq_length()});
  return absl::OkStatus();
}

void TrainingRun::Describe() const {
  const Logger& log = environment_.log;
  log.Info(absl::StrFormat("data      %d sequences an epoch, %d steps are %.2f epochs",
                           data_->num_sequences(), num_steps_,
                           static_cast<double>(num_steps_) * engine_->batch().global /
                               static_cast<double>(data_->num_sequences())));
  for (const std::string& line : engine_->Describe()) log.Info(line);
}

std::string TrainingRun::DataFingerprint() const {
  return absl::StrFormat("%d documents, %d tokens, vocabulary %d, seq_length %d, seed %d",
                         prepared_.train_documents, prepared_.train_tokens, prepared_.vocab_size,
                         recipe_.proto.data().seq_length(), recipe_.proto.run().seed());
}

absl::Status TrainingRun::Resume(const std::string& checkpoint) {
  SHOAL_ASSIGN_OR_RETURN(resumed_, engine_->LoadCheckpoint(environment_.files, checkpoint));
  if (resumed_->data().fingerprint() != DataFingerprint()) {
    return recipe_.ErrorAt("checkpoint.resume",
                           absl::StrCat(checkpoint, " was trained on other data (",
                                        resumed_->data().fingerprint(), ") than the recipe's (",
                                        DataFingerprint(), "): choose another run.output_dir"));
  }
  if (resumed_->data().sequences() != resumed_->step() * engine_->batch().global) {
    return recipe_.ErrorAt(
        "training",
        absl::StrFormat(
            "%s is at sequence %d after %d steps, and steps of %d sequences do not lead there: "
            "set global_batch_size: %d",
            checkpoint, resumed_->data().sequences(), resumed_->step(), engine_->batch().global,
            resumed_->data().sequences() / std::max<int64_t>(1, resumed_->step())));
  }
  progress_ = ProgressOf(*resumed_);
  environment_.log.Info(
      absl::StrFormat("resumed   %s, written by %d ranks", checkpoint, resumed_->layout().ranks()));
  return absl::OkStatus();
}

absl::Status TrainingRun::FillStates() {
  SHOAL_ASSIGN_OR_RETURN(const std::string checkpoint,
                         CheckpointToResume(recipe_, environment_, engine_->mesh().control()));
  if (checkpoint.empty() || data_->reads_initial_weights())
    SHOAL_RETURN_IF_ERROR(engine_->ReadStart(environment_.files));
  SHOAL_RETURN_IF_ERROR(data_->Begin(*engine_));
  SHOAL_ASSIGN_OR_RETURN(held_out_, data_->EvalBatches(recipe_.proto.eval().max_batches()));
  return checkpoint.empty() ? absl::OkStatus() : Resume(checkpoint);
}

Trainer TrainingRun::MakeTrainer(int64_t num_steps, BlockRunner& runner, BatchSource& batches) {
  Trainer::Options options = TrainerOptionsOf(recipe_.proto, num_steps_);
  options.num_steps = num_steps;
  Trainer trainer(options, {.mesh = engine_->mesh(),
                            .runner = runner,
                            .parameters = engine_->parameters(),
                            .optimizer = engine_->optimizer(),
                            .batches = batches,
                            .offload = engine_->offload()});
  trainer.Resume(progress_);
  return trainer;
}

absl::Status TrainingRun::TrainWatched(int64_t steps, std::unique_ptr<Hook> hook) {
  BlockRunner runner = engine_->MakeRunner(data_->objective());
  Trainer trainer = MakeTrainer(std::min(num_steps_, progress_.step + steps), runner, *data_);
  trainer.AddHook(std::move(hook));
  SHOAL_RETURN_IF_ERROR(trainer.Run());
  progress_ = trainer.progress();
  return absl::OkStatus();
}

absl::Status TrainingRun::Train() {
  const Recipe& recipe = recipe_.proto;
  BlockRunner runner = engine_->MakeRunner(data_->objective());
  Trainer trainer = MakeTrainer(num_steps_, runner, *data_);

  SHOAL_ASSIGN_OR_RETURN(
      std::unique_ptr<LogHook> log,
      MakeLogHook(recipe_, environment_, *engine_, {.done = progress_.step, .all = num_steps_},
                  recipe.data().seq_length()));
  LogHook& rows = *log;
  const OptimizerSection& optimizer = recipe.optimizer();
  const bool averages = optimizer.has_ema() && optimizer.ema().use_for_eval();
  auto eval = std::make_unique<EvalHook>(
      EvalHook::Options{.every_steps = recipe.eval().steps(),
                        .averages = averages ? &engine_->optimizer() : nullptr},
      held_out_, engine_->mesh(), runner, rows);
  if (resumed_ && resumed_->has_eval_loss()) eval->set_loss(resumed_->eval_loss());
  auto save = std::make_unique<SaveHook>(
      SaveHook::Options{
          .every_steps = recipe.checkpoint().save_steps(),
          .directory = paths_.checkpoints,
          .save_total_limit = recipe.checkpoint().save_total_limit(),
          .constant_state = ConstantStateOf(recipe_, environment_, *engine_, DataFingerprint(),
                                            resumed_ ? &*resumed_ : nullptr),
          .global_batch_size = engine_->batch().global,
          .saved_step = resumed_ ? progress_.step : -1},
      environment_.files, engine_->mesh(), engine_->optimizer(), *eval, environment_.log);
  if (trainer.options().loss_scaling)
    trainer.AddHook(std::make_unique<LossScaleHook>(environment_.log));
  trainer.AddHook(std::move(log));
  trainer.AddHook(std::move(eval));
  trainer.AddHook(std::move(save));
  AddProfileHook(recipe, environment_, rows, trainer);
  SHOAL_RETURN_IF_ERROR(trainer.Run());
  progress_ = trainer.progress();
  return rows.Close();
}

}  // namespace shoal
