#include "models/family.h"

#include <algorithm>
#include <set>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/str_split.h"

#include "core/nearest_name.h"
#include "core/recipe_yaml.h"
#include "models/family_list.h"
#include "models/name_pattern.h"

namespace shoal {
namespace {

constexpr int64_t kMaxFamilyBytes = 64 << 10;

const std::vector<std::string>& SlotNames() {
  static const auto& names = *new std::vector<std::string>([] {
    std::vector<std::string> slots = {"embedding.tokens",
                                      "embedding.positions",
                                      "embedding.observations.weight",
                                      "embedding.observations.bias",
                                      "head.weight",
                                      "head.bias",
                                      "layer.router.selection_bias"};
    for (const char* module : {"layer.attention_norm",
                               "layer.q",
                               "layer.k",
                               "layer.v",
                               "layer.qkv",
                               "layer.o",
                               "layer.mlp_norm",
                               "layer.gate",
                               "layer.up",
                               "layer.down",
                               "layer.router",
                               "layer.experts.gate",
                               "layer.experts.up",
                               "layer.experts.down",
                               "layer.shared.gate",
                               "layer.shared.up",
                               "layer.shared.down",
                               "layer.q_norm",
                               "layer.k_norm",
                               "head.norm",
                               "layer.convolution",
                               "dense"}) {
      slots.push_back(absl::StrCat(module, ".weight"));
      slots.push_back(absl::StrCat(module, ".bias"));
    }
    return slots;
  }());
  return names;
}

// The tensor-parallel styles of transformers' plans.
const std::vector<std::string>& StyleNames() {
  static const auto& names = *new std::vector<std::string>{
      "colwise",          "rowwise", "packed_colwise", "packed_rowwise", "colwise_gather_output",
      "embedding_rowwise"};
  return names;
}

// Reads one family file; collects every error with its place.
class FamilyParser {
 public:
  FamilyParser(const std::string& text, const std::string& source) {
    family_.source = source;
    ParseYaml(text, {std::make_shared<const std::string>(source), 0, 0}, root_, errors_);
  }

  absl::StatusOr<std::shared_ptr<const ModelFamily>> Parse() {
    if (errors_.empty()) ParseSections();
    if (!errors_.empty()) return RecipeErrorsToStatus(std::move(errors_));
    return std::make_shared<const ModelFamily>(std::move(family_));
  }

 private:
  void ParseSections() {
    if (!root_.IsMap()) return Error(root_.origin, "", "a family is a map of sections");
    CheckKeys(root_, "",
              {"model_type", "architecture", "prefix", "config", "rope", "dropout", "only",
               "ignored", "stack", "weights", "ignored_weights", "lora_targets", "tp"});
    family_.model_type = Text(root_, "", "model_type");
    family_.architecture = Text(root_, "", "architecture");
    if (root_.Find("prefix")) family_.prefix = Text(root_, "", "prefix");
    ParseStack();
    ParseValues();
    ParseRope();
    ParseDropout();
    ParseOnly();
    family_.ignored = TextList("ignored");
    ParseWeights();
    family_.ignored_weights = TextList("ignored_weights");
    ParseTargets();
  }

  void Error(const RecipeOrigin& origin, const std::string& key, const std::string& message) {
    errors_.push_back({origin, key, message});
  }

  void CheckKeys(const YamlNode& map, const std::string& section,
                 const std::vector<std::string>& known) {
    for (const YamlNode::Entry& entry : map.entries)
      CheckName(entry.origin, section, entry.key, known);
  }

  bool CheckName(const RecipeOrigin& origin, const std::string& section, const std::string& name,
                 const std::vector<std::string>& known) {
    if (std::find(known.begin(), known.end(), name) != known.end()) return true;
    const std::string nearest = NearestName(name, known);
    Error(origin, section,
          absl::StrCat("\"", name, "\" is not known; ",
                       nearest.empty() ? absl::StrCat("known: ", absl::StrJoin(known, ", "))
                                       : absl::StrCat("did you mean ", nearest, "?")));
    return false;
  }

  // The section, or an empty map.
  const YamlNode& Section(const std::string& name) {
    static const auto& empty = *new YamlNode{.kind = YamlNode::Kind::kMap};
    const YamlNode::Entry* entry = root_.Find(name);
    if (!entry || entry->value.IsNull()) return empty;
    if (entry->value.IsMap()) return entry->value;
    Error(entry->origin, name, "must be a map");
    return empty;
  }

