// Errors that come from outside (recipes, files, peers) travel as absl::Status; see
// docs/architecture.md. Broken invariants stop the rank through SHOAL_CHECK. Macros carry our
// prefix since libtorch's headers define bare LOG, CHECK and friends.
#pragma once

#include <sstream>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"

namespace shoal {

// The same code with "context: " before the message; OK stays OK.
inline absl::Status Annotate(const absl::Status& status, absl::string_view context) {
  if (status.ok()) return status;
  return absl::Status(status.code(), absl::StrCat(context, ": ", status.message()));
}

namespace internal {

// Prints file:line, the condition and the streamed message to stderr, then ends the process with
// SIGABRT.
class CheckFailure {
 public:
  CheckFailure(const char* file, int line, const char* condition);
  [[noreturn]] ~CheckFailure();
  std::ostream& stream() { return stream_; }

 private:
  std::ostringstream stream_;
};

// Swallows the stream expression so that SHOAL_CHECK is a void expression.
struct Voidify {
  void operator&(std::ostream&) const {}
};

}  // namespace internal
}  // namespace shoal

#define SHOAL_CHECK(condition)                 \
  (condition) ? (void)0                        \
              : ::shoal::internal::Voidify() & \
                    ::shoal::internal::CheckFailure(__FILE__, __LINE__, #condition).stream()

#define SHOAL_CONCAT_INNER(a, b) a##b
#define SHOAL_CONCAT(a, b) SHOAL_CONCAT_INNER(a, b)

// Returns the status of `expression` from the enclosing function unless it is OK.
#define SHOAL_RETURN_IF_ERROR(expression)                                                  \
  do {                                                                                     \
    if (absl::Status shoal_status = (expression); !shoal_status.ok()) return shoal_status; \
  } while (false)

// SHOAL_ASSIGN_OR_RETURN(auto x, F()): x is F()'s value, or F()'s status is returned.
#define SHOAL_ASSIGN_OR_RETURN(lhs, expression) \
  SHOAL_ASSIGN_OR_RETURN_INNER(SHOAL_CONCAT(shoal_status_or_, __LINE__), lhs, expression)
#define SHOAL_ASSIGN_OR_RETURN_INNER(status_or, lhs, expression) \
  auto status_or = (expression);                                 \
  if (!status_or.ok()) return status_or.status();                \
  lhs = std::move(status_or).value()
