// Records a few steps of a run on every rank, and says where their time went: a trace file, a table
// in the log, a row of metrics.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "core/file_system.h"
#include "core/log.h"
#include "core/metrics.h"
#include "core/recipe.h"
#include "core/trace.h"
#include "parallel/comm/communicator.h"
#include "trainer/profile/clock.h"

namespace shoal {

class Profiler {
 public:
  struct Options {
    int64_t start_step = 1;  // Counted from where the run starts or resumes
    int64_t steps = 0;       // 0: nothing is recorded
    std::string directory;   // Of trace-FIRST-LAST.json
  };
  // Borrowed; all outlive the profiler.
  struct Parts {
    Communicator& ranks;  // All of the run
    FileSystem& files;
    const Logger& log;
    // FLOP/s of this rank's threads, asked outside the window; 0: products do not run there.
    std::function<double()> matrix_peak;
    std::function<absl::Status(const MetricsRow&)> write_row;
  };

  // Collective over parts.ranks, as are the calls below.
  Profiler(const Options& options, Parts parts);

  // After each step (of the whole run, from 1) and all that belongs to it.
  absl::Status AfterStep(int64_t step);
  // What is recorded by then, if the run ends inside the window.
  absl::Status AtEnd(int64_t step);

 private:
  void Begin();
  absl::Status Finish(int64_t step);

  Options options_;
  Parts parts_;
  int64_t done_ = 0;  // Steps since the run started or resumed
  double matrix_peak_ = 0;
  ClockOffset before_;
  std::unique_ptr<TraceRecorder> recorder_;  // While recording
};

Profiler::Options ProfilerOptionsOf(const Recipe& recipe);

}  // namespace shoal
