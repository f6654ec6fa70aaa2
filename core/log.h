// Lines for people, on stderr. A Logger is made once a rank, from the rank it speaks for, and
// passed along.
#pragma once

#include <cstdio>

#include "absl/strings/string_view.h"

namespace shoal {

// Thread safe: a line is one write.
class Logger {
 public:
  // On one rank lines carry no rank number.
  explicit Logger(int rank = 0, int num_ranks = 1, std::FILE* out = stderr)
      : rank_(rank), num_ranks_(num_ranks), out_(out) {}

  // Printed by rank 0 only, as it is.
  void Info(absl::string_view message) const;
  // Printed by any rank: "rank 3: warning: message".
  void Warning(absl::string_view message) const;
  void Error(absl::string_view message) const;

 private:
  void Line(absl::string_view severity, absl::string_view message) const;

  int rank_;
  int num_ranks_;
  std::FILE* out_;
};

}  // namespace shoal
