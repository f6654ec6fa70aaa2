#include "core/rlhf_validation.h"

#include "absl/strings/str_cat.h"
#include "core/recipe_schema.h"

namespace shoal {
namespace {

class RlhfValidator {
 public:
  RlhfValidator(const LoadedRecipe& recipe, const ReportError& report)
      : recipe_(recipe), rlhf_(recipe.proto.rlhf()), report_(report) {}

  void Run() {
    Length();
    Environment();
    Advantages();
    Kl();
    Critic();
    if (acts()) return;
    if (rlhf_.prompts().empty())
      report_("rlhf.prompts", "no prompts, expected a file of JSON lines with \"prompt\"");
    if (rlhf_.rewards().empty())
      report_("rlhf.rewards", "no reward, expected a list such as [{kind: arithmetic}]");
    for (int i = 0; i < rlhf_.rewards_size(); ++i) Reward(i);
    if (recipe_.proto.eval().steps() > 0 && rlhf_.eval_prompts().empty())
      report_("eval.steps", "nothing to evaluate on, expected rlhf.eval_prompts");
    const bool has_tokenizer = !recipe_.proto.tokenizer().name_or_path().empty() ||
                               !recipe_.proto.model().name_or_path().empty();
    if (!has_tokenizer || recipe_.proto.tokenizer().has_train()) {
      report_("tokenizer",
              "prompts need a tokenizer that is there, expected tokenizer.name_or_path or "
              "model.name_or_path");
    }
  }

 private:
  bool is_ppo() const { return recipe_.proto.task() == ppo; }
  // For a key that makes sense only where `condition` holds.
  void Only(bool condition, const std::string& key, const std::string& where) {
    if (!condition && recipe_.IsSet(key)) report_(key, absl::StrCat("is of ", where));
  }

  bool acts() const { return rlhf_.environment().name() != EnvironmentSection::no_environment; }

  void Environment() {
    const EnvironmentSection& environment = rlhf_.environment();
    for (const char* key : {"num_envs", "steps", "context", "eval_episodes"})
      Only(acts(), absl::StrCat("rlhf.environment.", key), "runs with rlhf.environment.name");
    for (const char* key :
         {"prompts", "eval_prompts", "prompt_field", "answer_field", "rewards", "rollout.prompts",
          "rollout.group_size", "rollout.max_new_tokens", "rollout.missing_eos_penalty", "kl"})
      Only(!acts(), absl::StrCat("rlhf.", key), "runs without rlhf.environment");
    if (!acts()) return;
    if (!is_ppo()) report_("rlhf.environment.name", "needs a critic, expected task: ppo");
    if (environment.steps() % environment.context() != 0) {
      report_("rlhf.environment.context",
              absl::StrCat("got ", environment.context(),
                           ", expected a divisor of steps = ", environment.steps()));
    }
  }

  void Length() {
    const TrainingSection& training = recipe_.proto.training();
    if (!training.has_max_steps() &&
        (training.has_num_train_epochs() || training.has_max_tokens())) {
      report_("training", "answers are made as the run goes, expected max_steps");
    }
    if (recipe_.IsSet("data.train"))
      report_("data.train", "is of tasks that read their data, expected rlhf.prompts");
  }

  void Reward(int i) {
    const RewardSection& reward = rlhf_.rewards(i);
    const std::string key = absl::StrCat("rlhf.rewards.", i);
    const auto belongs = [&](RewardSection::Kind kind, const char* field, bool given) {
      const std::string name =
          EnumYamlName(*RewardSection::Kind_descriptor()->FindValueByNumber(kind));
      if (reward.kind() == kind && !given)
        report_(key, absl::StrCat("kind ", name, " needs ", field));
      if (reward.kind() != kind && given)
        report_(absl::StrCat(key, ".", field), absl::StrCat("is of kind ", name));
    };
    belongs(RewardSection::regex, "pattern", !reward.pattern().empty());
    belongs(RewardSection::length, "target_tokens", reward.has_target_tokens());
    belongs(RewardSection::overlong, "buffer_tokens", reward.has_buffer_tokens());
    belongs(RewardSection::program, "command", !reward.command().empty());
    belongs(RewardSection::model, "path", !reward.path().empty());
    if (reward.has_buffer_tokens() && reward.buffer_tokens() > rlhf_.rollout().max_new_tokens()) {
      report_(absl::StrCat(key, ".buffer_tokens"),
              absl::StrCat("got ", reward.buffer_tokens(),
                           ", expected at most rlhf.rollout.max_new_tokens = ",
                           rlhf_.rollout().max_new_tokens()));
    }
  }

  void Advantages() {
    const AdvantageSection::Kind kind = rlhf_.advantage().kind();
    const bool gae =
        kind == AdvantageSection::gae || (kind == AdvantageSection::auto_kind && is_ppo());
    if (gae && !is_ppo())
      report_("rlhf.advantage.kind", "gae needs a critic, expected task: ppo, or group");
    if (!gae && is_ppo())
      report_("rlhf.advantage.kind", "compares answers, expected task: grpo, or gae");
    if (!gae && rlhf_.rollout().group_size() < 2) {
      report_("rlhf.rollout.group_size",
              "got 1, but answers are compared with others to the same prompt, expected 2 or more");
    }
    const bool group =
        kind == AdvantageSection::group || (kind == AdvantageSection::auto_kind && !is_ppo());
    Only(group, "rlhf.advantage.scale", "advantage kind group");
    Only(group, "rlhf.advantage.epsilon", "advantage kind group");
    Only(gae, "rlhf.advantage.gamma", "advantage kind gae");
    Only(gae, "rlhf.advantage.lambda", "advantage kind gae");
  }

  void Kl() {
    const KlSection& kl = rlhf_.kl();
    const bool in_reward =
        kl.where() == KlSection::reward || (kl.where() == KlSection::auto_where && is_ppo());
    if (in_reward && !is_ppo())
      report_("rlhf.kl.where", "reward needs advantages a token, expected task: ppo, or loss");
    for (const char* key : {"rlhf.kl.where", "rlhf.kl.estimator", "rlhf.kl.unbiased_gradient"})
      Only(kl.coef() > 0, key, "runs with rlhf.kl.coef above 0");
    if (kl.coef() > 0) Only(!in_reward, "rlhf.kl.unbiased_gradient", "a KL in the loss");
  }

  void Critic() {
    for (const char* key : {"rlhf.critic.learning_rate", "rlhf.critic.path", "rlhf.critic.clip"})
      Only(is_ppo(), key, "task ppo");
  }

  const LoadedRecipe& recipe_;
  const RlhfSection& rlhf_;
  const ReportError& report_;
};

}  // namespace

bool IsRlhfTask(const Recipe& recipe) { return recipe.task() == grpo || recipe.task() == ppo; }

void ValidateRlhf(const LoadedRecipe& recipe, const ReportError& report) {
  if (IsRlhfTask(recipe.proto)) {
    RlhfValidator(recipe, report).Run();
  } else if (recipe.IsSet("rlhf")) {
    report("rlhf", "is of tasks grpo and ppo");
  }
}

bool IsPlainTraining(const Recipe& recipe) {
  return !IsRlhfTask(recipe) && recipe.task() != federated;
}

}  // namespace shoal
