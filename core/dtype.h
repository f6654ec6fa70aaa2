// Element types by the names that recipes, config.json and messages use: "bfloat16".
#pragma once

#include <optional>

#include <c10/core/ScalarType.h>

#include "absl/strings/string_view.h"

namespace shoal {

// "float32"; a type that no table of ours names comes as libtorch calls it.
const char* DtypeName(at::ScalarType dtype);
std::optional<at::ScalarType> DtypeFromName(absl::string_view name);

}  // namespace shoal
