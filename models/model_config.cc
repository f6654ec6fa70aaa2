#include "models/model_config.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <set>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"

#include "core/nearest_name.h"
#include "models/adapters/adapter_folder.h"
#include "models/config_rope.h"
#include "models/family.h"
#include "models/model_values.h"

namespace shoal {
namespace {

const std::map<std::string, Activation>& Activations() {
  static const auto& names = *new std::map<std::string, Activation>{
      {"silu", Activation::kSilu},         {"swish", Activation::kSilu},
      {"gelu_new", Activation::kGeluTanh}, {"gelu_pytorch_tanh", Activation::kGeluTanh},
      {"gelu", Activation::kGeluErf},      {"relu", Activation::kRelu}};
  return names;
}

// Keys of every config.json that change nothing here, or that are read elsewhere.
const std::vector<std::string>& CommonKeys() {
  static const auto& keys = *new std::vector<std::string>([] {
    const std::vector<std::string> names = absl::StrSplit(
        "model_type architectures dtype torch_dtype transformers_version use_cache _name_or_path "
        "bos_token_id eos_token_id pad_token_id num_labels id2label label2id quantization_config "
        "output_attentions output_hidden_states return_dict auto_map task_specific_params",
        ' ');
    return names;
  }());
  return keys;
}

// Resolves one configuration through its family; collects everything that is wrong.
class ConfigResolver {
 public:
  ConfigResolver(std::shared_ptr<const ModelFamily> family, Json json) : family_(*family) {
    config_.family = std::move(family);
    config_.json = std::move(json);
  }

  void RefuseUnknownKeys(const Json& handwritten) {
    std::vector<std::string> known = CommonKeys();
    for (const auto& value : family_.values) known.push_back(value.key);
    for (const auto& [place, rate] : family_.dropout) known.push_back(rate.key);
    for (const auto& [key, value] : family_.only) known.push_back(key);
    known.insert(known.end(), family_.ignored.begin(), family_.ignored.end());
    if (family_.rope)
      known.insert(known.end(),
                   {family_.rope->parameters, family_.rope->scaling, family_.rope->theta});
    for (const auto& [key, value] : handwritten.items()) {
      if (std::find(known.begin(), known.end(), key) != known.end()) continue;
      const std::string nearest = NearestName(key, known);
      Issue(key,
            absl::StrCat("unknown key of family ", family_.model_type,
                         nearest.empty() ? "" : absl::StrCat("; did you mean ", nearest, "?")));
    }
  }

  void Resolve() {
    for (const ModelFamily::Value& value : family_.values) ResolveValue(value);
    if (!issues_.empty()) return;  // What follows leans on the values
    CheckHeads();
    CheckExperts();
    if (family_.rope)
      config_.rope = ReadRope(*family_.rope, config_.json, config_.max_positions, issues_);
    ResolveDropout();
    ReadHead();
    CheckOnly();
    config_.bos_token_id = TokenId(config_.json, "bos_token_id");
    config_.pad_token_id = TokenId(config_.json, "pad_token_id");
    config_.eos_token_ids = TokenIds(config_.json, "eos_token_id");
  }

  // generation_config.json's ids come before config.json's. What else it holds is kept, not read.
  void ReadGenerationConfig(Json generation) {
    if (!generation.is_object()) return Issue("", "generation_config.json is not an object");
    if (auto id = TokenId(generation, "bos_token_id")) config_.bos_token_id = id;
    if (auto id = TokenId(generation, "pad_token_id")) config_.pad_token_id = id;
    if (auto ids = TokenIds(generation, "eos_token_id"); !ids.empty()) config_.eos_token_ids = ids;
    config_.generation_json = std::move(generation);
  }

  void Issue(const std::string& key, const std::string& message) {
    issues_.push_back({key, message});
  }

  absl::StatusOr<ModelConfig> Finish(const std::string& where, const ConfigOptions& options) {
    if (options.issues)
      options.issues->insert(options.issues->end(), issues_.begin(), issues_.end());
    if (issues_.empty()) return std::move(config_);
    std::vector<std::string> lines;
    for (const ConfigIssue& issue : issues_) {
      lines.push_back(absl::StrCat(where, issue.key, issue.key.empty() ? "" : ": ", issue.message));
    }
    return absl::InvalidArgumentError(absl::StrJoin(lines, "\n"));
  }

  ModelConfig& config() { return config_; }

 private:
  const std::string& KeyOf(const std::string& name) const {
    for (const ModelFamily::Value& value : family_.values) {
      if (value.name == name && !value.key.empty()) return value.key;
    }
    return name;
  }

