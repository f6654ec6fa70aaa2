// The progress line of a run.
#pragma once

#include <cstdio>
#include <memory>

#include "core/metrics.h"

namespace shoal {

struct ConsoleOptions {
  int64_t max_steps = 0;  // Of the whole run; 0: unknown, and no time left is shown
  bool rewrite_line =
      false;  // On a terminal: each row takes the line of the one before. Else a line each
};

// Prints to `out` (stdout, as a rule; not owned):
//   step   120/1000  loss 3.4127  grad norm 0.91  lr 4.8e-04  12.4k tokens/s  left 3m 20s  312
//   MB/rank
// and an evaluation on a line of its own:
//   step   200/1000  held-out loss 3.2011  perplexity 24.56
std::unique_ptr<MetricsSink> MakeConsoleSink(std::FILE* out, const ConsoleOptions& options);

// The text of such a line, without line end. `seconds_left` < 0: unknown.
std::string ConsoleLine(const MetricsRow& row, int64_t max_steps, double seconds_left);

// 75 -> "1m 15s"; 4000 -> "1h 06m".
std::string HumanSeconds(double seconds);
// 312000000 -> "312 MB" (powers of 1000), three digits.
std::string HumanBytes(double bytes);

}  // namespace shoal
