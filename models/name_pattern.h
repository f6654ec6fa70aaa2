// Names of a family's tables: {a,b} stands for each of its words, {i} for a layer's number.
#pragma once

#include <string>
#include <vector>

#include "core/status.h"

namespace shoal {

inline constexpr char kLayerPlaceholder[] = "{i}";

// "x.{q,k}.{weight,bias}" -> x.q.weight, x.q.bias, x.k.weight, x.k.bias. {i} stays. Errors: a brace
// that does not close, more than 64 names.
absl::StatusOr<std::vector<std::string>> ExpandBraces(const std::string& pattern);

// With the layer's number in the place of {i}.
std::string FillLayer(const std::string& name, int64_t layer);

// Is `name` the pattern with some number in the place of {i}?
bool MatchesLayerPattern(const std::string& pattern, const std::string& name);

}  // namespace shoal
