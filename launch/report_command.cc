#include "launch/report_command.h"

#include <cstdio>
#include <memory>
#include <string>
#include <vector>

#include "core/file_system.h"
#include "trainer/report.h"

namespace shoal {
namespace {

struct ReportOptions {
  std::vector<std::string> runs;
  std::string output = "report.html";
};

absl::Status RunReport(const ReportOptions& options) {
  PosixFileSystem files;
  SHOAL_RETURN_IF_ERROR(WriteReport(files, options.runs, options.output));
  std::fprintf(stderr, "%s: open it in any browser\n", options.output.c_str());
  return absl::OkStatus();
}

}  // namespace

void AddReportCommand(CommandLine& line) {
  auto options = std::make_shared<ReportOptions>();
  CLI::App* command = line.Add(
      "report",
      "Write one HTML page with the curves, final figures and recipes of one run or several",
      "shoal report runs/quickstart\n"
      "shoal report runs/stage0 runs/stage3 --output compared.html",
      [options] { return RunReport(*options); });
  command->add_option("runs", options->runs, "Folders of runs, each with a metrics.jsonl")
      ->required();
  command->add_option("-o,--output", options->output, "The page to write")->capture_default_str();
}

}  // namespace shoal
