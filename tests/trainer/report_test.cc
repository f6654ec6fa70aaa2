#include "trainer/report.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include <nlohmann/json.hpp>

#include "core/memory_file_system.h"
#include "core/metrics_jsonl.h"
#include "trainer/report_run.h"

namespace shoal {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Not;

constexpr char kHostile[] = "</script><img src=x onerror=\"alert(1)\">&'{{data}}";

void AddRun(FileSystem& files, const std::string& directory, const std::string& recipe,
            int64_t steps) {
  ASSERT_EQ(CreateDirectories(files, directory), absl::OkStatus());
  if (!recipe.empty()) {
    ASSERT_EQ(WriteFileAtomically(files, directory + "/recipe.resolved.yaml", recipe),
              absl::OkStatus());
  }
  auto sink = *OpenJsonlSink(files, directory + "/metrics.jsonl", 0);
  for (int64_t step = 1; step <= steps; ++step) {
    MetricsRow row;
    row.step = step;
    row.loss = step == 3 ? std::nan("") : 4.0 / static_cast<double>(step);
    row.tokens = step * 100;
    row.step_seconds = 0.5;
    row.extra = {{kHostile, 1}};
    ASSERT_EQ(sink->Write(row), absl::OkStatus());
  }
}

std::string Page(FileSystem& files, const std::vector<std::string>& runs) {
  const auto page = ReportPage(files, runs);
  EXPECT_EQ(page.status(), absl::OkStatus());
  return page.ok() ? *page : "";
}

// The text between the first `begin` and the `end` after it.
std::string Between(const std::string& text, const std::string& begin, const std::string& end) {
  const size_t from = text.find(begin) + begin.size();
  return text.substr(from, text.find(end, from) - from);
}

size_t Count(const std::string& text, const std::string& part) {
  size_t count = 0;
  for (size_t at = text.find(part); at != std::string::npos; at = text.find(part, at + 1)) ++count;
  return count;
}

TEST(Report, HoldsTheCurvesOfEveryRun) {
  MemoryFileSystem files;
  AddRun(files, "/runs/a", "zero:\n  stage: 0\n", 5);
  AddRun(files, "/runs/b", "zero:\n  stage: 3\n", 4);
  const std::string page = Page(files, {"/runs/a", "/runs/b"});
  const auto data = nlohmann::json::parse(Between(page, "type=\"application/json\">", "</script>"));
  ASSERT_EQ(data["runs"].size(), 2u);
  EXPECT_EQ(data["runs"][1]["name"], "b");
  EXPECT_EQ(data["runs"][0]["curves"]["loss"]["steps"], nlohmann::json({1, 2, 3, 4, 5}));
  EXPECT_EQ(data["runs"][1]["curves"]["loss"]["values"], nlohmann::json({4.0, 2.0, nullptr, 1.0}));
  EXPECT_THAT(page, HasSubstr("<th scope=\"row\">zero.stage</th><td>0</td><td>3</td>"));
  EXPECT_THAT(page, HasSubstr("<th scope=\"row\">Loss, last</th><td>0.8000</td><td>1.0000</td>"));
  EXPECT_THAT(
      page,
      HasSubstr("<th scope=\"row\">Logged steps that were not finite</th><td>1</td><td>1</td>"));
}

TEST(Report, NeedsNoNetwork) {
  MemoryFileSystem files;
  AddRun(files, "/runs/a", "run:\n  name: a\n", 5);
  const std::string page = Page(files, {"/runs/a"});
  for (const char* forbidden :
       {"http:", "https:", "//cdn", "src=\"", "href=", "@import", "url(", "fetch(", "import("}) {
    EXPECT_THAT(page, Not(HasSubstr(forbidden)));
  }
  EXPECT_THAT(page, HasSubstr("default-src 'none'"));
}

TEST(Report, HostileTextStaysText) {
  MemoryFileSystem files;
  const std::string directory = absl::StrCat("/runs/", "<script>alert(1)<!--");
  AddRun(files, directory,
         absl::StrCat("run:\n  name: '</td><script>alert(2)'\n  \"", "<b>", "\": 1\n"), 5);
  AddRun(files, "/runs/{{data}}", "", 2);
  const std::string page = Page(files, {directory, "/runs/{{data}}"});
  // The page's own two script elements, and none from the files.
  EXPECT_EQ(Count(page, "<script"), 2u);
  EXPECT_EQ(Count(page, "</script"), 2u);
  for (const char* markup : {"<img", "<!--", "<b>", "onerror=\"alert"})
    EXPECT_THAT(page, Not(HasSubstr(markup)));
  EXPECT_THAT(page, HasSubstr("&lt;script&gt;alert(1)&lt;!--"));
  EXPECT_THAT(page, HasSubstr("</i>{{data}}</th>"));
  const auto data = nlohmann::json::parse(Between(page, "type=\"application/json\">", "</script>"));
  EXPECT_EQ(data["runs"][0]["name"], "<script>alert(1)<!--");
  EXPECT_TRUE(data["runs"][0]["curves"].contains(kHostile));
}

TEST(Report, EveryElementIsClosed) {
  MemoryFileSystem files;
  AddRun(files, "/runs/a", "run:\n  name: a\n", 5);
  AddRun(files, "/runs/b", "run:\n  name: b\n", 5);
  std::string page = Page(files, {"/runs/a", "/runs/b"});
  for (const char* raw : {"style", "script"}) {
    for (size_t at = page.find(absl::StrCat("<", raw)); at != std::string::npos;
         at = page.find(absl::StrCat("<", raw), at + 1)) {
      const size_t from = page.find('>', at) + 1;
      page.erase(from, page.find(absl::StrCat("</", raw), from) - from);
    }
  }
  std::vector<std::string> open;
  for (size_t at = page.find('<'); at != std::string::npos; at = page.find('<', at + 1)) {
    const bool closes = page[at + 1] == '/';
    const size_t from = at + 1 + closes;
    const std::string name = page.substr(from, page.find_first_of(" >\n", from) - from);
    if (name == "!DOCTYPE" || name == "meta" || name == "input") continue;
    if (!closes) {
      open.push_back(name);
      continue;
    }
    ASSERT_FALSE(open.empty()) << name;
    ASSERT_EQ(open.back(), name) << page.substr(at, 80);
    open.pop_back();
  }
  EXPECT_THAT(open, ElementsAre());
}

TEST(Report, SaysWhatIsWrong) {
  MemoryFileSystem files;
  ASSERT_EQ(CreateDirectories(files, "/runs/a"), absl::OkStatus());
  EXPECT_THAT(std::string(ReportPage(files, {"/runs/a"}).status().message()),
              HasSubstr("/runs/a is no run's folder: it has no metrics.jsonl"));
  ASSERT_EQ(
      WriteFileAtomically(files, "/runs/a/metrics.jsonl", "{\"step\":1,\"loss\":2}\nnonsense\n"),
      absl::OkStatus());
  const absl::Status status = WriteReport(files, {"/runs/a"}, "/report.html");
  EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss);
  EXPECT_THAT(std::string(status.message()), HasSubstr("/runs/a/metrics.jsonl:2"));
  // A last line that a crash tore is let pass, and so is an empty run.
  for (const char* text : {"{\"step\":1,\"loss\":2}\n{\"step\":2,\"lo", "{\"st", ""}) {
    ASSERT_EQ(WriteFileAtomically(files, "/runs/a/metrics.jsonl", text), absl::OkStatus());
    EXPECT_EQ(WriteReport(files, {"/runs/a"}, "/report.html"), absl::OkStatus()) << text;
  }
}

