#include "models/name_pattern.h"

#include <algorithm>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/str_split.h"

namespace shoal {
namespace {

constexpr size_t kMaxNames = 64;

}  // namespace

absl::StatusOr<std::vector<std::string>> ExpandBraces(const std::string& pattern) {
  std::vector<std::string> names = {""};
  size_t place = 0;
  while (place < pattern.size()) {
    const size_t open = pattern.find('{', place);
    for (std::string& name : names) name += pattern.substr(place, open - place);
    if (open == std::string::npos) break;
    const size_t close = pattern.find('}', open);
    if (close == std::string::npos)
      return absl::InvalidArgumentError(absl::StrCat("a { of ", pattern, " is not closed"));
    const std::string inside = pattern.substr(open + 1, close - open - 1);
    std::vector<std::string> words = absl::StrSplit(inside, ',');
    if (inside == "i") words = {kLayerPlaceholder};
    if (inside == "e") words = {kExpertPlaceholder};
    if (names.size() * words.size() > kMaxNames) {
      return absl::InvalidArgumentError(
          absl::StrCat(pattern, " stands for more than ", kMaxNames, " names"));
    }
    std::vector<std::string> longer;
    for (const std::string& name : names) {
      for (const std::string& word : words) longer.push_back(name + word);
    }
    names = std::move(longer);
    place = close + 1;
  }
  return names;
}

std::string FillLayer(const std::string& name, int64_t layer) {
  return absl::StrReplaceAll(name, {{kLayerPlaceholder, absl::StrCat(layer)}});
}

std::string FillExpert(const std::string& name, int64_t expert) {
  return absl::StrReplaceAll(name, {{kExpertPlaceholder, absl::StrCat(expert)}});
}

bool MatchesLayerPattern(const std::string& pattern, const std::string& name) {
  const size_t hole = pattern.find(kLayerPlaceholder);
  if (hole == std::string::npos) return pattern == name;
  const absl::string_view head(pattern.data(), hole);
  const absl::string_view tail = absl::string_view(pattern).substr(hole + 3);
  if (name.size() <= head.size() + tail.size() || !absl::StartsWith(name, head) ||
      !absl::EndsWith(name, tail))
    return false;
  const absl::string_view number(name.data() + head.size(),
                                 name.size() - head.size() - tail.size());
  return std::all_of(number.begin(), number.end(), absl::ascii_isdigit);
}

}  // namespace shoal
