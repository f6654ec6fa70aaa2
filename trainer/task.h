// What every task is given, and the folders it leaves.
#pragma once

#include <functional>
#include <string>

#include "core/file_system.h"
#include "core/log.h"
#include "core/status.h"

namespace shoal {

struct TaskEnvironment {
  FileSystem& files;
  const Logger& log;
  std::string version;  // Of the program, for checkpoints
  int threads_per_rank = 1;
  int preparation_threads = 1;  // Of rank 0, while the others wait for the data
  bool rewrite_line = false;    // The console is a terminal
};

// "runs/quickstart" -> the folders and files that a run leaves there.
struct RunPaths {
  explicit RunPaths(const std::string& output_dir);
  std::string root, metrics, resolved_recipe, tensorboard, checkpoints, exported, report, samples;
};

// What `task` returns. What fails in tensor mathematics or in a collective throws: it becomes a
// Status here, and nowhere else.
absl::Status Caught(const std::function<absl::Status()>& task);

}  // namespace shoal