  void ResolveValue(const ModelFamily::Value& value) {
    const auto& all = ModelValues();
    const auto& model_value = *std::find_if(
        all.begin(), all.end(), [&](const ModelValue& v) { return v.name == value.name; });
    const std::string& key = value.key.empty() ? value.name : value.key;
    Json* given = value.key.empty() ? nullptr : FindGiven(config_.json, value.key);
    std::visit([&](auto member) { Set(member, model_value, key, given, value.fallback); },
               model_value.member);
  }

  void Set(int64_t ModelConfig::*member, const ModelValue& value, const std::string& key,
           Json* given, const std::string& fallback) {
    double number = 0;
    if (!given) {
      if (!Evaluate(key, fallback, &number)) return;
    } else if (given->is_number() && std::trunc(given->get<double>()) == given->get<double>()) {
      number = given->get<double>();
    } else {
      return Issue(key, absl::StrCat("got ", ShowJson(*given), ", expected a whole number"));
    }
    // Only classifiers of images may consist of their ends.
    const bool decoder = family_.stack.kind == StackOptions::Kind::kDecoder;
    const double min =
        member == &ModelConfig::num_layers && decoder ? std::max(1.0, value.min) : value.min;
    if (!(number >= min && number <= value.max)) {
      return Issue(key, absl::StrCat("got ", number, ", expected ", static_cast<int64_t>(min),
                                     " to ", static_cast<int64_t>(value.max)));
    }
    config_.*member = static_cast<int64_t>(number);
    numbers_[value.name] = number;
    if (given) *given = config_.*member;
  }

  void Set(double ModelConfig::*member, const ModelValue& value, const std::string& key,
           Json* given, const std::string& fallback) {
    double number = 0;
    if (!given) {
      if (!Evaluate(key, fallback, &number)) return;
    } else if (given->is_number()) {
      number = given->get<double>();
    } else {
      return Issue(key, absl::StrCat("got ", ShowJson(*given), ", expected a number"));
    }
    if (!(number >= value.min && number <= value.max)) {
      return Issue(key, absl::StrCat("got ", number, ", expected ", value.min, " to ", value.max));
    }
    config_.*member = number;
    numbers_[value.name] = number;
    if (given) *given = number;
  }

  void Set(bool ModelConfig::*member, const ModelValue& value, const std::string& key, Json* given,
           const std::string& fallback) {
    if (given && !given->is_boolean())
      return Issue(key, absl::StrCat("got ", ShowJson(*given), ", expected true or false"));
    config_.*member = given ? given->get<bool>() : fallback == "true";
  }

  void Set(Activation ModelConfig::*member, const ModelValue& value, const std::string& key,
           Json* given, const std::string& fallback) {
    if (given && !given->is_string())
      return Issue(key, absl::StrCat("got ", ShowJson(*given), ", expected a word"));
    const std::string name = given ? given->get<std::string>() : fallback;
    const auto found = Activations().find(name);
    if (found == Activations().end()) {
      std::vector<std::string> known;
      for (const auto& [word, activation] : Activations()) known.push_back(word);
      return Issue(key, absl::StrCat("activation \"", name,
                                     "\" is not known; known: ", absl::StrJoin(known, ", ")));
    }
    config_.*member = found->second;
  }

  // A family's "number", "name", "a * b" or "a / b". False, with an issue where it is news, if it
  // has no value.
  bool Evaluate(const std::string& key, const std::string& expression, double* result) {
    const std::vector<std::string> words = absl::StrSplit(expression, ' ');
    double operands[2] = {0, 1};
    for (size_t i = 0; i < words.size(); i += 2) {
      double& operand = operands[i / 2];
      if (absl::SimpleAtod(words[i], &operand)) continue;
      const auto found = numbers_.find(words[i]);
      if (found == numbers_.end()) {
        if (issues_.empty())
          Issue(key, absl::StrCat("is missing, and \"", expression, "\" gives no default"));
        return false;
      }
      operand = found->second;
    }
    const bool quotient = words.size() == 3 && words[1] == "/";
    *result = quotient ? operands[0] / operands[1] : operands[0] * operands[1];
    if (quotient && std::trunc(*result) != *result) {
      Issue(KeyOf(words[0]), absl::StrCat("got ", operands[0], ", expected a multiple of ",
                                          KeyOf(words[2]), " = ", operands[1]));
      return false;
    }
    return true;
  }

