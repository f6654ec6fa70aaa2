#include "core/metrics.h"

namespace shoal {

std::vector<NamedMetric> NamedMetrics(const MetricsRow& row) {
  std::vector<NamedMetric> metrics;
  const auto real = [&](const char* name, const std::optional<double>& value) {
    if (value) metrics.push_back({.name = name, .is_integer = false, .integer = 0, .real = *value});
  };
  const auto integer = [&](const char* name, const std::optional<int64_t>& value) {
    if (!value) return;
    metrics.push_back(
        {.name = name, .is_integer = true, .integer = *value, .real = static_cast<double>(*value)});
  };
  real("loss", row.loss);
  real("grad_norm", row.grad_norm);
  real("learning_rate", row.learning_rate);
  integer("tokens", row.tokens);
  real("tokens_per_second", row.tokens_per_second);
  real("step_seconds", row.step_seconds);
  integer("peak_rss_bytes", row.peak_rss_bytes);
  integer("peak_tensor_bytes", row.peak_tensor_bytes);
  integer("bytes_sent", row.bytes_sent);
  real("eval_loss", row.eval_loss);
  for (const auto& [name, value] : row.extra) real(name.c_str(), value);
  return metrics;
}

}  // namespace shoal
