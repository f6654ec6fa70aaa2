// Element types by the names that recipes, config.json and messages use: "bfloat16".
#pragma once

#include <cstdint>
#include <optional>

#include <c10/core/ScalarType.h>

#include "absl/strings/string_view.h"

namespace shoal {

// "float32"; a type that no table of ours names comes as libtorch calls it.
const char* DtypeName(at::ScalarType dtype);
std::optional<at::ScalarType> DtypeFromName(absl::string_view name);

// The type in which numbers of `dtype` are added up, and computed where half precision is too
// coarse: float64 for float64, else float32.
constexpr at::ScalarType SumDtype(at::ScalarType dtype) {
  return dtype == at::ScalarType::Double ? at::ScalarType::Double : at::ScalarType::Float;
}

inline int64_t ElementBytes(at::ScalarType dtype) {
  return static_cast<int64_t>(c10::elementSize(dtype));
}

}  // namespace shoal
