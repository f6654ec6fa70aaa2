#include "trainer/rlhf/rlhf_run.h"

#include <algorithm>

#include "absl/strings/str_format.h"
#include "checkpoint/agreement.h"
#include "checkpoint/export.h"
#include "trainer/hooks/save_hook.h"
#include "trainer/rlhf/environment_maker.h"
#include "trainer/rlhf/rlhf_hooks.h"
#include "trainer/rlhf/rollout_maker.h"

namespace shoal {
namespace {

// What the policy's objective needs of a rollout, if it is there.
const std::vector<std::string>& PolicyNames() {
  static const auto& names = *new std::vector<std::string>{kAdvantages, kOldLogprobs,
                                                           kReferenceLogprobs, kRolloutLogprobs};
  return names;
}

std::string CriticFolder(const RunPaths& paths) { return JoinPath(paths.root, "critic"); }

}  // namespace

absl::StatusOr<std::unique_ptr<RlhfRun>> RlhfRun::Build(const LoadedRecipe& recipe,
                                                        Communicator& world,
                                                        const TaskEnvironment& environment) {
  auto run = std::unique_ptr<RlhfRun>(new RlhfRun(recipe, world, environment));
  SHOAL_RETURN_IF_ERROR(run->Prepare());
  SHOAL_RETURN_IF_ERROR(run->BuildPolicy());
  SHOAL_RETURN_IF_ERROR(run->BuildReference());
  SHOAL_RETURN_IF_ERROR(run->BuildCritic());
  SHOAL_RETURN_IF_ERROR(run->BuildRollouts());
  for (const std::string& line : run->policy_.engine->Describe()) environment.log.Info(line);
  SHOAL_RETURN_IF_ERROR(run->FillStates());
  return run;
}

absl::StatusOr<DeviceMesh> RlhfRun::MakeMesh() const {
  SHOAL_ASSIGN_OR_RETURN(const MeshPlan plan, PlanMesh(recipe_, world_.size()));
  return DeviceMesh::Create(world_, ShapeOf(plan));
}

absl::Status RlhfRun::Prepare() {
  SHOAL_RETURN_IF_ERROR(WriteResolvedRecipe(recipe_, environment_, world_));
  if (!acts()) return PreparePrompts();
  recipe_.proto.mutable_data()->set_seq_length(recipe_.proto.rlhf().environment().context());
  return absl::OkStatus();
}

absl::Status RlhfRun::PreparePrompts() {
  const Recipe& recipe = recipe_.proto;
  const std::string folder = JoinPath(paths_.root, kTokenizerFolderName);
  const std::string source = recipe.tokenizer().name_or_path().empty()
                                 ? recipe.model().name_or_path()
                                 : recipe.tokenizer().name_or_path();
  absl::Status prepared = absl::OkStatus();
  if (world_.rank() == 0) {
    prepared = Guarded([&]() -> absl::Status {
      SHOAL_ASSIGN_OR_RETURN(const Tokenizer tokenizer, Tokenizer::Load(source));
      return tokenizer.SaveFiles(environment_.files, folder);
    });
  }
  SHOAL_RETURN_IF_ERROR(Agree(world_, prepared));
  SHOAL_ASSIGN_OR_RETURN(tokenizer_, Tokenizer::Load(folder));
  const auto read = [&](const std::string& path) {
    return PromptSet::Read(environment_.files, *tokenizer_,
                           {.path = path,
                            .prompt_field = recipe.rlhf().prompt_field(),
                            .answer_field = recipe.rlhf().answer_field(),
                            .seed = recipe.run().seed()});
  };
  SHOAL_ASSIGN_OR_RETURN(prompts_, read(recipe.rlhf().prompts()));
  int64_t longest = prompts_->longest();
  if (!recipe.rlhf().eval_prompts().empty()) {
    SHOAL_ASSIGN_OR_RETURN(eval_prompts_, read(recipe.rlhf().eval_prompts()));
    longest = std::max(longest, eval_prompts_->longest());
  }
  environment_.log.Info(absl::StrFormat("prompts   %d, %d held out, the longest of %d tokens",
                                        prompts_->size(), eval_prompts_ ? eval_prompts_->size() : 0,
                                        longest));
  const int64_t ranks = recipe.parallelism().tensor_parallel();
  const int64_t places = longest + recipe.rlhf().rollout().max_new_tokens();
  if (recipe_.IsSet("data.seq_length") && recipe.data().seq_length() < places) {
    return recipe_.ErrorAt(
        "data.seq_length",
        absl::StrCat("got ", recipe.data().seq_length(), ", the longest prompt of ", longest,
                     " tokens and rlhf.rollout.max_new_tokens ",
                     recipe.rlhf().rollout().max_new_tokens(), " need ", places));
  }
  recipe_.proto.mutable_data()->set_seq_length(
      static_cast<int32_t>((places + ranks - 1) / ranks * ranks));
  return absl::OkStatus();
}

absl::Status RlhfRun::BuildPolicy() {
  ChooseProductLibrary(recipe_.proto, world_);
  SHOAL_ASSIGN_OR_RETURN(DeviceMesh mesh, MakeMesh());
  SHOAL_ASSIGN_OR_RETURN(batch_, PlanBatch(recipe_, mesh.data_parallel_size()));
  SHOAL_ASSIGN_OR_RETURN(steps_per_rollout_, PlanRollouts(recipe_, batch_));
  SHOAL_ASSIGN_OR_RETURN(config_, ModelConfigOf(recipe_, environment_.files,
                                                tokenizer_ ? tokenizer_->vocab_size() : 0));
  if (acts() != (config_.observation_size > 0)) {
    return recipe_.ErrorAt("model", acts()
                                        ? "reads tokens, and rlhf.environment gives observations: "
                                          "expected model_type decision_llama"
                                        : "reads observations, which only rlhf.environment gives");
  }
  if (config_.dropout.any()) {
    // As TRL does: under masks, training's log-probabilities are not those of the rollout.
    environment_.log.Info("dropout   off in policy and critic: rollouts have none");
    config_.dropout = {};
  }
  SHOAL_ASSIGN_OR_RETURN(policy_.engine, Engine::Build(recipe_, std::move(mesh), batch_, config_));
  policy_.objective = std::make_unique<PolicyObjective>(PolicyObjectiveOptionsOf(recipe_.proto));
  policy_.runner =
      std::make_unique<BlockRunner>(policy_.engine->MakeRunner(policy_.objective.get()));
  return absl::OkStatus();
}

absl::Status RlhfRun::BuildReference() {
  if (!HasReference(recipe_.proto) || config_.lora) return absl::OkStatus();
  SHOAL_ASSIGN_OR_RETURN(DeviceMesh mesh, MakeMesh());
  SHOAL_ASSIGN_OR_RETURN(reference_.engine,
                         Engine::BuildFrozen(recipe_, std::move(mesh), batch_, config_));
  reference_.runner = std::make_unique<BlockRunner>(reference_.engine->MakeRunner());
  return reference_.engine->ReadStart(environment_.files);
}

absl::Status RlhfRun::BuildCritic() {
  if (recipe_.proto.task() != ppo) return absl::OkStatus();
  const CriticSection& critic = recipe_.proto.rlhf().critic();
  critic_recipe_ = recipe_;
  if (critic.learning_rate() > 0)
    critic_recipe_.proto.mutable_optimizer()->set_learning_rate(critic.learning_rate());
  ModelConfig config = config_;
  config.lora.reset();
  UseScoreHead(config);
  SHOAL_ASSIGN_OR_RETURN(DeviceMesh mesh, MakeMesh());
  SHOAL_ASSIGN_OR_RETURN(critic_.engine,
                         Engine::Build(critic_recipe_, std::move(mesh), batch_, config));
  critic_.objective = std::make_unique<ValueObjective>(critic.clip());
  critic_.runner =
      std::make_unique<BlockRunner>(critic_.engine->MakeRunner(critic_.objective.get()));
  return absl::OkStatus();
}

absl::Status RlhfRun::BuildRollouts() {
  SHOAL_ASSIGN_OR_RETURN(generation_,
                         RolloutEngine::Create({.model = policy_.engine->model(),
                                                .parameters = policy_.engine->parameters(),
                                                .mesh = policy_.engine->mesh()}));
  const DeviceMesh& mesh = policy_.engine->mesh();
  const RolloutLayout layout{.rows = batch_.per_device,
                             .micro_batches = batch_.accumulation,
                             .rank = mesh.data_parallel_rank(),
                             .num_ranks = mesh.data_parallel_size(),
                             .multiple = mesh.shape().tensor,
                             .seed = recipe_.proto.run().seed()};
  SHOAL_RETURN_IF_ERROR(acts() ? BuildEnvironmentRollouts(layout) : BuildPromptRollouts(layout));
  store_ = std::make_unique<RolloutStore>(StoreOptionsOf(recipe_.proto), *maker_);
  return absl::OkStatus();
}

absl::Status RlhfRun::BuildEnvironmentRollouts(const RolloutLayout& layout) {
  const MakeEnvironment make = MakeEnvironmentOf(recipe_.proto);
  const auto environment = make();
  if (environment->observation_size() != config_.observation_size ||
      environment->num_actions() != config_.vocab_size) {
    return recipe_.ErrorAt(
        "model",
        absl::StrFormat("reads %d numbers and has %d actions, the environment gives %d and "
                        "takes %d",
                        config_.observation_size, config_.vocab_size,
                        environment->observation_size(), environment->num_actions()));
  }
  maker_ =
      std::make_unique<EnvironmentMaker>(EnvironmentOptionsOf(recipe_.proto), layout,
                                         EnvironmentMaker::Parts{.make = make,
                                                                 .policy = *policy_.engine,
                                                                 .policy_runner = *policy_.runner,
                                                                 .generation = *generation_,
                                                                 .critic = *critic_.engine,
                                                                 .critic_runner = *critic_.runner});
  return absl::OkStatus();
}

absl::Status RlhfRun::BuildPromptRollouts(const RolloutLayout& layout) {
  SHOAL_ASSIGN_OR_RETURN(
      rewards_, RewardSum::Create(recipe_, {.files = environment_.files,
                                            .tokenizer = *tokenizer_,
                                            .device = policy_.engine->parameters().device()}));
  RolloutOptions options = RolloutOptionsOf(recipe_.proto, steps_per_rollout_);
  options.eos_token_ids = config_.eos_token_ids;
  if (options.eos_token_ids.empty() && tokenizer_->eos_id())
    options.eos_token_ids.push_back(*tokenizer_->eos_id());
  const bool adapters_off = HasReference(recipe_.proto) && config_.lora.has_value();
  Actor& reference = adapters_off ? policy_ : reference_;
  maker_ = std::make_unique<RolloutMaker>(
      options, layout,
      RolloutMaker::Parts{.policy = *policy_.engine,
                          .policy_runner = *policy_.runner,
                          .generation = *generation_,
                          .prompts = *prompts_,
                          .tokenizer = *tokenizer_,
                          .rewards = *rewards_,
                          .held_out = eval_prompts_ ? &*eval_prompts_ : nullptr,
                          .reference = reference.engine.get(),
                          .reference_runner = reference.runner.get(),
                          .reference_without_adapters = adapters_off,
                          .critic = critic_.engine.get(),
                          .critic_runner = critic_.runner.get()});
  return absl::OkStatus();
}

std::string RlhfRun::Fingerprint() const {
  if (acts()) {
    return absl::StrFormat("environment %d, seed %d", recipe_.proto.rlhf().environment().name(),
                           recipe_.proto.run().seed());
  }
  return absl::StrFormat("%d prompts of %s, seed %d", prompts_->size(),
                         recipe_.proto.rlhf().prompts(), recipe_.proto.run().seed());
}

absl::Status RlhfRun::FillStates() {
  SHOAL_ASSIGN_OR_RETURN(const std::string checkpoint,
                         CheckpointToResume(recipe_, environment_, world_));
  if (!checkpoint.empty()) return Resume(checkpoint);
  SHOAL_RETURN_IF_ERROR(policy_.engine->ReadStart(environment_.files));
  if (!critic_.engine) return absl::OkStatus();
  const std::string& path = recipe_.proto.rlhf().critic().path();
  if (!path.empty()) return critic_.engine->ReadFolder(environment_.files, path);
  return critic_.engine->ReadStart(environment_.files);
}

absl::Status RlhfRun::Resume(const std::string& checkpoint) {
  SHOAL_ASSIGN_OR_RETURN(resumed_, policy_.engine->LoadCheckpoint(environment_.files, checkpoint));
  const int64_t sequences = resumed_->step() * batch_.global;
  if (resumed_->data().fingerprint() != Fingerprint() ||
      resumed_->data().sequences() != sequences || resumed_->step() % steps_per_rollout_ != 0) {
    return recipe_.ErrorAt(
        "checkpoint.resume",
        absl::StrFormat("%s is at answer %d of %s, and this recipe at step %d is at answer %d of "
                        "%s: choose another run.output_dir",
                        checkpoint, resumed_->data().sequences(), resumed_->data().fingerprint(),
                        resumed_->step(), sequences, Fingerprint()));
  }
  if (critic_.engine) {
    const std::string beside = JoinPath(RunPaths(CriticFolder(paths_)).checkpoints,
                                        absl::StrCat("step-", resumed_->step()));
    SHOAL_RETURN_IF_ERROR(critic_.engine->LoadCheckpoint(environment_.files, beside).status());
  }
  progress_ = ProgressOf(*resumed_);
  environment_.log.Info(
      absl::StrFormat("resumed   %s, written by %d ranks", checkpoint, resumed_->layout().ranks()));
  return absl::OkStatus();
}

Trainer RlhfRun::MakeTrainer(const LoadedRecipe& recipe, Actor& actor, BatchSource& batches) const {
  Trainer trainer(TrainerOptionsOf(recipe.proto, num_steps()),
                  {.mesh = actor.engine->mesh(),
                   .runner = *actor.runner,
                   .parameters = actor.engine->parameters(),
                   .optimizer = actor.engine->optimizer(),
                   .batches = batches});
  trainer.Resume(progress_);
  return trainer;
}

absl::Status RlhfRun::Train() {
  const Recipe& recipe = recipe_.proto;
  RolloutBatches batches(*store_, PolicyNames());
  RolloutBatches critic_batches(*store_, {kReturns, kOldValues});
  Trainer trainer = MakeTrainer(recipe_, policy_, batches);
  std::optional<Trainer> critic;
  if (critic_.engine) critic.emplace(MakeTrainer(critic_recipe_, critic_, critic_batches));

  SHOAL_ASSIGN_OR_RETURN(
      std::unique_ptr<LogHook> log,
      MakeLogHook(recipe_, environment_, *policy_.engine,
                  {.done = progress_.step, .all = num_steps()}, recipe.data().seq_length()));
  LogHook& rows = *log;
  // Evaluation is by reward; no loss is held out.
  const EvalHook no_loss({}, {}, policy_.engine->mesh(), *policy_.runner, rows);
  const auto saved = [&](const Actor& actor, const std::string& folder, int more) {
    return std::make_unique<SaveHook>(
        SaveHook::Options{
            .every_steps = recipe.checkpoint().save_steps(),
            .directory = RunPaths(folder).checkpoints,
            .save_total_limit = recipe.checkpoint().save_total_limit() + more,
            .constant_state = ConstantStateOf(recipe_, environment_, *actor.engine, Fingerprint(),
                                              resumed_ ? &*resumed_ : nullptr),
            .global_batch_size = batch_.global,
            .saved_step = resumed_ ? progress_.step : -1},
        environment_.files, actor.engine->mesh(), actor.engine->optimizer(), no_loss,
        environment_.log);
  };
  auto critic_hook = std::make_unique<CriticHook>(critic ? &*critic : nullptr);
  // The critic's step lies there before the policy's does, and longer.
  if (critic) critic->AddHook(saved(critic_, CriticFolder(paths_), /*more=*/1));
  CriticHook& critic_figures = *critic_hook;
  rows.set_more([&] {
    LogHook::Figures figures = maker_->figures();
    figures.insert(figures.end(), critic_figures.figures().begin(), critic_figures.figures().end());
    return figures;
  });
  trainer.AddHook(std::move(critic_hook));
  trainer.AddHook(
      std::make_unique<LogprobAlarm>(LogprobTolerance(recipe), *maker_, environment_.log));
  trainer.AddHook(std::move(log));
  if (acts() || eval_prompts_) {
    auto eval = std::make_unique<RewardEvalHook>(recipe.eval().steps(), *maker_, rows);
    if (progress_.step == 0) SHOAL_RETURN_IF_ERROR(eval->Evaluate(0));
    trainer.AddHook(std::move(eval));
  }
  trainer.AddHook(saved(policy_, paths_.root, /*more=*/0));
  AddProfileHook(recipe, environment_, rows, trainer);
  SHOAL_RETURN_IF_ERROR(trainer.Run());
  progress_ = trainer.progress();
  return rows.Close();
}

}  // namespace shoal
