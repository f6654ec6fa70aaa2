#include "core/optimizer_validation.h"

#include <vector>

#include "absl/strings/str_cat.h"
#include "core/recipe_schema.h"
#include "core/rlhf_validation.h"

namespace shoal {
namespace {

std::string OptimizerName(const OptimizerSection& optimizer) {
  return EnumYamlName(*OptimizerSection::Name_descriptor()->FindValueByNumber(optimizer.name()));
}

// Has the key its default, given or not?
bool IsDefault(const OptimizerSection& optimizer, const std::string& key) {
  const auto& field = *OptimizerSection::descriptor()->FindFieldByName(key);
  const auto& reflection = *optimizer.GetReflection();
  switch (field.cpp_type()) {
    case google::protobuf::FieldDescriptor::CPPTYPE_DOUBLE:
      return reflection.GetDouble(optimizer, &field) == field.default_value_double();
    case google::protobuf::FieldDescriptor::CPPTYPE_INT32:
      return reflection.GetInt32(optimizer, &field) == field.default_value_int32();
    case google::protobuf::FieldDescriptor::CPPTYPE_BOOL:
      return reflection.GetBool(optimizer, &field) == field.default_value_bool();
    default:
      return reflection.GetEnum(optimizer, &field) == field.default_value_enum();
  }
}

// Keys that only one rule reads.
void ValidateKeys(const LoadedRecipe& recipe, const ReportError& error) {
  const OptimizerSection& optimizer = recipe.proto.optimizer();
  const auto of = [&](OptimizerSection::Name name, const char* rule,
                      const std::vector<const char*>& keys) {
    if (optimizer.name() == name) return;
    for (const char* key : keys) {
      if (!IsDefault(optimizer, key))
        error(absl::StrCat("optimizer.", key),
              absl::StrCat("is of ", rule, ", but optimizer.name is ", OptimizerName(optimizer)));
    }
  };
  of(OptimizerSection::lion, "lion", {"lion_beta1", "lion_beta2"});
  of(OptimizerSection::adafactor, "adafactor",
     {"adafactor_decay_exponent", "adafactor_clip_threshold", "adafactor_scale_parameter"});
  of(OptimizerSection::muon, "muon",
     {"muon_momentum", "muon_nesterov", "muon_iterations", "muon_scale"});
  if (optimizer.name() == OptimizerSection::lion ||
      optimizer.name() == OptimizerSection::adafactor) {
    of(OptimizerSection::adamw, "adamw, muon and adamw_8bit",
       {"adam_beta1", "adam_beta2", "adam_epsilon"});
  }
  if (optimizer.name() == OptimizerSection::adamw) {
    if (optimizer.momentum() != 0) error("optimizer.momentum", "is of sgd, adamw has adam_beta1");
    if (optimizer.nesterov())
      error("optimizer.nesterov", "is of sgd, expected optimizer.name: sgd");
  } else {
    of(OptimizerSection::sgd, "sgd", {"momentum", "nesterov"});
  }
}

void ValidateGroups(const LoadedRecipe& recipe, const ReportError& error) {
  const OptimizerSection& optimizer = recipe.proto.optimizer();
  for (int g = 0; g < optimizer.groups_size(); ++g) {
    const OptimizerGroup& group = optimizer.groups(g);
    const std::string key = absl::StrCat("optimizer.groups.", g);
    if (group.has_pattern() && group.pattern().empty())
      error(absl::StrCat(key, ".pattern"), "empty, expected a part of weights' names");
    if (!group.has_learning_rate_multiplier() && !group.has_weight_decay()) {
      error(key, "changes nothing, expected learning_rate_multiplier or weight_decay");
    }
  }
}

}  // namespace

void ValidateOptimizer(const LoadedRecipe& recipe, const ReportError& error) {
  const OptimizerSection& optimizer = recipe.proto.optimizer();
  if (optimizer.nesterov() && optimizer.momentum() == 0) {
    error("optimizer.nesterov", "needs momentum, expected optimizer.momentum above 0");
  }
  ValidateKeys(recipe, error);
  ValidateGroups(recipe, error);
  const Task task = recipe.proto.task();
  const bool plain = IsPlainTraining(recipe.proto);
  if (!plain && optimizer.groups_size() > 0) {
    error("optimizer.groups",
          absl::StrCat("is of tasks pretrain, sft, dpo and reward, but the task is ",
                       Task_Name(task)));
  }
  if (!plain && optimizer.has_ema()) {
    error("optimizer.ema",
          absl::StrCat("is of tasks pretrain, sft, dpo and reward, but the task is ",
                       Task_Name(task)));
  }
  const int expert_ranks = recipe.proto.parallelism().expert_parallel();
  if (expert_ranks > 1 && optimizer.groups_size() > 0) {
    error("optimizer.groups",
          absl::StrCat("a rank knows the names of its own experts alone, expected "
                       "parallelism.expert_parallel 1, not ",
                       expert_ranks));
  }
  const bool takes_wholes = optimizer.name() == OptimizerSection::adafactor ||
                            optimizer.name() == OptimizerSection::muon ||
                            optimizer.name() == OptimizerSection::adamw_8bit;
  if (task == federated && takes_wholes) {
    error("optimizer.name",
          absl::StrCat("clients keep a state a weight, which ", OptimizerName(optimizer),
                       " does not, expected adamw, lion or sgd"));
  }
}

}  // namespace shoal
