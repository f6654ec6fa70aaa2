#include "trainer/report_run.h"

#include <algorithm>
#include <set>

#include <nlohmann/json.hpp>

#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"

#include "core/recipe_yaml.h"

namespace shoal {
namespace {

constexpr int64_t kMaxMetricsBytes = int64_t{1} << 30;
constexpr char kMetricsName[] = "metrics.jsonl";
constexpr char kRecipeName[] = "recipe.resolved.yaml";

// Adds the row's values to the run's curves.
absl::Status AddRow(absl::string_view line, ReportRun* run) {
  const auto row =
      nlohmann::json::parse(line.begin(), line.end(), nullptr, /*allow_exceptions=*/false);
  if (!row.is_object()) return absl::DataLossError("no JSON object");
  const auto step = row.find("step");
  if (step == row.end() || !step->is_number_integer())
    return absl::DataLossError("no row: it has no step");
  const int64_t previous_step = run->last_step;
  run->last_step = std::max(run->last_step, step->get<int64_t>());
  bool non_finite = false;
  for (const auto& [name, value] : row.items()) {
    if (name == "step" || !(value.is_number() || value.is_null())) continue;
    Curve& curve = run->curves[name];
    curve.steps.push_back(step->get<int64_t>());
    curve.values.push_back(value.is_null() ? std::nullopt : std::optional(value.get<double>()));
    non_finite |= value.is_null();
  }
  if (non_finite) ++run->non_finite_steps;
  const auto seconds = row.find("step_seconds");
  if (seconds != row.end() && seconds->is_number()) {
    run->trained_seconds +=
        seconds->get<double>() * static_cast<double>(run->last_step - previous_step);
  }
  return absl::OkStatus();
}

absl::Status ReadMetrics(FileSystem& files, const std::string& directory, ReportRun* run) {
  const std::string path = JoinPath(directory, kMetricsName);
  auto content = ReadFile(files, path, kMaxMetricsBytes);
  if (absl::IsNotFound(content.status())) {
    return absl::NotFoundError(
        absl::StrCat(directory, " is no run's folder: it has no ", kMetricsName));
  }
  SHOAL_RETURN_IF_ERROR(content.status());
  content->erase(content->rfind('\n') + 1);  // all of it if no line is whole
  int64_t line_number = 0;
  for (absl::string_view line : absl::StrSplit(*content, '\n')) {
    ++line_number;
    if (line.empty()) continue;
    SHOAL_RETURN_IF_ERROR(Annotate(AddRow(line, run), absl::StrCat(path, ":", line_number)));
  }
  return absl::OkStatus();
}

void Flatten(const YamlNode& node, const std::string& key, ReportRun* run) {
  if (node.IsMap()) {
    for (const YamlNode::Entry& entry : node.entries) {
      Flatten(entry.value, key.empty() ? entry.key : absl::StrCat(key, ".", entry.key), run);
    }
  } else if (node.IsList()) {
    for (size_t i = 0; i < node.items.size(); ++i)
      Flatten(node.items[i], absl::StrCat(key, ".", i), run);
  } else {
    run->recipe.emplace_back(key, node.IsNull() ? "null" : node.text);
  }
}

// A run without a resolved recipe is shown all the same.
absl::Status ReadRecipe(FileSystem& files, const std::string& directory, ReportRun* run) {
  const std::string path = JoinPath(directory, kRecipeName);
  const auto text = ReadFile(files, path, kMaxRecipeBytes);
  if (absl::IsNotFound(text.status())) return absl::OkStatus();
  SHOAL_RETURN_IF_ERROR(text.status());
  std::vector<RecipeError> errors;
  RecipeOrigin source;
  source.source = std::make_shared<const std::string>(path);
  YamlNode root;
  ParseYaml(*text, source, root, errors);
  SHOAL_RETURN_IF_ERROR(RecipeErrorsToStatus(errors));
  Flatten(root, "", run);
  return absl::OkStatus();
}

// The last `parts` names of a path.
std::string Tail(const std::string& path, size_t parts) {
  std::vector<std::string> names = absl::StrSplit(path, '/', absl::SkipEmpty());
  if (names.size() > parts)
    names.erase(names.begin(), names.end() - static_cast<std::ptrdiff_t>(parts));
  return absl::StrJoin(names, "/");
}

// As few of the last names of each path as tell all of them apart.
void NameRuns(const std::vector<std::string>& paths, std::vector<ReportRun>* runs) {
  for (size_t parts = 1; parts <= 16; ++parts) {
    std::set<std::string> seen;
    for (size_t i = 0; i < paths.size(); ++i) seen.insert((*runs)[i].name = Tail(paths[i], parts));
    if (seen.size() == paths.size()) return;
  }
  for (size_t i = 0; i < paths.size(); ++i) absl::StrAppend(&(*runs)[i].name, " (", i + 1, ")");
}

}  // namespace

absl::StatusOr<std::vector<ReportRun>> ReadReportRuns(
    FileSystem& files, const std::vector<std::string>& run_directories) {
  if (run_directories.empty())
    return absl::InvalidArgumentError("a report needs at least one run's folder");
  std::vector<ReportRun> runs(run_directories.size());
  for (size_t i = 0; i < runs.size(); ++i) {
    SHOAL_RETURN_IF_ERROR(ReadMetrics(files, run_directories[i], &runs[i]));
    SHOAL_RETURN_IF_ERROR(ReadRecipe(files, run_directories[i], &runs[i]));
  }
  NameRuns(run_directories, &runs);
  return runs;
}

Curve Thinned(const Curve& curve, int64_t limit) {
  const int64_t size = static_cast<int64_t>(curve.steps.size());
  if (size <= limit) return curve;
  // Two points a bucket: its lowest and its highest, in their order.
  const int64_t buckets = std::max<int64_t>(1, limit / 2);
  std::set<int64_t> kept = {0, size - 1};
  for (int64_t bucket = 0; bucket < buckets; ++bucket) {
    int64_t low = -1, high = -1, lost = -1;
    for (int64_t i = size * bucket / buckets; i < size * (bucket + 1) / buckets; ++i) {
      if (!curve.values[i]) {
        lost = i;
        continue;
      }
      if (low < 0 || *curve.values[i] < *curve.values[low]) low = i;
      if (high < 0 || *curve.values[i] > *curve.values[high]) high = i;
    }
    for (const int64_t i : {low, high, lost}) {
      if (i >= 0) kept.insert(i);
    }
  }
  Curve thinned;
  for (const int64_t i : kept) {
    thinned.steps.push_back(curve.steps[i]);
    thinned.values.push_back(curve.values[i]);
  }
  return thinned;
}

}  // namespace shoal
