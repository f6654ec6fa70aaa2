// "Did you mean ...?"
#pragma once

#include <string>
#include <vector>

#include "absl/strings/string_view.h"

namespace shoal {

// Edits between two names: insert, delete, replace, swap two neighbours (optimal string alignment).
int EditDistance(absl::string_view a, absl::string_view b);

// The candidate nearest to `name`, ignoring case and - against _; "" if none is near enough to be
// what was meant (more than a third of the name's letters away, and never more than 4 edits).
std::string NearestName(absl::string_view name, const std::vector<std::string>& candidates);

}  // namespace shoal