TEST(ReportRun, NamesTellRunsApart) {
  MemoryFileSystem files;
  for (const char* path : {"/x/one/run", "/x/two/run", "/x/three"}) AddRun(files, path, "", 1);
  const auto names = [&](const std::vector<std::string>& paths) {
    std::vector<std::string> got;
    const auto runs = ReadReportRuns(files, paths);
    for (const ReportRun& run : runs.value()) got.push_back(run.name);
    return got;
  };
  EXPECT_THAT(names({"/x/one/run", "/x/three/"}), ElementsAre("run", "three"));
  EXPECT_THAT(names({"/x/one/run", "/x/two/run"}), ElementsAre("one/run", "two/run"));
  EXPECT_THAT(names({"/x/three", "/x/three"}), ElementsAre("x/three (1)", "x/three (2)"));
}

TEST(ReportRun, ThinningKeepsExtremesAndGaps) {
  Curve curve;
  for (int64_t step = 0; step < 100'000; ++step) {
    curve.steps.push_back(step);
    curve.values.push_back(1.0);
  }
  curve.values[12'345] = 99;
  curve.values[54'321] = -99;
  curve.values[77'777] = std::nullopt;
  const Curve thinned = Thinned(curve, 2000);
  EXPECT_LT(thinned.steps.size(), 3100u);
  EXPECT_EQ(thinned.steps.back(), 99'999);
  EXPECT_TRUE(std::is_sorted(thinned.steps.begin(), thinned.steps.end()));
  for (const auto& value : {std::optional(99.0), std::optional(-99.0), std::optional<double>()}) {
    EXPECT_EQ(std::count(thinned.values.begin(), thinned.values.end(), value), 1);
  }
}

}  // namespace
}  // namespace shoal
