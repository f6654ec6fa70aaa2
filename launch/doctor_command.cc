#include "launch/doctor_command.h"

#include <cstdio>
#include <memory>
#include <string>

#include "absl/strings/str_cat.h"
#include "launch/doctor_collectives.h"
#include "launch/doctor_machine.h"

namespace shoal {
namespace {

struct DoctorOptions {
  int ranks = 2;
  bool json = false;
  std::string collectives_result;  // Set in the ranks that doctor itself starts
};

absl::Status Doctor(const DoctorOptions& options) {
  if (!options.collectives_result.empty()) return RunCollectivesRank(options.collectives_result);

  DoctorReport report;
  const auto add = [&](ReportSection section) {
    if (!options.json) {
      std::fputs(absl::StrCat(ToText(section), "\n").c_str(), stdout);
      std::fflush(stdout);
    }
    report.push_back(std::move(section));
  };
  add(VersionsSection());
  add(MachineSection());
  // Before the GPUs and the rates: the launcher waits for its child's signal, which threads of this
  // process would take.
  add(CollectivesSection(options.ranks));
  add(GpusSection());
  add(RatesSection());

  const int failures = CountFailures(report);
  if (options.json) std::printf("%s\n", ToJson(report).c_str());
  if (failures > 0) {
    return absl::FailedPreconditionError(
        absl::StrCat("doctor: ", failures, failures == 1 ? " check" : " checks",
                     " failed: see the FAIL lines and their cures"));
  }
  if (!options.json) std::puts("Nothing failed.");
  return absl::OkStatus();
}

}  // namespace

void AddDoctorCommand(CommandLine& line) {
  auto options = std::make_shared<DoctorOptions>();
  CLI::App* command = line.Add(
      "doctor",
      "Tell versions, the machine and its measured rates, and test every collective over ranks",
      "shoal doctor\nshoal doctor -n 4 --json > doctor.json",
      [options] { return Doctor(*options); });
  command->add_option("-n,--ranks", options->ranks, "Ranks to test collectives over")
      ->capture_default_str()
      ->check(CLI::Range(1, 1024));
  command->add_flag("--json", options->json, "Print one JSON object");
  command->add_option("--collectives-result", options->collectives_result)
      ->group("");  // Not shown in --help
}

}  // namespace shoal
