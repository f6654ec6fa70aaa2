// Rotary settings of a config.json, in either dialect of transformers.
#pragma once

#include <vector>

#include "models/family.h"
#include "models/model_config.h"

namespace shoal {

// As transformers does: the section of the old dialect wins over the new one's, the theta inside a
// section over the one beside it. What is wrong is added to `issues`.
RopeOptions ReadRope(const ModelFamily::RopeKeys& keys, Json& config, int64_t max_positions,
                     std::vector<ConfigIssue>& issues);

}  // namespace shoal
