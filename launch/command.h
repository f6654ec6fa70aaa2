// What the commands share. A command is a file launch/<name>_command.{h,cc} that exposes
//
//   void AddCheckCommand(CommandLine& line);
//
// and is listed in main.cc. Inside, options live in a struct that the action shares:
//
//   auto options = std::make_shared<Options>();
//   CLI::App* command = line.Add("check", "Checks a recipe ...", "shoal check
//   recipes/quickstart.yaml -n 4",
//                                [options] { return Check(*options); });
//   command->add_option("recipe", options->recipe, "The recipe")->required();
#pragma once

#include <functional>
#include <string>

#include <CLI/CLI.hpp>

#include "absl/status/status.h"

namespace shoal {

// Exit codes, after sysexits.h. Scripts may rely on them.
enum ExitCode {
  kExitOk = 0,
  kExitUsage = 64,         // A recipe or command line that cannot be honoured
  kExitData = 65,          // Broken bytes in a file
  kExitMissingInput = 66,  // A file that is not there
  kExitInternal = 70,      // A defect of Shoal
  kExitIo = 74,            // Disk or network
  kExitTimeout = 76,       // A rank that did not come
  kExitDivergence = 77,    // Non-finite losses or gradients; `parity`: two runs that differ
};

// InvalidArgument, FailedPrecondition, OutOfRange, Unimplemented, AlreadyExists: usage. DataLoss:
// data. NotFound: missing input. Unavailable, ResourceExhausted, PermissionDenied: I/O.
// DeadlineExceeded: timeout. Aborted: divergence. Others: internal.
int StatusToExitCode(const absl::Status& status);

// The program's command line: commands with their actions.
class CommandLine {
 public:
  // `version` is what --version prints.
  explicit CommandLine(const std::string& version);

  // A subcommand. `example` is shown under its --help. `action` runs once the command's arguments
  // are read; an error it returns is printed as "shoal: ..." (InvalidArgument as it is: a recipe's
  // errors, each on its line) and becomes the exit code.
  CLI::App* Add(const std::string& name, const std::string& description, const std::string& example,
                std::function<absl::Status()> action);

  // Reads the arguments and runs the command they name. Returns the exit code. Does not throw.
  int Run(int argc, const char* const* argv);

 private:
  int UsageError(const CLI::ParseError& error);

  CLI::App app_;
  int exit_code_ = kExitOk;
};

}  // namespace shoal
