#include "trainer/update_rules.h"

#include <algorithm>
#include <regex>
#include <set>

#include "absl/strings/str_cat.h"
#include "core/nearest_name.h"
#include "core/status.h"
#include "optim/adafactor.h"
#include "optim/adamw.h"
#include "optim/adamw_8bit.h"
#include "optim/lion.h"
#include "optim/muon.h"
#include "optim/sgd.h"

namespace shoal {
namespace {

bool IsTakenWhole(const OptimizerSection& optimizer, const ParameterSpec& spec, bool in_layer) {
  const bool matrix = spec.shape.size() == 2;
  switch (optimizer.name()) {
    case OptimizerSection::adafactor:
      return true;
    case OptimizerSection::muon:
      return matrix && in_layer;
    case OptimizerSection::adamw_8bit:
      return matrix;
    default:
      return false;
  }
}

std::string NoWeight(const std::string& pattern, const std::vector<BlockParameters>& blocks) {
  std::vector<std::string> names;
  for (const BlockParameters& block : blocks) {
    for (const ParameterSpec& spec : block.specs) {
      if (spec.has_gradient()) names.push_back(spec.name);
    }
  }
  const std::string text = absl::StrCat("\"", pattern, "\" matches no weight that is trained");
  const std::string nearest = NearestName(pattern, names);
  if (!nearest.empty()) return absl::StrCat(text, ", did you mean \"", nearest, "\"?");
  if (names.empty()) return text;
  return absl::StrCat(text, "; the first and the last are \"", names.front(), "\" and \"",
                      names.back(), "\"");
}

}  // namespace

std::unique_ptr<UpdateRule> UpdateRuleOf(const OptimizerSection& optimizer) {
  switch (optimizer.name()) {
    case OptimizerSection::sgd:
      return std::make_unique<Sgd>(Sgd::Options{.momentum = optimizer.momentum(),
                                                .weight_decay = optimizer.weight_decay(),
                                                .nesterov = optimizer.nesterov()});
    case OptimizerSection::lion:
      return std::make_unique<Lion>(Lion::Options{.beta1 = optimizer.lion_beta1(),
                                                  .beta2 = optimizer.lion_beta2(),
                                                  .weight_decay = optimizer.weight_decay()});
    default:
      return std::make_unique<AdamW>(AdamW::Options{.beta1 = optimizer.adam_beta1(),
                                                    .beta2 = optimizer.adam_beta2(),
                                                    .epsilon = optimizer.adam_epsilon(),
                                                    .weight_decay = optimizer.weight_decay()});
  }
}

std::shared_ptr<const WholeRule> WholeRuleOf(const OptimizerSection& optimizer) {
  switch (optimizer.name()) {
    case OptimizerSection::adafactor:
      return std::make_shared<Adafactor>(
          Adafactor::Options{.decay_exponent = optimizer.adafactor_decay_exponent(),
                             .clip_threshold = optimizer.adafactor_clip_threshold(),
                             .scale_parameter = optimizer.adafactor_scale_parameter(),
                             .weight_decay = optimizer.weight_decay()});
    case OptimizerSection::muon:
      return std::make_shared<Muon>(Muon::Options{
          .momentum = optimizer.muon_momentum(),
          .nesterov = optimizer.muon_nesterov(),
          .iterations = optimizer.muon_iterations(),
          .scale = optimizer.muon_scale() == OptimizerSection::original ? Muon::Scale::kOriginal
                                                                        : Muon::Scale::kMatchAdamW,
          .weight_decay = optimizer.weight_decay()});
    case OptimizerSection::adamw_8bit:
      return std::make_shared<AdamW8Bit>(
          AdamW8Bit::Options{.beta1 = optimizer.adam_beta1(),
                             .beta2 = optimizer.adam_beta2(),
                             .epsilon = optimizer.adam_epsilon(),
                             .weight_decay = optimizer.weight_decay()});
    default:
      return nullptr;
  }
}

ShardedOptimizer::Options OptimizerOptionsOf(const OptimizerSection& optimizer) {
  ShardedOptimizer::Options options{.decay_all = optimizer.decay_all(),
                                    .whole_rule = WholeRuleOf(optimizer)};
  if (optimizer.has_ema()) options.ema_decay = optimizer.ema().decay();
  return options;
}

void MarkWholeUpdates(const OptimizerSection& optimizer, std::vector<BlockParameters>& blocks) {
  for (size_t block = 0; block < blocks.size(); ++block) {
    const bool in_layer = block > 0 && block + 1 < blocks.size();
    for (ParameterSpec& spec : blocks[block].specs)
      spec.whole_update = spec.has_gradient() && IsTakenWhole(optimizer, spec, in_layer);
  }
}

absl::Status ApplyGroups(const LoadedRecipe& recipe, std::vector<BlockParameters>& blocks) {
  const auto& groups = recipe.proto.optimizer().groups();
  std::set<const ParameterSpec*> taken;
  for (int g = 0; g < groups.size(); ++g) {
    const OptimizerGroup& group = groups[g];
    const std::string key = absl::StrCat("optimizer.groups.", g, ".pattern");
    std::regex regex;
    try {
      regex = std::regex(group.pattern(), std::regex::ECMAScript | std::regex::optimize);
    } catch (const std::regex_error& error) {
      return recipe.ErrorAt(key, absl::StrCat("not a regular expression: \"", group.pattern(),
                                              "\" (", error.what(), ")"));
    }
    bool matches = false, applies = false;
    for (BlockParameters& block : blocks) {
      for (size_t i = 0; i < block.specs.size(); ++i) {
        ParameterSpec& spec = block.specs[i];
        if (block.ties[i] || !spec.has_gradient() || !std::regex_search(spec.name, regex)) continue;
        matches = true;
        if (!taken.insert(&spec).second) continue;
        applies = true;
        spec.learning_rate_multiplier = group.learning_rate_multiplier();
        if (group.has_weight_decay()) spec.weight_decay = group.weight_decay();
      }
    }
    if (!matches) return recipe.ErrorAt(key, NoWeight(group.pattern(), blocks));
    if (!applies) {
      return recipe.ErrorAt(key, absl::StrCat("\"", group.pattern(),
                                              "\" matches only weights of the groups before it, "
                                              "of which the first counts: put it before them"));
    }
  }
  return absl::OkStatus();
}

}  // namespace shoal