  void CheckHeads() {
    if (family_.stack.kind != StackOptions::Kind::kDecoder) return;
    if (config_.num_heads % config_.num_key_value_heads != 0) {
      Issue(KeyOf("num_key_value_heads"),
            absl::StrCat("got ", config_.num_key_value_heads, ", expected a divisor of ",
                         KeyOf("num_heads"), " = ", config_.num_heads));
    }
    if (family_.rope && config_.head_dim % 2 != 0) {
      Issue(KeyOf("head_dim"),
            absl::StrCat("got ", config_.head_dim, "; rotary positions need an even head size"));
    }
  }

  void CheckExperts() {
    if (config_.num_experts == 0) return;
    if (config_.expert_intermediate_size == 0)
      config_.expert_intermediate_size = config_.intermediate_size;
    const auto at_most = [&](const char* name, int64_t got, const char* limit_name, int64_t limit) {
      if (got <= limit) return;
      Issue(KeyOf(name),
            absl::StrCat("got ", got, ", expected at most ", KeyOf(limit_name), " = ", limit));
    };
    at_most("experts_per_token", config_.experts_per_token, "num_experts", config_.num_experts);
    at_most("num_dense_layers", config_.num_dense_layers, "num_layers", config_.num_layers);
    const int64_t groups = config_.num_expert_groups, chosen = config_.expert_groups_per_token;
    at_most("expert_groups_per_token", chosen, "num_expert_groups", groups);
    if (groups == 1) return;
    // A group is as good as its two best experts.
    if (config_.num_experts % groups != 0 || config_.num_experts / groups < 2) {
      Issue(KeyOf("num_expert_groups"),
            absl::StrCat("got ", groups, ", expected a divisor of ", KeyOf("num_experts"), " = ",
                         config_.num_experts, " that leaves groups of two or more"));
    } else if (const int64_t within = config_.num_experts / groups * std::min(chosen, groups);
               config_.experts_per_token > within) {
      Issue(
          KeyOf("experts_per_token"),
          absl::StrCat("got ", config_.experts_per_token, ", expected at most the ", within,
                       " experts of ", KeyOf("expert_groups_per_token"), " = ", chosen, " groups"));
    }
  }

  // Of a sequence classification, the number of labels stands in id2label, or in num_labels.
  void ReadHead() {
    const Json* given = FindGiven(config_.json, "architectures");
    if (!given || !given->is_array() || given->empty() || !(*given)[0].is_string()) return;
    if (!absl::EndsWith((*given)[0].get<std::string>(), "ForSequenceClassification")) return;
    config_.head = HeadKind::kScore;
    const Json *names = FindGiven(config_.json, "id2label"),
               *number = FindGiven(config_.json, "num_labels");
    const Json labels = number                        ? *number
                        : names && names->is_object() ? Json(names->size())
                                                      : Json(2);
    if (labels != 1) {
      Issue("num_labels",
            absl::StrCat("got ", ShowJson(labels),
                         ", expected 1: a sequence classification is read as a score"));
    }
  }

  void ResolveDropout() {
    const auto rate = [&](const char* place) {
      const auto found = family_.dropout.find(place);
      if (found == family_.dropout.end()) return 0.0;
      const auto& [key, fallback] = found->second;
      const Json* given = FindGiven(config_.json, key);
      if (!given) return fallback;
      const double value = given->is_number() ? given->get<double>() : -1;
      if (!(value >= 0 && value < 1))
        Issue(key, absl::StrCat("got ", ShowJson(*given), ", expected a rate in [0, 1)"));
      return value;
    };
    config_.dropout = {.embedding = rate("embedding"),
                       .attention = rate("attention"),
                       .residual = rate("residual")};
  }

  void CheckOnly() {
    for (const auto& [key, text] : family_.only) {
      const Json* given = FindGiven(config_.json, key);
      if (!given) continue;
      const Json supported = Json::parse(text, nullptr, false);
      const bool fits = supported.is_array()
                            ? given->is_array() && std::all_of(given->begin(), given->end(),
                                                               [&](const Json& item) {
                                                                 return item == supported[0];
                                                               })
                            : *given == supported;
      if (!fits) {
        Issue(key,
              absl::StrCat("got ", ShowJson(*given), ", only ",
                           supported.is_array() ? "a list of nothing but " : "",
                           supported.is_array() ? supported[0].dump() : text, " is supported"));
      }
    }
    if (FindGiven(config_.json, "quantization_config")) {
      Issue("quantization_config",
            "quantised weights are not supported; use the folder of the original weights");
    }
  }

  std::optional<int64_t> TokenId(Json& object, const std::string& key) {
    const std::vector<int64_t> ids = TokenIds(object, key);
    return ids.empty() ? std::nullopt : std::optional<int64_t>(ids[0]);
  }