  std::string Text(const YamlNode& map, const std::string& section, const std::string& key) {
    const YamlNode::Entry* entry = map.Find(key);
    const std::string path = section.empty() ? key : absl::StrCat(section, ".", key);
    if (!entry) {
      Error(map.origin, path, "is missing");
    } else if (!entry->value.IsScalar() || entry->value.text.empty()) {
      Error(entry->origin, path, "must be a word");
    } else {
      return entry->value.text;
    }
    return "";
  }

  std::vector<std::string> TextList(const std::string& name) {
    std::vector<std::string> list;
    const YamlNode::Entry* entry = root_.Find(name);
    if (!entry || entry->value.IsNull()) return list;
    if (!entry->value.IsList()) Error(entry->origin, name, "must be a list");
    for (const YamlNode& item : entry->value.items) {
      if (!item.IsScalar()) Error(item.origin, name, "must be a list of words");
      list.push_back(item.text);
    }
    return list;
  }

  // The index of stack.<key>'s word in `words`.
  int Choice(const std::string& key, const std::vector<std::string>& words) {
    const YamlNode& stack = Section("stack");
    const std::string word = Text(stack, "stack", key);
    if (word.empty()) return 0;
    if (!CheckName(stack.Find(key)->origin, absl::StrCat("stack.", key), word, words)) return 0;
    return static_cast<int>(std::find(words.begin(), words.end(), word) - words.begin());
  }

  void ParseStack() {
    CheckKeys(Section("stack"), "stack",
              {"kind", "positions", "norm", "attention", "qk_norm", "mlp", "router", "linear",
               "residual_init"});
    StackOptions& stack = family_.stack;
    if (Section("stack").Find("kind"))
      stack.kind = static_cast<StackOptions::Kind>(Choice("kind", {"decoder", "image_classifier"}));
    if (stack.kind == StackOptions::Kind::kImageClassifier) {
      stack.positions = StackOptions::Positions::kLearned;
      return;
    }
    stack.positions =
        static_cast<StackOptions::Positions>(Choice("positions", {"rotary", "learned"}));
    stack.norm = static_cast<StackOptions::Norm>(Choice("norm", {"rms", "layer"}));
    stack.attention = static_cast<StackOptions::Attention>(Choice("attention", {"split", "fused"}));
    stack.mlp = static_cast<StackOptions::Mlp>(Choice("mlp", {"gated", "plain", "experts"}));
    stack.linear = static_cast<StackOptions::Linear>(Choice("linear", {"out_in", "in_out"}));
    const bool experts = stack.mlp == StackOptions::Mlp::kExperts;
    if (Section("stack").Find("qk_norm"))
      stack.qk_norm = static_cast<StackOptions::QkNorm>(Choice("qk_norm", {"none", "head"}));
    if (const YamlNode::Entry* router = Section("stack").Find("router")) {
      stack.router =
          static_cast<StackOptions::Router>(Choice("router", {"softmax", "biased_sigmoid"}));
      if (!experts) Error(router->origin, "stack.router", "is of stack.mlp: experts");
    }
    if (experts && stack.linear != StackOptions::Linear::kOutIn)
      Error(Section("stack").origin, "stack.linear", "must be out_in with mlp: experts");
    stack.residual_init =
        static_cast<StackOptions::ResidualInit>(Choice("residual_init", {"plain", "depth_scaled"}));
  }

  void ParseValues() {
    const YamlNode& config = Section("config");
    std::set<std::string> seen;
    for (const YamlNode::Entry& entry : config.entries) {
      const std::string path = absl::StrCat("config.", entry.key);
      CheckName(entry.origin, path, entry.key, ModelValueNames());
      ModelFamily::Value value{.name = entry.key, .key = "", .fallback = ""};
      const YamlNode& node = entry.value;
      if (node.IsScalar()) {
        value.fallback = node.text;
      } else if (node.IsList() && node.items.size() == 2 && node.items[0].IsScalar() &&
                 node.items[1].IsScalar()) {
        value.key = node.items[0].text;
        value.fallback = node.items[1].text;
      } else {
        Error(entry.origin, path, "must be [key of config.json, default], or a value");
        continue;
      }
      CheckOperands(entry.origin, path, value.fallback, seen);
      seen.insert(entry.key);
      family_.values.push_back(std::move(value));
    }
    for (const std::string& name : ModelValueNames()) {
      const bool required = family_.stack.kind == StackOptions::Kind::kDecoder
                                ? IsRequiredModelValue(name)
                                : IsImageClassifierValue(name);
      const bool has_experts = family_.stack.mlp == StackOptions::Mlp::kExperts;
      if ((required || (has_experts && IsExpertValue(name, /*required=*/true))) &&
          !seen.contains(name)) {
        Error(config.origin, absl::StrCat("config.", name), "is missing");
      } else if (!has_experts && IsExpertValue(name, /*required=*/false) && seen.contains(name)) {
        Error(config.origin, absl::StrCat("config.", name), "is of stack.mlp: experts");
      }
    }
  }

