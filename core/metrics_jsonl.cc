#include "core/metrics_jsonl.h"

#include <charconv>
#include <cmath>

#include <nlohmann/json.hpp>

namespace shoal {
namespace {

std::string Quoted(const std::string& text) {
  return nlohmann::json(text).dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
}

// The shortest decimal that reads back to the same float64, and as no integer (which has no -0).
std::string Digits(double value) {
  char text[32];
  const std::string digits(text, std::to_chars(text, text + sizeof text, value).ptr);
  return digits.find_first_of(".e") == std::string::npos ? digits + ".0" : digits;
}

const char* NonFiniteName(double value) {
  if (std::isnan(value)) return "nan";
  return value > 0 ? "inf" : "-inf";
}

// The step of one line of the file, or nullopt if the line is no row.
std::optional<int64_t> StepOfLine(absl::string_view line) {
  const auto row =
      nlohmann::json::parse(line.begin(), line.end(), nullptr, /*allow_exceptions=*/false);
  if (!row.is_object()) return std::nullopt;
  const auto step = row.find("step");
  if (step == row.end() || !step->is_number_integer()) return std::nullopt;
  return step->get<int64_t>();
}

// The lines of `content` up to `last_step`.
absl::StatusOr<std::string> RowsUpTo(absl::string_view content, int64_t last_step,
                                     const std::string& path) {
  std::string kept;
  int64_t line_number = 0;
  while (!content.empty()) {
    const size_t end = content.find('\n');
    if (end == absl::string_view::npos) break;  // torn: Write ends every row with a newline
    const absl::string_view line = content.substr(0, end + 1);
    content.remove_prefix(end + 1);
    ++line_number;
    const auto step = StepOfLine(line);
    if (!step) {
      return absl::FailedPreconditionError(
          absl::StrCat(path, ":", line_number,
                       " is not a row of metrics; move the file away or choose another "
                       "run.output_dir"));
    }
    if (*step <= last_step) kept.append(line.data(), line.size());
  }
  return kept;
}

class JsonlSink : public MetricsSink {
 public:
  explicit JsonlSink(std::unique_ptr<WritableFile> file) : file_(std::move(file)) {}
  absl::Status Write(const MetricsRow& row) override {
    return file_->Append(MetricsJson(row) + "\n");
  }
  absl::Status Close() override {
    SHOAL_RETURN_IF_ERROR(file_->Sync());
    return file_->Close();
  }

 private:
  std::unique_ptr<WritableFile> file_;
};

constexpr int64_t kMaxMetricsBytes = int64_t{4} << 30;

}  // namespace

std::string MetricsJson(const MetricsRow& row) {
  std::string json = absl::StrCat("{\"step\":", row.step);
  std::string non_finite;
  for (const NamedMetric& metric : NamedMetrics(row)) {
    const std::string name = Quoted(metric.name);
    if (metric.is_integer) {
      absl::StrAppend(&json, ",", name, ":", metric.integer);
    } else if (std::isfinite(metric.real)) {
      absl::StrAppend(&json, ",", name, ":", Digits(metric.real));
    } else {
      absl::StrAppend(&json, ",", name, ":null");
      absl::StrAppend(&non_finite, non_finite.empty() ? "" : ",", name, ":\"",
                      NonFiniteName(metric.real), "\"");
    }
  }
  if (!non_finite.empty()) absl::StrAppend(&json, ",\"non_finite\":{", non_finite, "}");
  return json + "}";
}

absl::StatusOr<std::unique_ptr<MetricsSink>> OpenJsonlSink(FileSystem& files,
                                                           const std::string& path,
                                                           int64_t last_step) {
  SHOAL_ASSIGN_OR_RETURN(const bool exists, Exists(files, path));
  if (exists) {
    SHOAL_ASSIGN_OR_RETURN(const std::string content, ReadFile(files, path, kMaxMetricsBytes));
    SHOAL_ASSIGN_OR_RETURN(const std::string kept, RowsUpTo(content, last_step, path));
    if (kept.size() != content.size())
      SHOAL_RETURN_IF_ERROR(WriteFileAtomically(files, path, kept));
  }
  SHOAL_ASSIGN_OR_RETURN(auto file, files.OpenForWrite(path, OpenMode::kAppend));
  return std::make_unique<JsonlSink>(std::move(file));
}

}  // namespace shoal