  // An id or a list of them; -1 and null mean none.
  std::vector<int64_t> TokenIds(Json& object, const std::string& key) {
    Json* given = FindGiven(object, key);
    if (!given) return {};
    std::vector<int64_t> ids;
    const auto add = [&](Json& item) {
      if (!item.is_number() || std::trunc(item.get<double>()) != item.get<double>() ||
          std::abs(item.get<double>()) > std::numeric_limits<int32_t>::max()) {
        return Issue(key, absl::StrCat("got ", ShowJson(item), ", expected a token's id"));
      }
      item = static_cast<int64_t>(item.get<double>());
      if (item.get<int64_t>() >= 0) ids.push_back(item.get<int64_t>());
    };
    if (given->is_array()) {
      for (Json& item : *given) add(item);
    } else {
      add(*given);
    }
    return ids;
  }

  const ModelFamily& family_;
  ModelConfig config_;
  std::map<std::string, double> numbers_;  // Resolved values by name, for the defaults of others
  std::vector<ConfigIssue> issues_;
};

absl::StatusOr<std::shared_ptr<const ModelFamily>> FamilyOf(const Json& config,
                                                            const std::string& where,
                                                            const ConfigOptions& options) {
  const auto refuse = [&](const std::string& message) {
    if (options.issues) options.issues->push_back({"model_type", message});
    return absl::InvalidArgumentError(absl::StrCat(where, "model_type: ", message));
  };
  const auto type = config.find("model_type");
  const bool has_type = type != config.end() && type->is_string();
  if (!options.family_file.empty()) {
    PosixFileSystem files;
    SHOAL_ASSIGN_OR_RETURN(auto family, LoadFamily(files, options.family_file));
    if (has_type && *type != family->model_type) {
      return refuse(absl::StrCat("got ", ShowJson(*type), ", but ", options.family_file, " is of ",
                                 family->model_type));
    }
    return family;
  }
  if (!has_type)
    return refuse(absl::StrCat("is missing; known: ", absl::StrJoin(KnownFamilies(), ", ")));
  auto family = FindFamily(type->get<std::string>());
  if (!family.ok() && absl::IsNotFound(family.status()))
    return refuse(std::string(family.status().message()));
  return family;
}

absl::StatusOr<ModelConfig> Resolve(Json config, const Json& handwritten,
                                    std::optional<Json> generation, const std::string& where,
                                    const ConfigOptions& options) {
  SHOAL_ASSIGN_OR_RETURN(auto family, FamilyOf(config, where, options));
  config["model_type"] = family->model_type;
  ConfigResolver resolver(std::move(family), std::move(config));
  if (handwritten.is_object()) resolver.RefuseUnknownKeys(handwritten);
  resolver.Resolve();
  if (generation) resolver.ReadGenerationConfig(*std::move(generation));
  return resolver.Finish(where, options);
}

}  // namespace

absl::StatusOr<ModelConfig> ModelConfigFromJson(const Json& config, const ConfigOptions& options) {
  if (!config.is_object())
    return absl::InvalidArgumentError("model.config must be a map of config.json's keys");
  return Resolve(config, config, std::nullopt, "model.config.", options);
}

absl::StatusOr<ModelConfig> LoadModelConfig(FileSystem& files, const std::string& directory,
                                            const Json& overrides, const ConfigOptions& options) {
  SHOAL_ASSIGN_OR_RETURN(const auto adapter, ReadAdapterFolder(files, directory));
  if (adapter) {
    SHOAL_ASSIGN_OR_RETURN(ModelConfig config,
                           LoadModelConfig(files, adapter->base, overrides, options));
    config.lora = adapter->lora;
    if (adapter->score) UseScoreHead(config);
    config.origin = directory;
    return config;
  }
  const std::string path = JoinPath(directory, "config.json");
  SHOAL_ASSIGN_OR_RETURN(Json config, ReadJsonFile(files, path));
  if (!config.is_object())
    return absl::InvalidArgumentError(absl::StrCat(path, " is not a JSON object"));
  if (overrides.is_object()) config.merge_patch(overrides);
  std::optional<Json> generation;
  const std::string generation_path = JoinPath(directory, "generation_config.json");
  SHOAL_ASSIGN_OR_RETURN(const bool has_generation, Exists(files, generation_path));
  if (has_generation) {
    SHOAL_ASSIGN_OR_RETURN(generation, ReadJsonFile(files, generation_path));
  }
  SHOAL_ASSIGN_OR_RETURN(ModelConfig result, Resolve(std::move(config), overrides,
                                                     std::move(generation), path + ": ", options));
  result.origin = directory;
  return result;
}

}  // namespace shoal
