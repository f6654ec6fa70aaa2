#include "core/recipe_aliases.h"

#include <algorithm>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "core/nearest_name.h"
#include "core/recipe_schema.h"

namespace shoal {
namespace {

struct Alias {
  const char* name;
  const char* key;
};

constexpr Alias kAliases[] = {
    {"output_dir", "run.output_dir"},
    {"lora_r", "model.lora.rank"},
    {"lora_alpha", "model.lora.alpha"},
    {"lora_target_modules", "model.lora.target_modules"},
    {"run_name", "run.name"},
    {"seed", "run.seed"},
    {"model_name_or_path", "model.name_or_path"},
    {"torch_dtype", "model.dtype"},
    {"bf16", "model.dtype"},
    {"tokenizer_name", "tokenizer.name_or_path"},
    {"sequence_len", "data.seq_length"},
    {"cutoff_len", "data.seq_length"},
    {"max_seq_len", "data.seq_length"},
    {"max_seq_length", "data.seq_length"},
    {"sample_packing", "data.packing"},
    {"packing", "data.packing"},
    {"max_steps", "training.max_steps"},
    {"num_train_epochs", "training.num_train_epochs"},
    {"num_epochs", "training.num_train_epochs"},
    {"epochs", "training.num_train_epochs"},
    {"per_device_train_batch_size", "training.per_device_train_batch_size"},
    {"micro_batch_size", "training.per_device_train_batch_size"},
    {"train_micro_batch_size_per_gpu", "training.per_device_train_batch_size"},
    {"gradient_accumulation_steps", "training.gradient_accumulation_steps"},
    {"train_batch_size", "training.global_batch_size"},
    {"max_grad_norm", "training.max_grad_norm"},
    {"gradient_clipping", "training.max_grad_norm"},
    {"clip_grad", "training.max_grad_norm"},
    {"optim", "optimizer.name"},
    {"learning_rate", "optimizer.learning_rate"},
    {"lr", "optimizer.learning_rate"},
    {"weight_decay", "optimizer.weight_decay"},
    {"adam_beta1", "optimizer.adam_beta1"},
    {"adam_beta2", "optimizer.adam_beta2"},
    {"adam_epsilon", "optimizer.adam_epsilon"},
    {"lr_scheduler_type", "scheduler.type"},
    {"warmup_steps", "scheduler.warmup_steps"},
    {"warmup_ratio", "scheduler.warmup_steps"},
    {"dp_shard_size", "parallelism.data_parallel_shard"},
    {"data_parallel_shard_degree", "parallelism.data_parallel_shard"},
    {"dp_replicate_size", "parallelism.data_parallel_replicate"},
    {"data_parallel_replicate_degree", "parallelism.data_parallel_replicate"},
    {"tp", "parallelism.tensor_parallel"},
    {"tp_size", "parallelism.tensor_parallel"},
    {"tensor_parallel_size", "parallelism.tensor_parallel"},
    {"tensor_parallel_degree", "parallelism.tensor_parallel"},
    {"pp", "parallelism.pipeline_parallel"},
    {"pp_size", "parallelism.pipeline_parallel"},
    {"pipeline_parallel_size", "parallelism.pipeline_parallel"},
    {"pipeline_parallel_degree", "parallelism.pipeline_parallel"},
    {"cp", "parallelism.context_parallel"},
    {"cp_size", "parallelism.context_parallel"},
    {"context_parallel_size", "parallelism.context_parallel"},
    {"context_parallel_degree", "parallelism.context_parallel"},
    {"ep", "parallelism.expert_parallel"},
    {"ep_size", "parallelism.expert_parallel"},
    {"expert_parallel_size", "parallelism.expert_parallel"},
    {"expert_parallel_degree", "parallelism.expert_parallel"},
    {"zero_optimization", "zero"},
    {"save_steps", "checkpoint.save_steps"},
    {"save_total_limit", "checkpoint.save_total_limit"},
    {"resume_from_checkpoint", "checkpoint.resume"},
    {"eval_steps", "eval.steps"},
    {"logging_steps", "logging.steps"},
    {"report_to", "logging.report_to"},
};

struct ValueAlias {
  const char* key;
  const char* value;
  const char* canonical;
};

constexpr ValueAlias kValueAliases[] = {
    {"model.dtype", "bf16", "bfloat16"},         {"model.dtype", "fp16", "float16"},
    {"model.dtype", "fp32", "float32"},          {"model.dtype", "fp64", "float64"},
    {"zero.gradient_dtype", "bf16", "bfloat16"}, {"zero.gradient_dtype", "fp32", "float32"},
    {"optimizer.name", "adamw_torch", "adamw"},  {"optimizer.name", "adamw_torch_fused", "adamw"},
};

absl::string_view SectionOf(absl::string_view key) {
  const size_t dot = key.find('.');
  return dot == absl::string_view::npos ? "" : key.substr(0, dot);
}

// The map at `root`'s section `name`, made if it is not there; null if something else stands there.
YamlNode* FindOrMakeSection(YamlNode& root, absl::string_view name, const RecipeOrigin& origin) {
  YamlNode::Entry* entry = root.Find(name);
  if (entry == nullptr) {
    root.entries.push_back({std::string(name), origin, {}});
    entry = &root.entries.back();
  }
  if (entry->value.IsNull()) {
    entry->value.kind = YamlNode::Kind::kMap;
    entry->value.origin = origin;
  }
  return entry->value.IsMap() ? &entry->value : nullptr;
}

// Names whose value does not mean the same under the key.
void ConvertValue(const std::string& name, YamlNode& value, std::vector<RecipeError>& errors) {
  if (!value.IsScalar()) return;
  if (name == "bf16") {
    if (value.text == "true" || value.text == "false") {
      value.text = value.text == "true" ? "bfloat16" : "float32";
    } else {
      errors.push_back(
          {value.origin, name, absl::StrCat("got ", value.text, ", expected true or false")});
      value.refused = true;
    }
  }
  if (name == "warmup_ratio" && !value.text.empty() && value.text != "0" &&
      !absl::StartsWith(value.text, "0.") && !absl::StrContains(value.text, "e-") &&
      value.text[0] != '.') {
    errors.push_back({value.origin, name,
                      absl::StrCat("got ", value.text,
                                   ", expected a share of the run's steps below 1 "
                                   "(scheduler.warmup_steps takes a number of steps)")});
    value.refused = true;
  }
}

class AliasMover {
 public:
  AliasMover(YamlNode& root, std::vector<std::string>& notices, std::vector<RecipeError>& errors)
      : root_(root), notices_(notices), errors_(errors) {}

