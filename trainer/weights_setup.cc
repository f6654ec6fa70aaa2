#include "trainer/weights_setup.h"

#include <algorithm>
#include <regex>
#include <set>

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

bool SharesExperts(const std::vector<BlockParameters>& blocks) {
  return std::any_of(blocks.begin(), blocks.end(), [](const BlockParameters& block) {
    return std::any_of(block.specs.begin(), block.specs.end(),
                       [](const ParameterSpec& spec) { return spec.expert_ranks > 1; });
  });
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

ShareGroups GroupsOf(const DeviceMesh& mesh, Communicator* tied_stages) {
  return {.shard = mesh.shard(),
          .replicate = &mesh.replicate(),
          .tensor = &mesh.tensor(),
          .tied_stages = tied_stages,
          .expert_shard = mesh.expert() ? &mesh.expert_shard() : nullptr};
}

std::vector<BlockParameters> OfChunks(const std::vector<BlockParameters>& model,
                                      const std::vector<BlockRange>& chunks) {
  std::vector<int> local(model.size(), -1);
  std::vector<BlockParameters> mine;
  for (const BlockRange& chunk : chunks) {
    for (int block = chunk.first; block < chunk.end; ++block) {
      local[block] = static_cast<int>(mine.size());
      mine.push_back(model[block]);
    }
  }
  for (size_t block = 0; block < model.size(); ++block) {
    for (size_t i = 0; i < model[block].ties.size(); ++i) {
      const auto& tie = model[block].ties[i];
      if (!tie) continue;
      const int borrower = local[block], owner = local[tie->block];
      if (borrower >= 0 && owner >= 0) {
        mine[borrower].ties[i]->block = owner;
      } else if (borrower >= 0) {
        ParameterSpec copy = model[tie->block].specs[tie->parameter];
        copy.owned = false;
        copy.tied_across_stages = true;
        mine[borrower].specs[i] = std::move(copy);
        mine[borrower].ties[i].reset();
      } else if (owner >= 0) {
        mine[owner].specs[tie->parameter].tied_across_stages = true;
      }
    }
  }
  return mine;
}

std::vector<int> RanksWithTiedWeights(const std::vector<BlockParameters>& model,
                                      const Schedule& schedule,
                                      const std::vector<BlockRange>& stages) {
  const auto rank_of = [&](int block) {
    for (int stage = 0;; ++stage) {
      if (block < stages[stage].end) return schedule.PlaceOf(stage).rank;
    }
  };
  std::set<int> ranks;
  for (int block = 0; block < static_cast<int>(model.size()); ++block) {
    for (const auto& tie : model[block].ties) {
      if (tie && rank_of(block) != rank_of(tie->block))
        ranks.insert({rank_of(block), rank_of(tie->block)});
    }
  }
  return {ranks.begin(), ranks.end()};
}

absl::StatusOr<std::vector<BlockParameters>> DescribeParameters(
    const Model& model, const std::vector<std::string>& freeze) {
  std::vector<BlockParameters> blocks;
  for (const auto& block : model.blocks) {
    BlockParameters description;
    description.name = model.BlockName(static_cast<int>(blocks.size()));
    description.specs.assign(block->parameters().begin(), block->parameters().end());
    for (const std::optional<TiedTo>& tie : block->ties()) {
      description.ties.push_back(
          tie ? std::optional<BlockParameters::Tie>({tie->block, tie->parameter}) : std::nullopt);
    }
    blocks.push_back(std::move(description));
  }
  // An expert of another rank matches too.
  if (!freeze.empty() && SharesExperts(blocks)) {
    SHOAL_ASSIGN_OR_RETURN(const Model all_experts, BuildModel(model.config));
    SHOAL_RETURN_IF_ERROR(DescribeParameters(all_experts, freeze).status());
  }
  for (const std::string& pattern : freeze) {
    const absl::Status matched = Freeze(pattern, blocks);
    if (!SharesExperts(blocks)) SHOAL_RETURN_IF_ERROR(matched);
  }
  return blocks;
}

void InitializeWeights(uint64_t seed, ShardedOptimizer& optimizer, ShardedParameters& parameters) {
  OffloadHold hold;
  for (auto& piece : OwnedWeights(optimizer)) {
    hold.Only(piece.data, OffloadAccess::kUpdate);
    InitializeSlice(*piece.spec, seed, piece.begin, piece.data);
  }
  hold.Clear();
  parameters.SyncFromMaster();
  optimizer.StartEma();
}

absl::Status ReadWeights(const WeightReader& reader, uint64_t seed, ShardedOptimizer& optimizer,
                         ShardedParameters& parameters) {
  OffloadHold hold;
  for (auto& piece : OwnedWeights(optimizer)) {
    hold.Only(piece.data, OffloadAccess::kUpdate);
    if (!reader.Holds(*piece.spec)) {
      InitializeSlice(*piece.spec, seed, piece.begin, piece.data);
      continue;
    }
    SHOAL_RETURN_IF_ERROR(reader.ReadInMemoryOrder(*piece.spec, piece.begin, piece.data));
  }
  hold.Clear();
  parameters.SyncFromMaster();
  optimizer.StartEma();
  return absl::OkStatus();
}

}  // namespace shoal