  // Operands of "a * b" and "a / b" must be numbers or values that stand before.
  void CheckOperands(const RecipeOrigin& origin, const std::string& path,
                     const std::string& expression, const std::set<std::string>& earlier) {
    const std::vector<std::string> words = absl::StrSplit(expression, ' ');
    if (words.size() == 1) return;
    if (words.size() != 3 || (words[1] != "*" && words[1] != "/")) {
      return Error(origin, path,
                   absl::StrCat("\"", expression, "\" must be a value, \"a * b\" or \"a / b\""));
    }
    for (const std::string& operand : {words[0], words[2]}) {
      double number;
      if (earlier.contains(operand) || absl::SimpleAtod(operand, &number)) continue;
      Error(origin, path,
            absl::StrCat("\"", operand, "\" is no number, and no value that stands above"));
    }
  }

  void ParseRope() {
    const bool rotary = family_.stack.positions == StackOptions::Positions::kRotary;
    const YamlNode::Entry* entry = root_.Find("rope");
    if (!entry && !rotary) return;
    if (!rotary) return Error(entry->origin, "rope", "is for stack.positions: rotary");
    const YamlNode& rope = Section("rope");
    CheckKeys(rope, "rope", {"parameters", "scaling", "theta", "default_theta"});
    ModelFamily::RopeKeys keys{.parameters = Text(rope, "rope", "parameters"),
                               .scaling = Text(rope, "rope", "scaling"),
                               .theta = Text(rope, "rope", "theta")};
    const std::string theta = Text(rope, "rope", "default_theta");
    if (!absl::SimpleAtod(theta, &keys.default_theta) || !(keys.default_theta > 1)) {
      Error(rope.origin, "rope.default_theta", "must be a number above 1");
    }
    family_.rope = std::move(keys);
  }

  void ParseDropout() {
    for (const YamlNode::Entry& entry : Section("dropout").entries) {
      const std::string path = absl::StrCat("dropout.", entry.key);
      CheckName(entry.origin, path, entry.key, {"embedding", "attention", "residual"});
      const YamlNode& node = entry.value;
      double rate = 0;
      if (!node.IsList() || node.items.size() != 2 || !node.items[0].IsScalar() ||
          !node.items[1].IsScalar() || !absl::SimpleAtod(node.items[1].text, &rate) ||
          !(rate >= 0 && rate < 1)) {
        Error(entry.origin, path, "must be [key of config.json, default rate in [0, 1)]");
        continue;
      }
      family_.dropout[entry.key] = {.key = node.items[0].text, .fallback = rate};
    }
  }

  void ParseOnly() {
    for (const YamlNode::Entry& entry : Section("only").entries) {
      const bool list = entry.value.IsList() && entry.value.items.size() == 1;
      const YamlNode& value = list ? entry.value.items[0] : entry.value;
      const std::string text = value.IsNull() ? "null" : value.text;
      if (!value.IsNull() && !value.IsScalar())
        Error(entry.origin, absl::StrCat("only.", entry.key), "must be one value");
      const bool is_word = text != "null" && text != "true" && text != "false";
      double number;
      const std::string json =
          is_word && !absl::SimpleAtod(text, &number) ? absl::StrCat("\"", text, "\"") : text;
      family_.only[entry.key] = list ? absl::StrCat("[", json, "]") : json;
    }
  }

  void ParseWeights() {
    const YamlNode& weights = Section("weights");
    if (weights.entries.empty()) Error(root_.origin, "weights", "is missing");
    std::map<std::string, std::string> slot_of;  // By name on disk
    for (const YamlNode::Entry& entry : weights.entries) {
      const std::string path = absl::StrCat("weights.", entry.key);
      if (!entry.value.IsScalar()) {
        Error(entry.origin, path, "must name a slot");
        continue;
      }
      auto names = ExpandBraces(entry.key), slots = ExpandBraces(entry.value.text);
      if (!names.ok() || !slots.ok()) {
        Error(entry.origin, path,
              std::string((names.ok() ? slots.status() : names.status()).message()));
        continue;
      }
      if (names->size() != slots->size()) {
        Error(entry.origin, path,
              absl::StrCat("stands for ", names->size(), " names, but ", slots->size(), " slots"));
        continue;
      }
      for (size_t i = 0; i < names->size(); ++i)
        AddWeight(entry.origin, path, (*names)[i], (*slots)[i], slot_of);
    }
  }

