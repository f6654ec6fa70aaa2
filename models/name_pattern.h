// Names of a family's tables: {a,b} stands for each of its words, {i} for a layer's number, {e} for
// an expert's.
#pragma once

#include <string>
#include <vector>

#include "core/status.h"

namespace shoal {

inline constexpr char kLayerPlaceholder[] = "{i}";
inline constexpr char kExpertPlaceholder[] = "{e}";

// "x.{q,k}.{weight,bias}" -> x.q.weight, x.q.bias, x.k.weight, x.k.bias. {i} and {e} stay. Errors:
// a brace that does not close, more than 64 names.
absl::StatusOr<std::vector<std::string>> ExpandBraces(const std::string& pattern);

// With the layer's number in the place of {i}.
std::string FillLayer(const std::string& name, int64_t layer);
// With the expert's number in the place of {e}.
std::string FillExpert(const std::string& name, int64_t expert);

// Is `name` the pattern with some number in the place of {i}?
bool MatchesLayerPattern(const std::string& pattern, const std::string& name);

}  // namespace shoal
