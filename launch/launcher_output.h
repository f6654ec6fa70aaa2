// What mpirun writes to stderr: the ranks' own lines, and mpirun's reports framed by lines of
// dashes.
#pragma once

#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"

namespace shoal {

// Passes the ranks' output on as it comes, keeps back reports about ranks that ended (the launcher
// says that in one line) and passes other reports on.
class LauncherOutput {
 public:
  struct Killed {
    int rank = 0;
    int signal = 0;
  };

  explicit LauncherOutput(std::function<void(absl::string_view)> write)
      : write_(std::move(write)) {}

  void Add(absl::string_view bytes);
  // At the end of the output: passes on what was held back for want of its end.
  void Finish();

  // The rank that mpirun says a signal ended.
  const std::optional<Killed>& killed() const { return killed_; }
  // Some rank has said why it failed: a line that starts with "shoal: rank".
  bool rank_explained() const { return rank_explained_; }

 private:
  void AddLine(std::string line);
  void EndReport();

  std::function<void(absl::string_view)> write_;
  std::string held_;                 // The start of a line that may be mpirun's
  bool inside_ = false;              // Of a line that has begun to pass
  std::vector<std::string> report_;  // Lines since the opening dashes; empty outside reports
  std::optional<Killed> killed_;
  bool rank_explained_ = false;
};

}  // namespace shoal
