#include "trainer/report.h"

#include <algorithm>
#include <cmath>
#include <set>

#include <nlohmann/json.hpp>

#include "absl/strings/str_format.h"
#include "absl/strings/str_replace.h"

#include "core/metrics_console.h"
#include "trainer/report_run.h"

namespace shoal {

// The page's parts, embedded from trainer/report/.
namespace embedded {
extern const char report_html[];
extern const unsigned long report_html_size;
extern const char report_css[];
extern const unsigned long report_css_size;
extern const char report_js[];
extern const unsigned long report_js_size;
}  // namespace embedded

namespace {

constexpr int64_t kMaxPoints = 2000;  // of a curve: more than a screen has columns

std::string Escaped(absl::string_view text) {
  return absl::StrReplaceAll(
      text, {{"&", "&amp;"}, {"<", "&lt;"}, {">", "&gt;"}, {"\"", "&quot;"}, {"'", "&#39;"}});
}

// JSON that can stand inside a <script> element: no character of markup is left in it.
std::string ScriptSafe(const nlohmann::json& json) {
  const std::string text =
      json.dump(-1, ' ', /*ensure_ascii=*/true, nlohmann::json::error_handler_t::replace);
  return absl::StrReplaceAll(text, {{"&", "\\u0026"}, {"<", "\\u003c"}, {">", "\\u003e"}});
}

nlohmann::json CurvesJson(const std::vector<ReportRun>& runs) {
  nlohmann::json all = nlohmann::json::array();
  for (const ReportRun& run : runs) {
    nlohmann::json curves = nlohmann::json::object();
    for (const auto& [name, curve] : run.curves) {
      const Curve thinned = Thinned(curve, kMaxPoints);
      nlohmann::json values = nlohmann::json::array();
      for (const auto& value : thinned.values)
        values.push_back(value ? nlohmann::json(*value) : nlohmann::json());
      curves[name] = {{"steps", thinned.steps}, {"values", std::move(values)}};
    }
    all.push_back({{"name", run.name}, {"curves", std::move(curves)}});
  }
  return {{"runs", std::move(all)}};
}

// A table whose first column says what the others, one a run, hold. Cells are text.
class Table {
 public:
  explicit Table(const std::vector<ReportRun>& runs) {
    html_ = "<div class=\"scroll\"><table><thead><tr><th></th>";
    for (size_t i = 0; i < runs.size(); ++i) {
      absl::StrAppend(&html_, "<th scope=\"col\"><i class=\"swatch\" data-run=\"", i, "\"></i>",
                      Escaped(runs[i].name), "</th>");
    }
    html_ += "</tr></thead><tbody>";
  }
  void AddRow(const std::string& label, const std::vector<std::string>& cells) {
    absl::StrAppend(&html_, "<tr><th scope=\"row\">", Escaped(label), "</th>");
    for (const std::string& cell : cells) absl::StrAppend(&html_, "<td>", Escaped(cell), "</td>");
    html_ += "</tr>";
  }
  std::string Html() const { return html_ + "</tbody></table></div>"; }

