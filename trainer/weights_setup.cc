#include "trainer/weights_setup.h"

#include <regex>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "core/status.h"

namespace shoal {
namespace {

absl::StatusOr<std::regex> CompilePattern(const std::string& pattern) {
  try {
    return std::regex(pattern, std::regex::ECMAScript | std::regex::optimize);
  } catch (const std::regex_error& error) {
    return absl::InvalidArgumentError(
        absl::StrCat("not a regular expression: \"", pattern, "\" (", error.what(), ")"));
  }
}

absl::Status Freeze(const std::string& pattern, std::vector<BlockParameters>& blocks) {
  SHOAL_ASSIGN_OR_RETURN(const std::regex regex, CompilePattern(pattern));
  bool matched = false;
  for (BlockParameters& block : blocks) {
    for (ParameterSpec& spec : block.specs) {
      if (!std::regex_search(spec.name, regex)) continue;
      spec.trainable = false;
      matched = true;
    }
  }
  if (matched) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(
      "\"", pattern, "\" matches no weight; the first are \"", blocks.front().specs.front().name,
      "\" and \"", blocks.back().specs.front().name, "\""));
}

// The weights that this rank owns, not the optimizer's states.
std::vector<ShardedOptimizer::NamedPiece> OwnedWeights(const ShardedOptimizer& optimizer) {
  std::vector<ShardedOptimizer::NamedPiece> weights;
  for (auto& piece : optimizer.PiecesToLoad()) {
    if (absl::StartsWith(piece.name, "weights/")) weights.push_back(std::move(piece));
  }
  return weights;
}

}  // namespace

absl::StatusOr<std::vector<BlockParameters>> DescribeParameters(
    const Model& model, const std::vector<std::string>& freeze) {
  std::vector<BlockParameters> blocks;
  for (const auto& block : model.blocks) {
    BlockParameters description;
    description.specs.assign(block->parameters().begin(), block->parameters().end());
    for (const std::optional<TiedTo>& tie : block->ties()) {
      description.ties.push_back(
          tie ? std::optional<BlockParameters::Tie>({tie->block, tie->parameter}) : std::nullopt);
    }
    blocks.push_back(std::move(description));
  }
  for (const std::string& pattern : freeze) SHOAL_RETURN_IF_ERROR(Freeze(pattern, blocks));
  return blocks;
}

void InitializeWeights(uint64_t seed, ShardedOptimizer& optimizer, ShardedParameters& parameters) {
  for (auto& piece : OwnedWeights(optimizer))
    InitializeSlice(*piece.spec, seed, piece.begin, piece.data);
  parameters.SyncFromMaster();
}

absl::Status ReadWeights(const WeightReader& reader, ShardedOptimizer& optimizer,
                         ShardedParameters& parameters) {
  for (auto& piece : OwnedWeights(optimizer)) {
    SHOAL_RETURN_IF_ERROR(reader.Read(*piece.spec, piece.begin, piece.data));
  }
  parameters.SyncFromMaster();
  return absl::OkStatus();
}

}  // namespace shoal
