// What a run logs, and where it goes: metrics_jsonl.h, metrics_console.h, metrics_tensorboard.h.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "core/status.h"

namespace shoal {

// One logged step, or one evaluation (then `eval_loss` is set and most else is not). What is not
// set is not logged; what is set but not finite is logged as such.
struct MetricsRow {
  int64_t step = 0;                     // Optimizer steps taken, from 1
  std::optional<double> loss;           // Mean over the step's targets, of all ranks
  std::optional<double> grad_norm;      // Global, before clipping
  std::optional<double> learning_rate;  // Of this step
  std::optional<int64_t> tokens;  // Trained on since the run began, over all ranks and restarts
  std::optional<double> tokens_per_second;   // Over all ranks, since the last logged row
  std::optional<double> step_seconds;        // Mean since the last logged row
  std::optional<int64_t> peak_rss_bytes;     // Of the largest rank
  std::optional<int64_t> peak_tensor_bytes;  // In a step since the last row, of the largest rank
  std::optional<int64_t> bytes_sent;         // By this rank in this step (see CommCounters)
  std::optional<double> eval_loss;           // Mean over the held-out targets
  std::vector<std::pair<std::string, double>>
      extra;  // More, each under its own name, in this order
};

// One set value of a row, under its name in metrics.jsonl.
struct NamedMetric {
  std::string name;
  bool is_integer = false;
  int64_t integer = 0;  // if is_integer
  double real = 0;      // in either case
};

// The values that are set, `step` aside, in the order above.
std::vector<NamedMetric> NamedMetrics(const MetricsRow& row);

// One rank writes (rank 0); the others have no sinks.
class MetricsSink {
 public:
  virtual ~MetricsSink() = default;
  // When it returns OK, another process sees the row.
  virtual absl::Status Write(const MetricsRow& row) = 0;
  // The last call. A sink that is destroyed without it loses nothing that Write returned OK for.
  virtual absl::Status Close() { return absl::OkStatus(); }
};

}  // namespace shoal
