#include "core/log.h"

#include <string>

#include "absl/strings/str_cat.h"

namespace shoal {

void Logger::Info(absl::string_view message) const {
  if (rank_ == 0) Line("", message);
}

void Logger::Warning(absl::string_view message) const {
  Line(num_ranks_ > 1 ? absl::StrCat("rank ", rank_, ": warning: ") : "warning: ", message);
}

void Logger::Error(absl::string_view message) const {
  Line(num_ranks_ > 1 ? absl::StrCat("rank ", rank_, ": error: ") : "error: ", message);
}

void Logger::Line(absl::string_view severity, absl::string_view message) const {
  const std::string line = absl::StrCat(severity, message, "\n");
  std::fwrite(line.data(), 1, line.size(), out_);
  std::fflush(out_);
}

}  // namespace shoal
