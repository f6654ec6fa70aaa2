#include "core/metrics_console.h"

#include <cmath>
#include <cstdio>

#include "absl/strings/match.h"
#include "absl/strings/str_format.h"

namespace shoal {
namespace {

// Three digits and a unit of 1000: 12400 -> "12.4k".
std::string Short(double value, absl::string_view units[], int num_units) {
  int unit = 0;
  while (std::abs(value) >= 999.5 && unit + 1 < num_units) {
    value /= 1000;
    ++unit;
  }
  const int digits = unit == 0 || std::abs(value) >= 99.95 ? 0 : std::abs(value) >= 9.995 ? 1 : 2;
  return absl::StrFormat("%.*f%s", digits, value, units[unit]);
}

std::string HumanCount(double value) {
  absl::string_view units[] = {"", "k", "M", "G", "T"};
  return Short(value, units, 5);
}

class ConsoleSink : public MetricsSink {
 public:
  ConsoleSink(std::FILE* out, const ConsoleOptions& options) : out_(out), options_(options) {}
  ~ConsoleSink() override { EndLine(); }

  absl::Status Write(const MetricsRow& row) override {
    if (row.step_seconds && row.step > 0) Smooth(*row.step_seconds);
    const double left = options_.max_steps > 0 && smoothed_seconds_ >= 0
                            ? smoothed_seconds_ * static_cast<double>(options_.max_steps - row.step)
                            : -1;
    const std::string line = ConsoleLine(row, options_.max_steps, left);
    if (line ==
        ConsoleLine({.step = row.step, .eval_loss = {}, .extra = {}}, options_.max_steps, -1))
      return absl::OkStatus();  // Nothing of it is shown
    const bool stays = !options_.rewrite_line || row.eval_loss || !row.loss;
    if (options_.rewrite_line) std::fputs("\r\033[K", out_);
    std::fputs(line.c_str(), out_);
    open_line_ = !stays;
    if (stays) std::fputc('\n', out_);
    if (std::fflush(out_) != 0) return absl::UnknownError("cannot write the progress line");
    return absl::OkStatus();
  }

  absl::Status Close() override {
    EndLine();
    return absl::OkStatus();
  }

 private:
  // Exponential mean of the step times, so that the time left neither jumps nor lags long.
  void Smooth(double seconds) {
    if (!std::isfinite(seconds)) return;
    smoothed_seconds_ = smoothed_seconds_ < 0 ? seconds : 0.9 * smoothed_seconds_ + 0.1 * seconds;
  }
  void EndLine() {
    if (!open_line_) return;
    std::fputc('\n', out_);
    std::fflush(out_);
    open_line_ = false;
  }

  std::FILE* out_;
  ConsoleOptions options_;
  double smoothed_seconds_ = -1;
  bool open_line_ = false;
};

}  // namespace

std::string HumanSeconds(double seconds) {
  if (!std::isfinite(seconds) || seconds < 0) return "?";
  const int64_t s = std::llround(std::min(seconds, 1e12));
  if (s < 60) return absl::StrFormat("%ds", s);
  if (s < 3600) return absl::StrFormat("%dm %02ds", s / 60, s % 60);
  if (s < 86400) return absl::StrFormat("%dh %02dm", s / 3600, s / 60 % 60);
  return absl::StrFormat("%dd %02dh", s / 86400, s / 3600 % 24);
}

std::string HumanBytes(double bytes) {
  absl::string_view units[] = {" B", " kB", " MB", " GB", " TB", " PB"};
  return Short(bytes, units, 6);
}

std::string ConsoleLine(const MetricsRow& row, int64_t max_steps, double seconds_left) {
  const std::string last = max_steps > 0 ? absl::StrCat(max_steps) : "";
  const int width = std::max<int>(4, static_cast<int>(last.size()));
  std::string line = absl::StrFormat("step %*d", width, row.step);
  if (!last.empty()) absl::StrAppend(&line, "/", last);
  if (row.eval_loss) {
    absl::StrAppendFormat(&line, "  held-out loss %.4f", *row.eval_loss);
    // A loss that comes with more figures is an objective's, not a cross entropy.
    if (row.extra.empty())
      absl::StrAppendFormat(&line, "  perplexity %.2f", std::exp(*row.eval_loss));
    for (const auto& [name, value] : row.extra) {
      if (absl::EndsWith(name, "accuracy")) absl::StrAppendFormat(&line, "  accuracy %.3f", value);
    }
  }
  if (row.loss) absl::StrAppendFormat(&line, "  loss %7.4f", *row.loss);
  for (const auto& [name, value] : row.extra) {
    if (name == "reward" || name == "eval_reward")
      absl::StrAppendFormat(&line, "  %s %.4f", name == "reward" ? "reward" : "held-out reward",
                            value);
  }
  if (row.grad_norm) absl::StrAppendFormat(&line, "  grad norm %.3g", *row.grad_norm);
  if (row.learning_rate) absl::StrAppendFormat(&line, "  lr %.2e", *row.learning_rate);
  if (row.tokens_per_second)
    absl::StrAppendFormat(&line, "  %5s tokens/s", HumanCount(*row.tokens_per_second));
  if (row.loss && seconds_left >= 0) absl::StrAppend(&line, "  left ", HumanSeconds(seconds_left));
  if (row.peak_rss_bytes)
    absl::StrAppend(&line, "  ", HumanBytes(static_cast<double>(*row.peak_rss_bytes)), "/rank");
  return line;
}

std::unique_ptr<MetricsSink> MakeConsoleSink(std::FILE* out, const ConsoleOptions& options) {
  return std::make_unique<ConsoleSink>(out, options);
}

}  // namespace shoal
