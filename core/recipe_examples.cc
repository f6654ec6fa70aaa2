#include "core/recipe_examples.h"

#include "absl/strings/str_cat.h"

namespace shoal {
namespace {

class ExampleValidator {
 public:
  ExampleValidator(const LoadedRecipe& recipe, const ReportError& report)
      : recipe_(recipe), proto_(recipe.proto), report_(report) {}

  // Of tasks that learn from examples, a row each, and of those that minimise something else than
  // cross entropy.
  void Run() {
    const Task task = proto_.task();
    const bool pairs = task == dpo || task == reward;
    if (task != dpo) OnlyOf("preference", "task dpo");
    if (task != reward) OnlyOf("reward_model", "task reward");
    if (!pairs && task != sft) return OnlyOf("data.chat", "tasks sft, dpo and reward");
    const std::string examples =
        absl::StrCat("task ", Task_Name(task), " learns from examples, a row each");
    const auto leave_out = [&](const char* key, bool given) {
      if (given) Error(key, absl::StrCat(examples, ", expected it left out"));
    };
    leave_out("data.packing", !proto_.data().packing());
    leave_out("data.document_mask", proto_.data().document_mask());
    leave_out("training.max_tokens", proto_.training().has_max_tokens());
    if (proto_.tokenizer().has_train()) {
      Error("tokenizer.train", absl::StrCat(examples, ", expected the tokenizer of the model"));
    }
    if (pairs && proto_.training().label_smoothing_factor() > 0) {
      Error("training.label_smoothing_factor", absl::StrCat("is of cross entropy, which task ",
                                                            Task_Name(task), " does not minimise"));
    }
    if (task == reward && !proto_.sample().prompts().empty())
      Error("sample.prompts", "a reward model writes no text, expected none");
    if (task == dpo) Preference();
  }

 private:
  void Error(const std::string& key, std::string message) { report_(key, std::move(message)); }

  void Preference() {
    const PreferenceSection& section = proto_.preference();
    const bool adapters = proto_.model().has_lora();
    if (section.reference() == PreferenceSection::adapters_off && !adapters)
      Error("preference.reference", "adapters_off needs adapters, expected model.lora");
    if (section.loss() == PreferenceSection::kto &&
        (!adapters || section.reference() == PreferenceSection::precomputed)) {
      Error("preference.loss",
            "kto asks the reference about other answers every step, expected model.lora and "
            "reference: adapters_off");
    }
    const PreferenceSection& defaults = PreferenceSection::default_instance();
    const auto of_loss = [&](const char* key, bool changed, PreferenceSection::Loss loss,
                             const char* name) {
      if (changed && section.loss() != loss)
        Error(absl::StrCat("preference.", key), absl::StrCat("is of loss ", name));
    };
    of_loss("gamma", section.gamma() != defaults.gamma(), PreferenceSection::simpo, "simpo");
    of_loss("label_smoothing", section.label_smoothing() != 0, PreferenceSection::sigmoid, "dpo");
    of_loss("desirable_weight", section.desirable_weight() != 1, PreferenceSection::kto, "kto");
    of_loss("undesirable_weight", section.undesirable_weight() != 1, PreferenceSection::kto, "kto");
    if (section.loss() == PreferenceSection::simpo &&
        section.reference() != PreferenceSection::auto_reference)
      Error("preference.reference", "simpo has no reference, expected it left out");
  }

  void OnlyOf(const char* key, const char* tasks) {
    if (recipe_.IsSet(key)) Error(key, absl::StrCat("is of ", tasks));
  }

  const LoadedRecipe& recipe_;
  const Recipe& proto_;
  const ReportError& report_;
};

}  // namespace

void ValidateExamples(
    const LoadedRecipe& recipe,
    const std::function<void(const std::string& key, std::string message)>& error) {
  ExampleValidator(recipe, error).Run();
}

}  // namespace shoal
