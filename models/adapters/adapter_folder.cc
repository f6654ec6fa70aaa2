#include "models/adapters/adapter_folder.h"

#include <cmath>
#include <set>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "models/adapters/lora.h"
#include "models/blocks/score_head.h"
#include "models/family.h"
#include "models/json.h"

namespace shoal {
namespace {

constexpr char kPrefix[] = "base_model.model.";

// Absent, null, false, 0, "none" and empty lists and objects ask for nothing.
bool AsksForNothing(const Json& value) {
  return value.is_null() || value == false || value == 0 || value == "none" || value == "" ||
         ((value.is_array() || value.is_object()) && value.empty());
}

class PeftReader {
 public:
  PeftReader(const Json& json, std::string path) : json_(json), path_(std::move(path)) {}

  absl::StatusOr<AdapterFolder> Read() {
    for (const char* key : {"use_dora", "rank_pattern", "alpha_pattern", "layers_to_transform",
                            "layer_replication", "exclude_modules", "target_parameters",
                            "trainable_token_indices", "use_qalora", "lora_bias", "bias"}) {
      if (json_.contains(key) && !AsksForNothing(json_[key])) return Wrong(key, "is not supported");
    }
    if (json_.value("peft_type", "LORA") != "LORA")
      return Wrong("peft_type", "expected LORA, the only kind of adapter");
    AdapterFolder folder;
    SHOAL_ASSIGN_OR_RETURN(const double rank, Number("r"));
    SHOAL_ASSIGN_OR_RETURN(folder.lora.alpha, Number("lora_alpha"));
    folder.lora.rank = static_cast<int64_t>(rank);
    // Rank-stabilised scaling divides by the root of the rank.
    if (json_.value("use_rslora", false)) folder.lora.alpha *= std::sqrt(rank);
    SHOAL_RETURN_IF_ERROR(ReadTargets(folder.lora));
    SHOAL_RETURN_IF_ERROR(ReadSaved(folder));
    if (!json_.contains("base_model_name_or_path") || !json_["base_model_name_or_path"].is_string())
      return Wrong("base_model_name_or_path", "expected the folder of the base model");
    folder.base = json_["base_model_name_or_path"].get<std::string>();
    return folder;
  }

 private:
  absl::Status Wrong(const std::string& key, const std::string& what) const {
    const auto given = json_.find(key);
    return absl::InvalidArgumentError(
        absl::StrCat(path_, ": ", key, ": ",
                     given == json_.end() ? "absent" : "got " + ShowJson(*given), ", ", what));
  }

  absl::StatusOr<double> Number(const std::string& key) const {
    const auto given = json_.find(key);
    if (given == json_.end() || !given->is_number() || !(given->get<double>() > 0))
      return Wrong(key, "expected a number above 0");
    return given->get<double>();
  }

  absl::Status ReadTargets(LoraOptions& lora) const {
    const auto given = json_.find("target_modules");
    if (given != json_.end() && *given == LoraOptions::kAllLinear) {
      lora.targets = {LoraOptions::kAllLinear};
      return absl::OkStatus();
    }
    if (given == json_.end() || !given->is_array() || given->empty())
      return Wrong("target_modules", "expected a list of names, or all-linear");
    for (const Json& target : *given) {
      if (!target.is_string()) return Wrong("target_modules", "expected a list of names");
      lora.targets.push_back(target.get<std::string>());
    }
    return absl::OkStatus();
  }

  absl::Status ReadSaved(AdapterFolder& folder) const {
    const auto given = json_.find("modules_to_save");
    if (given == json_.end() || AsksForNothing(*given)) return absl::OkStatus();
    for (const Json& module : *given) {
      // peft adds both names for a sequence classification; a model has one of them.
      if (module != "score" && module != "classifier")
        return Wrong("modules_to_save", "expected none but score");
    }
    folder.score = true;
    return absl::OkStatus();
  }

  const Json& json_;
  const std::string path_;
};

}  // namespace

absl::StatusOr<std::optional<AdapterFolder>> ReadAdapterFolder(FileSystem& files,
                                                               const std::string& directory) {
  const std::string path = JoinPath(directory, kAdapterConfigName);
  SHOAL_ASSIGN_OR_RETURN(const bool found, Exists(files, path));
  if (!found) return std::optional<AdapterFolder>();
  SHOAL_ASSIGN_OR_RETURN(const Json json, ReadJsonFile(files, path));
  if (!json.is_object())
    return absl::InvalidArgumentError(absl::StrCat(path, " is not a JSON object"));
  SHOAL_ASSIGN_OR_RETURN(AdapterFolder folder, PeftReader(json, path).Read());
  return std::optional<AdapterFolder>(std::move(folder));
}

std::string PeftConfig(const Model& model, const std::string& base) {
  const LoraOptions& lora = *model.config.lora;
  std::set<std::string> modules(lora.targets.begin(), lora.targets.end());
  if (modules.contains(LoraOptions::kAllLinear)) {
    // Last parts of the names, as peft lists them.
    modules.clear();
    for (const ParameterSpec& spec : model.unique_parameters()) {
      if (!spec.adapter) continue;
      const std::string module = spec.name.substr(0, spec.name.rfind(".lora_"));
      modules.insert(module.substr(module.rfind('.') + 1));
    }
  }
  const bool scores = model.config.head == HeadKind::kScore;
  Json json = Json::object();
  json["peft_type"] = "LORA";
  json["task_type"] = scores ? "SEQ_CLS" : "CAUSAL_LM";
  json["base_model_name_or_path"] = base;
  json["r"] = lora.rank;
  json["lora_alpha"] = lora.alpha;
  json["lora_dropout"] = 0.0;
  json["bias"] = "none";
  json["target_modules"] = modules;
  json["fan_in_fan_out"] = model.config.family->stack.linear == StackOptions::Linear::kInOut;
  json["modules_to_save"] = scores ? Json::array({"score"}) : Json(nullptr);
  json["inference_mode"] = true;
  json["use_rslora"] = false;
  json["use_dora"] = false;
  return json.dump(2) + "\n";
}

bool IsSavedWithAdapter(const ParameterSpec& spec) {
  return spec.adapter || spec.name == ScoreHeadBlock::kWeightName;
}

std::string PeftName(const std::string& name) { return kPrefix + name; }

std::string FromPeftName(const std::string& name) {
  return absl::StartsWith(name, kPrefix) ? name.substr(sizeof(kPrefix) - 1) : "";
}

}  // namespace shoal
