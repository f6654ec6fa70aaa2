#include "core/nearest_name.h"

#include <algorithm>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_replace.h"

namespace shoal {
namespace {

constexpr size_t kLongestName = 64;  // Nothing longer is a misspelt name of ours

std::string Normalized(absl::string_view name) {
  return absl::StrReplaceAll(absl::AsciiStrToLower(name), {{"-", "_"}});
}

}  // namespace

int EditDistance(absl::string_view a, absl::string_view b) {
  const size_t width = b.size() + 1;
  std::vector<int> before(width), last(width), row(width);  // rows i-2, i-1, i of the table
  for (size_t j = 0; j < width; ++j) last[j] = static_cast<int>(j);
  for (size_t i = 1; i <= a.size(); ++i) {
    row[0] = static_cast<int>(i);
    for (size_t j = 1; j < width; ++j) {
      row[j] = std::min({last[j] + 1, row[j - 1] + 1, last[j - 1] + (a[i - 1] != b[j - 1])});
      if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1]) {
        row[j] = std::min(row[j], before[j - 2] + 1);
      }
    }
    before.swap(last);
    last.swap(row);
  }
  return last[b.size()];
}

std::string NearestName(absl::string_view name, const std::vector<std::string>& candidates) {
  if (name.empty() || name.size() > kLongestName) return "";
  const std::string wanted = Normalized(name);
  std::string nearest;
  int nearest_distance = std::min(static_cast<int>(name.size()) / 3, 4) + 1;
  for (const std::string& candidate : candidates) {
    const int distance = EditDistance(wanted, Normalized(candidate));
    if (distance < nearest_distance) {
      nearest = candidate;
      nearest_distance = distance;
    }
  }
  if (!nearest.empty()) return nearest;
  // "batch_size" for "global_batch_size": the whole of one is a part of the other, if of one alone.
  for (const std::string& candidate : candidates) {
    const bool part = wanted.size() >= 4 &&
                      (absl::StrContains(Normalized(candidate), wanted) ||
                       (candidate.size() >= 4 && absl::StrContains(wanted, Normalized(candidate))));
    if (!part) continue;
    if (!nearest.empty()) return "";
    nearest = candidate;
  }
  return nearest;
}

}  // namespace shoal