 private:
  std::string html_;
};

using Value = std::optional<double>;

const Curve* FindCurve(const ReportRun& run, const std::string& name) {
  const auto found = run.curves.find(name);
  return found == run.curves.end() ? nullptr : &found->second;
}

std::vector<double> FiniteValues(const ReportRun& run, const std::string& name) {
  std::vector<double> values;
  if (const Curve* curve = FindCurve(run, name)) {
    for (const Value& value : curve->values) {
      if (value) values.push_back(*value);
    }
  }
  return values;
}

Value Last(const ReportRun& run, const std::string& name) {
  const auto values = FiniteValues(run, name);
  return values.empty() ? Value() : values.back();
}

Value Largest(const ReportRun& run, const std::string& name) {
  const auto values = FiniteValues(run, name);
  return values.empty() ? Value() : *std::max_element(values.begin(), values.end());
}

// Of the later half, which start-up does not slow down.
Value Median(const ReportRun& run, const std::string& name) {
  auto values = FiniteValues(run, name);
  values.erase(values.begin(), values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2));
  if (values.empty()) return Value();
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

std::string BestText(const ReportRun& run, const std::string& name) {
  const Curve* curve = FindCurve(run, name);
  size_t best = 0;
  bool any = false;
  for (size_t i = 0; curve && i < curve->values.size(); ++i) {
    if (!curve->values[i] || (any && *curve->values[i] >= *curve->values[best])) continue;
    best = i;
    any = true;
  }
  return any ? absl::StrFormat("%.4f at step %d", *curve->values[best], curve->steps[best]) : "–";
}

std::string FinalFigures(const std::vector<ReportRun>& runs) {
  Table table(runs);
  const auto row = [&](const char* label, const auto& text_of) {
    std::vector<std::string> cells;
    for (const ReportRun& run : runs) cells.push_back(text_of(run));
    if (!std::all_of(cells.begin(), cells.end(), [](const std::string& c) { return c == "–"; })) {
      table.AddRow(label, cells);
    }
  };
  const auto number = [](const Value& value, const auto& format) {
    return value ? format(*value) : std::string("–");
  };
  const auto decimals = [](double v) { return absl::StrFormat("%.4f", v); };
  const auto count = [](double v) { return absl::StrFormat("%.0f", v); };
  row("Last step", [&](const ReportRun& run) { return absl::StrCat(run.last_step); });
  row("Loss, last", [&](const ReportRun& run) { return number(Last(run, "loss"), decimals); });
  row("Held-out loss, last",
      [&](const ReportRun& run) { return number(Last(run, "eval_loss"), decimals); });
  row("Held-out loss, best", [&](const ReportRun& run) { return BestText(run, "eval_loss"); });
  row("Tokens", [&](const ReportRun& run) { return number(Last(run, "tokens"), count); });
  row("Tokens/s, median of the later half",
      [&](const ReportRun& run) { return number(Median(run, "tokens_per_second"), count); });
  row("Training time", [&](const ReportRun& run) { return HumanSeconds(run.trained_seconds); });
  row("Memory of the largest rank, peak",
      [&](const ReportRun& run) { return number(Largest(run, "peak_rss_bytes"), HumanBytes); });
  row("Sent per rank and step",
      [&](const ReportRun& run) { return number(Median(run, "bytes_sent"), HumanBytes); });
  row("Logged steps that were not finite",
      [&](const ReportRun& run) { return absl::StrCat(run.non_finite_steps); });
  return table.Html();
}

// Every key of any run's recipe, in the first one's order, and its value in each.
struct RecipeRow {
  std::string key;
  std::vector<std::string> values;
  bool Differs() const {
    return std::adjacent_find(values.begin(), values.end(), std::not_equal_to<>()) != values.end();
  }
};

std::vector<RecipeRow> RecipeRows(const std::vector<ReportRun>& runs) {
  std::vector<RecipeRow> rows;
  std::map<std::string, size_t> row_of;
  for (size_t i = 0; i < runs.size(); ++i) {
    for (const auto& [key, value] : runs[i].recipe) {
      const auto [entry, is_new] = row_of.emplace(key, rows.size());
      if (is_new)
        rows.push_back({.key = key, .values = std::vector<std::string>(runs.size(), "–")});
      rows[entry->second].values[i] = value;
    }
  }
  return rows;
}

std::string RecipeTables(const std::vector<ReportRun>& runs) {
  const std::vector<RecipeRow> rows = RecipeRows(runs);
  if (rows.empty()) return "<p>The runs have no recipe.resolved.yaml.</p>";
  Table differing(runs), equal(runs);
  int differences = 0;
  for (const RecipeRow& row : rows) {
    differences += row.Differs();
    (row.Differs() ? differing : equal).AddRow(row.key, row.values);
  }
  std::string html;
  if (runs.size() > 1) {
    html = absl::StrCat("<h2>Differences between the recipes</h2>",
                        differences > 0 ? differing.Html() : "<p>The recipes are equal.</p>");
  }
  return absl::StrCat(html, "<details><summary>",
                      runs.size() > 1 ? "What is equal in the recipes" : "The recipe", "</summary>",
                      equal.Html(), "</details>");
}

std::string Title(const std::vector<ReportRun>& runs) {
  if (runs.size() == 1) return runs[0].name;
  return absl::StrCat(runs[0].name, " and ", runs.size() - 1, " more");
}

}  // namespace

absl::StatusOr<std::string> ReportPage(FileSystem& files,
                                       const std::vector<std::string>& run_directories) {
  SHOAL_ASSIGN_OR_RETURN(const std::vector<ReportRun> runs, ReadReportRuns(files, run_directories));
  // One pass: what is put in is not looked at again, so that a run called "{{data}}" stays that.
  return absl::StrReplaceAll(
      absl::string_view(embedded::report_html, embedded::report_html_size),
      {{"{{title}}", Escaped(Title(runs))},
       {"{{style}}", absl::string_view(embedded::report_css, embedded::report_css_size)},
       {"{{script}}", absl::string_view(embedded::report_js, embedded::report_js_size)},
       {"{{data}}", ScriptSafe(CurvesJson(runs))},
       {"{{figures}}", FinalFigures(runs)},
       {"{{recipes}}", RecipeTables(runs)}});
}

absl::Status WriteReport(FileSystem& files, const std::vector<std::string>& run_directories,
                         const std::string& output) {
  SHOAL_ASSIGN_OR_RETURN(const std::string page, ReportPage(files, run_directories));
  return WriteFileAtomically(files, output, page);
}

}  // namespace shoal
