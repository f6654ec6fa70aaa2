// A hardware description as YAML (hardware.h shows one): every key known, every value a number in
// range, all errors at once.
#include <functional>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "core/nearest_name.h"
#include "core/recipe_yaml.h"
#include "core/status.h"
#include "trainer/plan/hardware.h"

namespace shoal {
namespace {

class HardwareReader {
 public:
  HardwareReader(const std::string& text, const std::string& name) {
    file_.source = std::make_shared<const std::string>(name);
    whole_ = ParseYaml(text, file_, root_, errors_);
  }

  absl::StatusOr<Hardware> Read() {
    Hardware hardware{.name = *file_.source, .source = *file_.source};
    if (whole_ && !root_.IsMap())
      Error(file_, "", "expected a map of keys, such as ranks_per_host");
    if (whole_ && root_.IsMap()) {
      ReadKeys(
          root_, "",
          {{"name", false, [&](const auto& at) { Text(at, hardware.name); }},
           {"ranks_per_host", true, [&](const auto& at) { Count(at, hardware); }},
           {"memory_bytes", true, Positive(hardware.memory_bytes)},
           {"memory_bytes_per_second", true, Positive(hardware.memory_bytes_per_second)},
           {"matrix_flops_per_second", true,
            [&](const auto& at) { ReadFlops(at, hardware.matrix_flops); }},
           {"matrix_efficiency", false, [&](const auto& at) { Share(at, hardware); }},
           {"inside_host", true, [&](const auto& at) { ReadLink(at, hardware.inside_host); }},
           {"between_hosts", true, [&](const auto& at) { ReadLink(at, hardware.between_hosts); }}});
    }
    SHOAL_RETURN_IF_ERROR(RecipeErrorsToStatus(std::move(errors_)));
    return hardware;
  }

 private:
  struct Value {
    std::string path;  // "inside_host.bytes_per_second"
    const YamlNode& node;
  };
  struct Key {
    std::string name;
    bool required;
    std::function<void(const Value&)> read;
  };

  void Error(const RecipeOrigin& origin, const std::string& key, std::string message) {
    errors_.push_back({.origin = origin, .key = key, .message = std::move(message)});
  }

  void ReadKeys(const YamlNode& map, const std::string& prefix, const std::vector<Key>& keys) {
    std::vector<std::string> names;
    for (const Key& key : keys) names.push_back(key.name);
    for (const YamlNode::Entry& entry : map.entries) {
      if (std::find(names.begin(), names.end(), entry.key) != names.end()) continue;
      const std::string nearest = NearestName(entry.key, names);
      Error(entry.origin, prefix + entry.key,
            absl::StrCat("unknown key, ",
                         nearest.empty() ? absl::StrCat("expected ", absl::StrJoin(names, ", "))
                                         : absl::StrCat("did you mean ", nearest, "?")));
    }
    for (const Key& key : keys) {
      const YamlNode::Entry* entry = map.Find(key.name);
      if (entry != nullptr && !entry->value.IsNull())
        key.read({.path = prefix + key.name, .node = entry->value});
      else if (key.required)
        Error(entry != nullptr ? entry->origin : map.origin, prefix + key.name, "missing");
    }
  }

  // The number, or nothing with an error.
  bool Number(const Value& at, double* number) {
    if (at.node.IsScalar() && !at.node.quoted && absl::SimpleAtod(at.node.text, number) &&
        std::isfinite(*number) && *number > 0)
      return true;
    Error(at.node.origin, at.path,
          absl::StrCat("got ", at.node.IsScalar() ? at.node.text : "a list or map",
                       ", expected a number above 0"));
    return false;
  }

  std::function<void(const Value&)> Positive(double& target) {
    return [this, &target](const Value& at) {
      if (double number = 0; Number(at, &number)) target = number;
    };
  }

  void Text(const Value& at, std::string& target) {
    if (at.node.IsScalar() && !at.node.text.empty())
      target = at.node.text;
    else
      Error(at.node.origin, at.path, "expected a text");
  }

  void Count(const Value& at, Hardware& hardware) {
    double number = 0;
    if (!Number(at, &number)) return;
    if (number != std::floor(number) || number > 1e6)
      return Error(at.node.origin, at.path,
                   absl::StrCat("got ", at.node.text, ", expected a whole number up to 1000000"));
    hardware.ranks_per_host = static_cast<int>(number);
  }

  void Share(const Value& at, Hardware& hardware) {
    double number = 0;
    if (!Number(at, &number)) return;
    if (number > 1)
      return Error(at.node.origin, at.path,
                   absl::StrCat("got ", at.node.text, ", expected a share up to 1"));
    hardware.matrix_efficiency = number;
  }

  void ReadMap(const Value& at, const std::vector<Key>& keys) {
    if (!at.node.IsMap()) {
      std::vector<std::string> names;
      for (const Key& key : keys) names.push_back(absl::StrCat(key.name, ": 1e12"));
      return Error(at.node.origin, at.path,
                   absl::StrCat("expected a map such as {", absl::StrJoin(names, ", "), "}"));
    }
    ReadKeys(at.node, absl::StrCat(at.path, "."), keys);
  }

  void ReadFlops(const Value& at, Hardware::MatrixFlops& flops) {
    ReadMap(at, {{"float32", false, Positive(flops.float32)},
                 {"bfloat16", false, Positive(flops.bfloat16)},
                 {"float64", false, Positive(flops.float64)}});
  }

  void ReadLink(const Value& at, Hardware::Link& link) {
    ReadMap(at, {{"bytes_per_second", true, Positive(link.bytes_per_second)},
                 {"latency_seconds", true, Positive(link.latency_seconds)}});
  }

  RecipeOrigin file_;
  YamlNode root_;
  bool whole_;
  std::vector<RecipeError> errors_;
};

}  // namespace

absl::StatusOr<Hardware> ParseHardware(const std::string& text, const std::string& name) {
  return HardwareReader(text, name).Read();
}

}  // namespace shoal
