// A simulated pipeline schedule as text for a terminal.
//
//   rank 0 |0 1 ....B0  ..B1  |
//   rank 1 |..0 B0  1 B1  ....|
//   0 forward of micro-batch 0, B0 backward, . idle; a column is 0.5
//   1f1b: time 9, bubble 33.3%, peak activations by rank 2 1
#pragma once

#include <string>

#include "parallel/pipeline/schedule.h"
#include "parallel/pipeline/simulate.h"

namespace shoal {

// Rows are one a rank, cut to `width` columns; a line then says how much was left out. `simulation`
// is that of `schedule`. Chunks, where there is more than one, are letters: W3b is the weight half
// of micro-batch 3 in chunk 1.
std::string DrawSchedule(const Schedule& schedule, const Simulation& simulation, int width = 100);

}  // namespace shoal
