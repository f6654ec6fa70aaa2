#include "core/status.h"

#include <cstdio>
#include <cstdlib>

namespace shoal::internal {

CheckFailure::CheckFailure(const char* file, int line, const char* condition) {
  stream_ << "shoal: broken invariant at " << file << ":" << line << ": " << condition << " ";
}

CheckFailure::~CheckFailure() {
  std::fprintf(stderr, "%s\n", stream_.str().c_str());
  std::fflush(stderr);
  std::abort();
}

}  // namespace shoal::internal