  void MoveFrom(const std::string& section) {
    YamlNode* map = &root_;
    if (!section.empty()) map = &root_.Find(section)->value;
    std::vector<std::pair<YamlNode::Entry, std::string>> moved;
    for (auto entry = map->entries.begin(); entry != map->entries.end();) {
      const std::string key = CanonicalKey(section, entry->key);
      if (key.empty()) {
        ++entry;
        continue;
      }
      moved.emplace_back(std::move(*entry), key);
      entry = map->entries.erase(entry);
    }
    for (auto& [entry, key] : moved) Place(section, std::move(entry), key);
  }

 private:
  void Place(const std::string& section, YamlNode::Entry entry, const std::string& key) {
    const std::string given = section.empty() ? entry.key : absl::StrCat(section, ".", entry.key);
    notices_.push_back(absl::StrCat(entry.origin.ToString(), ": ", given, " is read as ", key));
    ConvertValue(entry.key, entry.value, errors_);
    const absl::string_view home = SectionOf(key);
    YamlNode* map = home.empty() ? &root_ : FindOrMakeSection(root_, home, entry.origin);
    if (map == nullptr) return;  // The section's own type is the error that the reader reports
    const std::string leaf = home.empty() ? key : key.substr(home.size() + 1);
    if (const YamlNode::Entry* other = map->Find(leaf)) {
      errors_.push_back(
          {entry.origin, given,
           absl::StrCat("means ", key, ", which is also given at ", other->origin.ToString())});
      return;
    }
    map->entries.push_back({leaf, entry.origin, std::move(entry.value)});
  }

  YamlNode& root_;
  std::vector<std::string>& notices_;
  std::vector<RecipeError>& errors_;
};

}  // namespace

std::string CanonicalKey(absl::string_view section, absl::string_view name) {
  const std::string own = section.empty() ? std::string(name) : absl::StrCat(section, ".", name);
  if (FindRecipeField(own) != nullptr) return "";
  for (const Alias& alias : kAliases) {
    if (name != alias.name) continue;
    if (section.empty() || section == "training" || section == SectionOf(alias.key))
      return alias.key;
  }
  return "";
}

std::string NearestAlias(const std::string& name) {
  std::vector<std::string> names;
  for (const Alias& alias : kAliases) names.push_back(alias.name);
  const std::string nearest = NearestName(name, names);
  return nearest.empty() ? "" : CanonicalKey("", nearest);
}

void ApplyAliases(YamlNode& root, std::vector<std::string>& notices,
                  std::vector<RecipeError>& errors) {
  if (!root.IsMap()) return;
  AliasMover mover(root, notices, errors);
  mover.MoveFrom("");
  for (const std::string& section : FieldNames(*Recipe::descriptor())) {
    const YamlNode::Entry* entry = root.Find(section);
    const FieldDescriptor* field = FindRecipeField(section);
    if (entry != nullptr && entry->value.IsMap() && IsSection(*field)) mover.MoveFrom(section);
  }
}

std::string CanonicalPath(const std::string& path) {
  std::vector<std::string> names = absl::StrSplit(path, '.');
  if (const std::string key = CanonicalKey("", names[0]); !key.empty()) {
    names[0] = key;
    return CanonicalPath(absl::StrJoin(names, "."));
  }
  if (names.size() < 2) return path;
  const std::string key = CanonicalKey(names[0], names[1]);
  if (key.empty()) return path;
  names.erase(names.begin());
  names[0] = key;
  return absl::StrJoin(names, ".");
}

std::string CanonicalValue(absl::string_view key, const std::string& value) {
  for (const ValueAlias& alias : kValueAliases) {
    if (key == alias.key && value == alias.value) return alias.canonical;
  }
  return value;
}

}  // namespace shoal
