#include "models/hf_config.h"

#include <algorithm>

#include "absl/strings/ascii.h"
#include "absl/strings/str_join.h"
#include "absl/strings/strip.h"

#include "core/dtype.h"
#include "models/family.h"

namespace shoal {
namespace {

// Two spaces, as transformers writes.
std::string Pretty(const Json& json) {
  return json.dump(2, ' ', false, Json::error_handler_t::replace) + "\n";
}

void SetIfAbsent(Json& json, const std::string& key, Json value) {
  if (!json.contains(key)) json[key] = std::move(value);
}

const char* ActivationName(Activation activation) {
  switch (activation) {
    case Activation::kSilu:
      return "silu";
    case Activation::kGeluTanh:
      return "gelu_new";
    case Activation::kGeluErf:
      return "gelu";
    case Activation::kRelu:
      return "relu";
  }
  return "";
}

Json ValueOf(const ModelConfig& c, const std::string& name) {
  const std::map<std::string, Json> values = {
      {"vocab_size", c.vocab_size},
      {"hidden_size", c.hidden_size},
      {"intermediate_size", c.intermediate_size},
      {"num_layers", c.num_layers},
      {"num_heads", c.num_heads},
      {"num_key_value_heads", c.num_key_value_heads},
      {"head_dim", c.head_dim},
      {"max_positions", c.max_positions},
      {"activation", ActivationName(c.activation)},
      {"norm_epsilon", c.norm_epsilon},
      {"initializer_range", c.initializer_range},
      {"observation_size", c.observation_size},
      {"image_size", c.image_size},
      {"image_channels", c.image_channels},
      {"max_pixel", c.max_pixel},
      {"num_experts", c.num_experts},
      {"experts_per_token", c.experts_per_token},
      {"router_balance_loss", c.router_balance_loss},
      {"expert_intermediate_size", c.expert_intermediate_size},
      {"num_shared_experts", c.num_shared_experts},
      {"num_dense_layers", c.num_dense_layers},
      {"num_expert_groups", c.num_expert_groups},
      {"expert_groups_per_token", c.expert_groups_per_token},
      {"normalize_expert_weights", c.normalize_expert_weights},
      {"expert_weight_scale", c.expert_weight_scale},
      {"attention_bias", c.attention_bias},
      {"mlp_bias", c.mlp_bias},
      {"tie_word_embeddings", c.tie_word_embeddings},
      {"scale_attention", c.scale_attention},
      {"scale_attention_by_layer", c.scale_attention_by_layer},
  };
  return values.at(name);
}

// transformers 5 reads rope_parameters; 4 reads rope_theta and, unless the type is default,
// rope_scaling.
void WriteRope(const ModelFamily::RopeKeys& keys, const ModelConfig& config, Json& json) {
  Json parameters = Json::object();
  for (const std::string& key : {keys.parameters, keys.scaling}) {
    if (json.contains(key) && json[key].is_object() && !json[key].empty()) parameters = json[key];
  }
  parameters["rope_theta"] = config.rope.theta;
  if (parameters.contains("type")) {
    SetIfAbsent(parameters, "rope_type", parameters["type"]);
    parameters.erase("type");
  }
  SetIfAbsent(parameters, "rope_type", "default");
  const bool scaled = parameters["rope_type"] != "default";
  json[keys.theta] = config.rope.theta;
  json[keys.scaling] = scaled ? parameters : Json(nullptr);
  json[keys.parameters] = std::move(parameters);
}

// A double-quoted YAML scalar: JSON's strings are among them.
std::string Quoted(const std::string& text) {
  return Json(text).dump(-1, ' ', true, Json::error_handler_t::replace);
}

bool IsHubLicense(const std::string& license) {
  static const auto& known = *new std::vector<std::string>{
      "apache-2.0",   "mit",          "gpl-2.0",      "gpl-3.0",  "lgpl-3.0",
      "agpl-3.0",     "bsd-2-clause", "bsd-3-clause", "cc0-1.0",  "cc-by-4.0",
      "cc-by-sa-3.0", "cc-by-sa-4.0", "cc-by-nc-4.0", "gfdl",     "mpl-2.0",
      "unlicense",    "openrail",     "artistic-2.0", "wtfpl",    "zlib",
      "odc-by",       "llama2",       "llama3",       "llama3.1", "llama3.2"};
  return std::find(known.begin(), known.end(), license) != known.end();
}

std::string ArchitectureName(const ModelConfig& config) {
  const std::string& name = config.family->architecture;
  if (config.head == HeadKind::kLanguageModel) return name;
  return absl::StrCat(absl::StripSuffix(absl::StripSuffix(name, "ForCausalLM"), "LMHeadModel"),
                      "ForSequenceClassification");
}

}  // namespace

void UseScoreHead(ModelConfig& config) {
  config.head = HeadKind::kScore;
  config.json["architectures"] = {ArchitectureName(config)};
  config.json["num_labels"] = 1;
  config.json["id2label"] = {{"0", "LABEL_0"}};
  config.json["label2id"] = {{"LABEL_0", 0}};
}

std::string HuggingFaceConfig(const ModelConfig& config, at::ScalarType dtype) {
  Json json = config.json;
  const ModelFamily& family = *config.family;
  for (const char* key : {"torch_dtype", "_name_or_path", "auto_map"}) json.erase(key);
  json["architectures"] = {ArchitectureName(config)};
  json["model_type"] = family.model_type;
  json["dtype"] = DtypeName(dtype);
  for (const ModelFamily::Value& value : family.values) {
    if (!value.key.empty()) SetIfAbsent(json, value.key, ValueOf(config, value.name));
  }
  for (const auto& [place, rate] : family.dropout) SetIfAbsent(json, rate.key, rate.fallback);
  if (family.rope) WriteRope(*family.rope, config, json);
  // Left out, transformers would fill in what the family's first model has.
  for (const char* key : {"bos_token_id", "eos_token_id", "pad_token_id"})
    SetIfAbsent(json, key, nullptr);
  for (const auto& [key, text] : family.only) {
    if (text == "null") SetIfAbsent(json, key, nullptr);
  }
  return Pretty(json);
}

std::string HuggingFaceGenerationConfig(const ModelConfig& config) {
  if (config.generation_json) return Pretty(*config.generation_json);
  Json json = Json::object();
  json["_from_model_config"] = true;
  if (config.bos_token_id) json["bos_token_id"] = *config.bos_token_id;
  if (config.eos_token_ids.size() == 1) json["eos_token_id"] = config.eos_token_ids[0];
  if (config.eos_token_ids.size() > 1) json["eos_token_id"] = config.eos_token_ids;
  if (config.pad_token_id) json["pad_token_id"] = *config.pad_token_id;
  return Pretty(json);
}

std::string HuggingFaceModelCard(const Model& model, const ModelCard& card) {
  const bool scores = model.config.head == HeadKind::kScore;
  std::string text = absl::StrCat("---\nlibrary_name: transformers\npipeline_tag: ",
                                  scores ? "text-classification" : "text-generation", "\n");
  if (!card.language.empty()) absl::StrAppend(&text, "language: ", Quoted(card.language), "\n");
  if (!card.license.empty()) {
    const std::string license = absl::AsciiStrToLower(card.license);
    if (IsHubLicense(license)) {
      absl::StrAppend(&text, "license: ", license, "\n");
    } else {
      absl::StrAppend(&text, "license: other\nlicense_name: ", Quoted(card.license), "\n");
    }
  }
  if (!card.base_model.empty())
    absl::StrAppend(&text, "base_model: ", Quoted(card.base_model), "\n");
  if (!card.datasets.empty()) text += "datasets:\n";
  for (const std::string& dataset : card.datasets)
    absl::StrAppend(&text, "- ", Quoted(dataset), "\n");
  absl::StrAppend(&text, "tags:\n- shoal\n- ", model.config.family->model_type, "\n---\n\n");

  const ModelConfig& c = model.config;
  absl::StrAppend(&text, "# ", card.name.empty() ? ArchitectureName(c) : card.name, "\n\n");
  if (!card.body.empty())
    absl::StrAppend(&text, card.body, card.body.back() == '\n' ? "\n" : "\n\n");
  absl::StrAppend(&text, "| | |\n|---|---|\n| Architecture | ", ArchitectureName(c),
                  " |\n| Parameters | ", model.num_parameters(), " |\n| Layers | ", c.num_layers,
                  " |\n| Hidden size | ", c.hidden_size,
                  " |\n| Heads (queries / keys and values) | ", c.num_heads, " / ",
                  c.num_key_value_heads, " |\n| Vocabulary | ", c.vocab_size, " |\n| Context | ",
                  c.max_positions, " tokens |\n");
  const std::string opener = scores ? "AutoModelForSequenceClassification" : "AutoModelForCausalLM";
  absl::StrAppend(&text, "\n```python\nfrom transformers import ", opener, "\n\nmodel = ", opener,
                  ".from_pretrained(\".\")\n```\n");
  return text;
}

}  // namespace shoal
