#include "data/code_point_set.h"

#include <algorithm>
#include <iterator>

#include "absl/strings/str_cat.h"
#include "core/status.h"

namespace shoal {
namespace {

constexpr absl::string_view kCategoryNames[] = {
    "Lu", "Ll", "Lt", "Lm", "Lo", "Mn", "Mc", "Me", "Nd", "Nl", "No", "Pc", "Pd", "Ps", "Pe",
    "Pi", "Pf", "Po", "Sm", "Sc", "Sk", "So", "Zs", "Zl", "Zp", "Cc", "Cf", "Co", "Cn"};

}  // namespace

CodePointSet CodePointSet::Of(absl::FunctionRef<bool(CharacterProperties)> contains) {
  CodePointSet set;
  ForEachRun([&](char32_t first, char32_t last, CharacterProperties properties) {
    if (contains(properties)) set.Add(first, last);
  });
  return set;
}

absl::StatusOr<CodePointSet> CodePointSet::OfCategory(absl::string_view name) {
  uint32_t wanted = 0;
  for (size_t i = 0; i < std::size(kCategoryNames); ++i) {
    if (kCategoryNames[i] == name || (name.size() == 1 && kCategoryNames[i][0] == name[0]))
      wanted |= 1u << i;
  }
  if (wanted == 0) {
    return absl::InvalidArgumentError(absl::StrCat(
        "\\p{", name, "} is not supported, only general categories such as \\p{L} and \\p{Lu}"));
  }
  return Of(
      [wanted](CharacterProperties c) { return wanted >> static_cast<int>(c.category()) & 1; });
}

void CodePointSet::Add(const CodePointSet& other) {
  ranges_.insert(ranges_.end(), other.ranges_.begin(), other.ranges_.end());
}

std::vector<CodePointSet::Range> CodePointSet::Sorted() const {
  std::vector<Range> sorted = ranges_, merged;
  std::sort(sorted.begin(), sorted.end(),
            [](const Range& a, const Range& b) { return a.first < b.first; });
  for (const Range& range : sorted) {
    if (!merged.empty() && range.first <= merged.back().last + 1) {
      merged.back().last = std::max(merged.back().last, range.last);
    } else {
      merged.push_back(range);
    }
  }
  return merged;
}

CodePointSet CodePointSet::Complement() const {
  CodePointSet out;
  char32_t next = 0;
  for (const Range& range : Sorted()) {
    if (range.first > next) out.Add(next, range.first - 1);
    next = range.last + 1;
  }
  if (next <= kMaxCodePoint) out.Add(next, kMaxCodePoint);
  return out;
}

CodePointSet CodePointSet::Intersection(const CodePointSet& other) const {
  CodePointSet outside = Complement();
  outside.Add(other.Complement());
  return outside.Complement();
}

std::string CodePointSet::ToPcre2() const {
  std::string out;
  for (const Range& range : Sorted()) {
    absl::StrAppend(&out, "\\x{", absl::Hex(static_cast<uint32_t>(range.first)), "}");
    if (range.last != range.first) {
      absl::StrAppend(&out, "-\\x{", absl::Hex(static_cast<uint32_t>(range.last)), "}");
    }
  }
  return out;
}

}  // namespace shoal