  void AddWeight(const RecipeOrigin& origin, const std::string& path, const std::string& name,
                 const std::string& slot, std::map<std::string, std::string>& slot_of) {
    CheckName(origin, path, slot, SlotNames());
    if (absl::StartsWith(slot, "layer.") != absl::StrContains(name, kLayerPlaceholder)) {
      Error(origin, path,
            absl::StrCat("{i} belongs in names of layer weights, and only there: ", name));
    }
    if (absl::StartsWith(slot, "layer.experts.") != absl::StrContains(name, kExpertPlaceholder)) {
      Error(origin, path,
            absl::StrCat("{e} belongs in names of experts' weights, and only there: ", name));
    }
    if (!family_.weights.emplace(slot, name).second) {
      Error(origin, path,
            absl::StrCat("slot ", slot, " has two names: the table must read both ways"));
    }
    if (!slot_of.emplace(name, slot).second) {
      Error(origin, path, absl::StrCat(name, " has two slots: the table must read both ways"));
    }
  }

  bool NamesAModule(const std::string& module, bool whole) const {
    for (const auto& [slot, name] : family_.weights) {
      if (name == absl::StrCat(module, ".weight")) return true;
      if (!whole && absl::EndsWith(name, absl::StrCat(".", module, ".weight"))) return true;
    }
    return false;
  }

  void ParseTargets() {
    family_.lora_targets = TextList("lora_targets");
    for (const std::string& target : family_.lora_targets) {
      if (!NamesAModule(target, false)) {
        Error(root_.Find("lora_targets")->origin, "lora_targets",
              absl::StrCat("no weight is called ", target));
      }
    }
    for (const YamlNode::Entry& entry : Section("tp").entries) {
      const std::string path = absl::StrCat("tp.", entry.key);
      if (!entry.value.IsScalar()) {
        Error(entry.origin, path, "must be a style");
        continue;
      }
      CheckName(entry.origin, path, entry.value.text, StyleNames());
      auto modules = ExpandBraces(entry.key);
      if (!modules.ok()) {
        Error(entry.origin, path, std::string(modules.status().message()));
        continue;
      }
      for (const std::string& module : *modules) {
        if (!NamesAModule(module, true))
          Error(entry.origin, path, absl::StrCat("no weight is called ", module));
        family_.tensor_parallel[module] = entry.value.text;
      }
    }
  }

  ModelFamily family_;
  YamlNode root_;
  std::vector<RecipeError> errors_;
};

}  // namespace

bool IsImageClassifierValue(const std::string& name) {
  static const auto& names =
      *new std::set<std::string>{"vocab_size",    "hidden_size", "intermediate_size", "num_layers",
                                 "max_positions", "image_size",  "image_channels",    "max_pixel"};
  return names.contains(name);
}

std::string ModelFamily::WeightName(const std::string& slot, int64_t layer, int64_t expert) const {
  const auto found = weights.find(slot);
  return found == weights.end() ? "" : FillExpert(FillLayer(found->second, layer), expert);
}

bool ModelFamily::IgnoresWeight(const std::string& name) const {
  return std::any_of(ignored_weights.begin(), ignored_weights.end(),
                     [&](const std::string& pattern) {
                       return MatchesLayerPattern(pattern, name) ||
                              (absl::StartsWith(pattern, prefix) &&
                               MatchesLayerPattern(pattern.substr(prefix.size()), name));
                     });
}

absl::StatusOr<std::shared_ptr<const ModelFamily>> ParseFamily(const std::string& text,
                                                               const std::string& source) {
  return FamilyParser(text, source).Parse();
}

absl::StatusOr<std::shared_ptr<const ModelFamily>> LoadFamily(FileSystem& files,
                                                              const std::string& path) {
  SHOAL_ASSIGN_OR_RETURN(const std::string text, ReadFile(files, path, kMaxFamilyBytes));
  return ParseFamily(text, path);
}

absl::StatusOr<std::shared_ptr<const ModelFamily>> FindFamily(const std::string& model_type) {
  for (const EmbeddedFamily& family : EmbeddedFamilies()) {
    if (family.model_type == model_type) {
      return ParseFamily(family.text, absl::StrCat("families/", model_type, ".yaml"));
    }
  }
  const std::string nearest = NearestName(model_type, KnownFamilies());
  return absl::NotFoundError(absl::StrCat(
      "\"", model_type, "\" is no known family",
      nearest.empty() ? "" : absl::StrCat(" (did you mean ", nearest, "?)"), "; known: ",
      absl::StrJoin(KnownFamilies(), ", "), "; model.family_file takes a family of your own"));
}

std::vector<std::string> KnownFamilies() {
  std::vector<std::string> names;
  for (const EmbeddedFamily& family : EmbeddedFamilies()) names.push_back(family.model_type);
  return names;
}

}  // namespace shoal
