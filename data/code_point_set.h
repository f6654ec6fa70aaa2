// Sets of Unicode characters, as regular expression classes need them.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "data/unicode.h"

namespace shoal {

class CodePointSet {
 public:
  struct Range {
    char32_t first, last;  // Both inside
  };

  static CodePointSet Of(absl::FunctionRef<bool(CharacterProperties)> contains);
  // \p{name}: a general category ("L", "Lu"). InvalidArgument for other names.
  static absl::StatusOr<CodePointSet> OfCategory(absl::string_view name);

  void Add(char32_t first, char32_t last) { ranges_.push_back({first, last}); }
  void Add(const CodePointSet& other);
  CodePointSet Complement() const;
  CodePointSet Intersection(const CodePointSet& other) const;

  bool empty() const { return ranges_.empty(); }
  // Inside PCRE2's brackets, without them: "\x{41}-\x{5a}\x{61}".
  std::string ToPcre2() const;

 private:
  std::vector<Range> Sorted() const;  // Disjoint, ascending

  std::vector<Range> ranges_;
};

}  // namespace shoal
