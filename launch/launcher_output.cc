#include "launch/launcher_output.h"

#include <cstdio>

#include "absl/strings/match.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_replace.h"

namespace shoal {
namespace {

constexpr absl::string_view kRankSpeaks = "shoal: rank ";
constexpr size_t kMaxHeld = 1000;
constexpr size_t kMaxReportLines = 40;

bool IsFrame(absl::string_view line) {
  while (!line.empty() && (line.back() == '\n' || line.back() == '\r')) line.remove_suffix(1);
  return line.size() >= 40 && line.find_first_not_of('-') == absl::string_view::npos;
}

// mpirun's lines outside reports: "[host:123] 1 more process has sent help message ..." and what it
// logs when ranks end while it is still passing their words on.
bool IsNotice(absl::string_view line) {
  return line.front() == '[' && (absl::StrContains(line, "has sent help message") ||
                                 absl::StrContains(line, "orte_base_help_aggregate") ||
                                 absl::StrContains(line, "ORTE_ERROR_LOG"));
}

// Whether the start of a line must wait for its end to be judged.
bool MustWait(absl::string_view start) {
  return start[0] == '-' || start[0] == '[' || absl::StartsWith(start, kRankSpeaks) ||
         absl::StartsWith(kRankSpeaks, start);
}

}  // namespace

void LauncherOutput::Add(absl::string_view bytes) {
  while (!bytes.empty()) {
    const size_t newline = bytes.find('\n');
    const bool ends = newline != absl::string_view::npos;
    const absl::string_view part = bytes.substr(0, ends ? newline + 1 : bytes.size());
    bytes.remove_prefix(part.size());
    if (inside_) {
      write_(part);
      inside_ = !ends;
      continue;
    }
    held_.append(part.data(), part.size());
    if (ends) {
      AddLine(std::move(held_));
      held_.clear();
    } else if (report_.empty() && (!MustWait(held_) || held_.size() > kMaxHeld)) {
      write_(held_);
      held_.clear();
      inside_ = true;
    }
  }
}

void LauncherOutput::AddLine(std::string line) {
  if (absl::StartsWith(line, kRankSpeaks)) {  // A rank's word, even between the lines of a report
    rank_explained_ = true;
    return write_(line);
  }
  if (!report_.empty()) {
    const bool closes = IsFrame(line);
    report_.push_back(std::move(line));
    if (closes || report_.size() > kMaxReportLines) EndReport();
    return;
  }
  if (IsFrame(line)) {
    report_.push_back(std::move(line));
  } else if (!IsNotice(line)) {
    write_(line);
  }
}

void LauncherOutput::EndReport() {
  const std::string text = absl::StrReplaceAll(absl::StrJoin(report_, ""), {{"\n", " "}});
  const size_t found = text.find("noticed that process rank ");
  Killed killed;
  if (found != std::string::npos &&
      std::sscanf(text.c_str() + found, "noticed that process rank %d", &killed.rank) == 1) {
    const size_t signal = text.find("on signal ", found);
    if (signal != std::string::npos &&
        std::sscanf(text.c_str() + signal, "on signal %d", &killed.signal) == 1) {
      if (!killed_) killed_ = killed;
    }
  }
  const bool about_ended_ranks = found != std::string::npos ||
                                 absl::StrContains(text, "MPI_ABORT was invoked") ||
                                 absl::StrContains(text, "non-zero exit code") ||
                                 absl::StrContains(text, "exited with non-zero status");
  if (!about_ended_ranks) {
    for (const std::string& line : report_) write_(line);
  }
  report_.clear();
}

void LauncherOutput::Finish() {
  if (!held_.empty()) AddLine(std::move(held_));
  held_.clear();
  if (!report_.empty()) EndReport();
}

}  // namespace shoal
