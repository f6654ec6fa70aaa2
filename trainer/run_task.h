// A recipe's task, from data to export, on the ranks of a job.
#pragma once

#include <string>

#include "core/file_system.h"
#include "core/log.h"
#include "core/recipe.h"
#include "parallel/comm/communicator.h"

namespace shoal {

struct TaskEnvironment {
  FileSystem& files;
  const Logger& log;
  std::string version;  // Of the program, for checkpoints
  int threads_per_rank = 1;
  int preparation_threads = 1;  // Of rank 0, while the others wait for the data
  bool rewrite_line = false;    // The console is a terminal
};

// Does what the recipe asks. Collective: every rank of `world` calls it with the same recipe. What
// fails in tensor mathematics or in a collective comes back as a Status here.
absl::Status RunTask(const LoadedRecipe& recipe, Communicator& world,
                     const TaskEnvironment& environment);

// "runs/quickstart" -> the folders and files that a run leaves there.
struct RunPaths {
  explicit RunPaths(const std::string& output_dir);
  std::string root, metrics, resolved_recipe, tensorboard, checkpoints, exported, report, samples;
};

}  // namespace shoal
