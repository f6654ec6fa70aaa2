// The tiny models of training jobs, by the names that TrainingJob::model has.
#pragma once

#include <cstdint>
#include <string>

#include "models/json.h"

namespace shoal {

inline constexpr int64_t kTestVocabulary = 31;

// Its config.json.
Json ConfigOf(const std::string& model, int layers, int64_t seq_length);

}  // namespace shoal
