#include "launch/command.h"

#include <cstdio>
#include <exception>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "core/nearest_name.h"

namespace shoal {
namespace {

void PrintError(absl::string_view message) {
  std::fprintf(stderr, "shoal: %s\n", std::string(message).c_str());
}

// "recipe.yaml:12:3: ..."
bool NamesALine(absl::string_view message) {
  const size_t colon = message.find(':');
  return colon != absl::string_view::npos && colon + 1 < message.size() &&
         absl::ascii_isdigit(message[colon + 1]);
}

std::vector<std::string> CommandNames(const CLI::App& app) {
  std::vector<std::string> names;
  for (const CLI::App* command : app.get_subcommands([](const CLI::App*) { return true; })) {
    names.push_back(command->get_name());
  }
  return names;
}

std::vector<std::string> FlagNames(const CLI::App& command) {
  std::vector<std::string> names;
  for (const CLI::Option* option : command.get_options()) {
    for (const std::string& name : option->get_lnames()) names.push_back("--" + name);
    for (const std::string& name : option->get_snames()) names.push_back("-" + name);
  }
  return names;
}

std::string DidYouMean(const std::string& name, const std::vector<std::string>& candidates) {
  const std::string nearest = NearestName(name, candidates);
  return nearest.empty() ? "" : absl::StrCat(", did you mean ", nearest, "?");
}

}  // namespace

int StatusToExitCode(const absl::Status& status) {
  switch (status.code()) {
    case absl::StatusCode::kOk:
      return kExitOk;
    case absl::StatusCode::kInvalidArgument:
    case absl::StatusCode::kFailedPrecondition:
    case absl::StatusCode::kOutOfRange:
    case absl::StatusCode::kUnimplemented:
    case absl::StatusCode::kAlreadyExists:
      return kExitUsage;
    case absl::StatusCode::kDataLoss:
      return kExitData;
    case absl::StatusCode::kNotFound:
      return kExitMissingInput;
    case absl::StatusCode::kUnavailable:
    case absl::StatusCode::kResourceExhausted:
    case absl::StatusCode::kPermissionDenied:
      return kExitIo;
    case absl::StatusCode::kDeadlineExceeded:
      return kExitTimeout;
    case absl::StatusCode::kAborted:
      return kExitDivergence;
    default:
      return kExitInternal;
  }
}

CommandLine::CommandLine(const std::string& version)
    : app_("Trains transformers with ZeRO over MPI.", "shoal") {
  app_.set_version_flag("--version", absl::StrCat("shoal ", version), "Print the version");
  app_.set_help_flag("-h,--help", "Print this help");
  app_.footer("Each command explains itself: shoal COMMAND --help");
}

CLI::App* CommandLine::Add(const std::string& name, const std::string& description,
                           const std::string& example, std::function<absl::Status()> action) {
  CLI::App* command = app_.add_subcommand(name, description);
  command->footer(
      absl::StrCat("Example:\n  ", absl::StrJoin(absl::StrSplit(example, '\n'), "\n  ")));
  command->final_callback([this, action = std::move(action)] {
    const absl::Status status = action();
    // Errors of a recipe stand alone, a line each, so that editors find their file:line:column.
    if (absl::IsInvalidArgument(status) && NamesALine(status.message())) {
      std::fprintf(stderr, "%s\n", std::string(status.message()).c_str());
    } else if (!status.ok()) {
      PrintError(status.message());
    }
    exit_code_ = StatusToExitCode(status);
  });
  return command;
}

int CommandLine::Run(int argc, const char* const* argv) {
  if (argc < 2) {
    std::fputs(app_.help().c_str(), stderr);
    return kExitUsage;
  }
  const std::string first = argv[1];
  const std::vector<std::string> names = CommandNames(app_);
  if (first[0] != '-' && std::find(names.begin(), names.end(), first) == names.end()) {
    const std::string hint = DidYouMean(first, names);
    PrintError(absl::StrCat(
        "unknown command ", first,
        hint.empty() ? absl::StrCat(", expected one of ", absl::StrJoin(names, ", ")) : hint));
    return kExitUsage;
  }
  try {
    app_.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return UsageError(error);
  } catch (const std::exception& error) {
    PrintError(absl::StrCat("internal error: ", error.what()));
    return kExitInternal;
  }
  return exit_code_;
}

int CommandLine::UsageError(const CLI::ParseError& error) {
  if (error.get_exit_code() == static_cast<int>(CLI::ExitCodes::Success))
    return app_.exit(error);  // --help
  const std::vector<CLI::App*> chosen = app_.get_subcommands();
  const CLI::App& command = chosen.empty() ? app_ : *chosen.front();
  const std::string name = chosen.empty() ? "shoal" : absl::StrCat("shoal ", command.get_name());
  const std::vector<std::string> rest = app_.remaining(true);
  if (!rest.empty()) {
    const std::string argument = rest.front().substr(0, rest.front().find('='));
    const bool flag = argument[0] == '-';
    PrintError(absl::StrCat(command.get_name(), ": unknown ", flag ? "option " : "argument ",
                            argument, flag ? DidYouMean(argument, FlagNames(command)) : "",
                            " (see ", name, " --help)"));
  } else {
    PrintError(absl::StrCat(command.get_name(), ": ", error.what(), " (see ", name, " --help)"));
  }
  return kExitUsage;
}

}  // namespace shoal
