#include "inference/rollout_engine.h"

#include <algorithm>
#include <cstring>

#include <ATen/ATen.h>

namespace shoal {
namespace {

// A result as words, for its way to the other ranks: reason, tokens, logprobs (0 or as many).
void Pack(const Generation& result, std::vector<int64_t>& words) {
  words.push_back(static_cast<int64_t>(result.finish_reason));
  words.push_back(static_cast<int64_t>(result.tokens.size()));
  words.push_back(static_cast<int64_t>(result.logprobs.size()));
  words.insert(words.end(), result.tokens.begin(), result.tokens.end());
  for (double logprob : result.logprobs) {
    int64_t bits;
    std::memcpy(&bits, &logprob, sizeof(bits));
    words.push_back(bits);
  }
}

const int64_t* Unpack(const int64_t* words, Generation& result) {
  result.finish_reason = static_cast<FinishReason>(words[0]);
  result.tokens.assign(words + 3, words + 3 + words[1]);
  result.logprobs.resize(words[2]);
  if (words[2] > 0)
    std::memcpy(result.logprobs.data(), words + 3 + words[1], words[2] * sizeof(double));
  return words + 3 + words[1] + words[2];
}

}  // namespace

absl::StatusOr<std::unique_ptr<RolloutEngine>> RolloutEngine::Create(
    const GatheredWeights::Source& source) {
  return Create(source, Options());
}

absl::StatusOr<std::unique_ptr<RolloutEngine>> RolloutEngine::Create(
    const GatheredWeights::Source& source, const Options& options) {
  SHOAL_ASSIGN_OR_RETURN(GatheredWeights weights, GatheredWeights::Create(source, options.layout));
  auto engine =
      std::unique_ptr<RolloutEngine>(new RolloutEngine(std::move(weights), source.mesh, options));
  if (engine->generates_together()) {
    engine->tensor_ =
        std::make_unique<TensorParallel>(source.mesh.tensor(), /*sequence_parallel=*/false);
  }
  return engine;
}

bool RolloutEngine::generates_together() const {
  return options_.layout == GatheredWeights::Layout::kTensor && mesh_.tensor().size() > 1;
}

absl::Status RolloutEngine::Refresh() {
  generator_.reset();
  SHOAL_RETURN_IF_ERROR(weights_.Gather());
  Generator::Options options = options_.generator;
  options.tensor = tensor_.get();
  generator_ = std::make_unique<Generator>(weights_.model(), weights_.weights(), options);
  return absl::OkStatus();
}

void RolloutEngine::Release() {
  generator_.reset();
  weights_.Release();
}

absl::StatusOr<std::vector<Generation>> RolloutEngine::Generate(
    std::span<const GenerationRequest> requests) {
  if (!generator_) {
    return absl::FailedPreconditionError(
        "rollouts have no weights: Refresh comes first, and again after Release");
  }
  const GenerationStatistics before = generator_->statistics();
  auto results = generator_->Generate(requests);
  statistics_ += generator_->statistics() - before;
  return results;
}

absl::StatusOr<std::vector<Generation>> RolloutEngine::GenerateOverRanks(
    std::span<const GenerationRequest> requests) {
  Communicator& world = mesh_.control();
  const int group_size = generates_together() ? mesh_.tensor().size() : 1;
  // Neighbouring ranks share a tensor (DeviceMesh), so a group's number is its ranks' quotient.
  const int groups = world.size() / group_size, group = world.rank() / group_size;
  std::vector<GenerationRequest> mine;
  for (size_t i = group; i < requests.size(); i += groups) mine.push_back(requests[i]);
  absl::StatusOr<std::vector<Generation>> results = Generate(mine);

  const std::vector<std::string> errors =
      AllGatherStrings(world, results.ok() ? "" : std::string(results.status().message()));
  for (int rank = 0; rank < world.size(); ++rank) {
    if (errors[rank].empty()) continue;
    const auto code = results.ok() ? absl::StatusCode::kInternal : results.status().code();
    return absl::Status(code, absl::StrCat("rank ", rank, ": ", errors[rank]));
  }
  std::vector<int64_t> words;
  if (world.rank() % group_size == 0) {
    for (const Generation& result : *results) Pack(result, words);
  }
  const int64_t most = MaxOverRanks(world, static_cast<int64_t>(words.size()));
  words.resize(most);
  Tensor all = at::empty({world.size() * most}, at::kLong);
  if (most > 0) world.AllGather(all, at::tensor(words, at::kLong));

  std::vector<Generation> whole(requests.size());
  for (int g = 0; g < groups; ++g) {
    const int64_t* at = all.const_data_ptr<int64_t>() + g * group_size * most;
    for (size_t i = g; i < requests.size(); i += groups) at = Unpack(at, whole[i]);
  }
  return whole;
}

}  // namespace shoal
