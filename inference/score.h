// Log-probabilities of given tokens.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "core/status.h"
#include "models/forward.h"

namespace shoal {

struct ScoreOptions {
  int64_t max_batch_tokens = 16384;  // Of one pass; a longer row makes a pass alone
};

// Computed where the weights lie; a device is waited for once a pass.
//
// Of each token after the first of its row, given those before it: row i of n tokens yields n - 1
// numbers. Rows of equal length share passes, without padding. InvalidArgument names the row:
// empty, an id outside of the vocabulary, more tokens than the model has positions for.
absl::StatusOr<std::vector<std::vector<double>>> ScoreTokens(
    const Model& model, std::span<const std::vector<Parameter>> weights,
    std::span<const std::vector<int64_t>> rows, const ScoreOptions& options = {});

}  // namespace shoal
