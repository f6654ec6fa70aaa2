#include "checkpoint/model_card.h"

#include <cmath>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_split.h"
#include "core/recipe.h"
#include "models/json.h"

namespace shoal {
namespace {

constexpr int64_t kMaxMetricsBytes = int64_t{1} << 30;

std::string DataLine(const DataSource& source) {
  return absl::StrCat(
      "- `", BaseName(source.path()), "`",
      source.licence().empty() ? ": licence not stated" : absl::StrCat(": ", source.licence()),
      "\n");
}

std::string DataText(const DataSection& data) {
  std::string text = "## Data\n\nTrained on:\n\n";
  for (const DataSource& source : data.train()) text += DataLine(source);
  if (data.eval_size() > 0) {
    text += "\nHeld out:\n\n";
    for (const DataSource& source : data.eval()) text += DataLine(source);
  } else if (data.holdout() > 0) {
    absl::StrAppend(&text, "\nHeld out: ", data.holdout() * 100, " % of it.\n");
  }
  return text;
}

}  // namespace

std::optional<double> MeasuredEvalLoss(FileSystem& files, const std::string& run_directory,
                                       int64_t step) {
  const auto text = ReadFile(files, JoinPath(run_directory, "metrics.jsonl"), kMaxMetricsBytes);
  if (!text.ok()) return std::nullopt;
  std::optional<double> loss;
  for (absl::string_view line : absl::StrSplit(*text, '\n')) {
    const Json row = Json::parse(line.begin(), line.end(), nullptr, /*allow_exceptions=*/false);
    if (!row.is_object()) continue;
    const auto at = row.find("step");
    const auto value = row.find("eval_loss");
    if (at == row.end() || value == row.end() || !at->is_number() || !value->is_number()) continue;
    if (at->get<double>() <= static_cast<double>(step)) loss = value->get<double>();
  }
  return loss;
}

ModelCard MakeModelCard(const TrainerState& state, std::optional<double> eval_loss) {
  ModelCard card;
  absl::StrAppend(&card.body, "Trained with Shoal ", state.shoal_version(), ": ", state.step(),
                  " steps, ", state.tokens(), " tokens, seed ", state.seed(), ".\n");
  if (!eval_loss && state.has_eval_loss()) eval_loss = state.eval_loss();
  // A recipe of a newer schema leaves its part of the card out, not the export.
  const auto recipe = ParseRecipe(state.recipe_yaml(), "recipe");
  const Task task = recipe.ok() ? recipe->proto.task() : pretrain;
  if (eval_loss && std::isfinite(*eval_loss)) {
    absl::StrAppendFormat(&card.body, "\nHeld-out loss: %.4f", *eval_loss);
    if (task == dpo || task == reward)
      absl::StrAppend(&card.body, " a pair.\n");
    else
      absl::StrAppendFormat(&card.body, " nats a token (perplexity %.4g).\n", std::exp(*eval_loss));
  }
  if (recipe.ok()) {
    card.name = recipe->proto.run().name();
    absl::StrAppend(&card.body, "\n", DataText(recipe->proto.data()));
  }
  const char* opener =
      task == reward ? "AutoModelForSequenceClassification" : "AutoModelForCausalLM";
  absl::StrAppend(&card.body, "\n## Use\n\n```python\nfrom transformers import ", opener,
                  ", AutoTokenizer\n"
                  "model = ",
                  opener,
                  ".from_pretrained(\"PATH\")\n"
                  "tokenizer = AutoTokenizer.from_pretrained(\"PATH\")\n```\n");
  if (!state.recipe_yaml().empty()) {
    absl::StrAppend(&card.body, "\n## Recipe\n\n```yaml\n", state.recipe_yaml(),
                    state.recipe_yaml().back() == '\n' ? "" : "\n", "```\n");
  }
  return card;
}

}  // namespace shoal
