#include "parallel/pipeline/picture.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <set>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"

namespace shoal {
namespace {

using enum Action::Kind;

std::string LabelOf(const Action& action, int chunks) {
  absl::string_view mark;
  switch (action.kind) {
    case kForward:
      break;
    case kBackward:
      mark = "B";
      break;
    case kBackwardInput:
      mark = "I";
      break;
    case kBackwardWeight:
      mark = "W";
      break;
  }
  const std::string label = absl::StrCat(mark, action.micro_batch);
  if (chunks == 1) return label;
  return label + (action.chunk < 26 ? static_cast<char>('a' + action.chunk) : '?');
}

// Columns per unit of time: the shortest action gets the least whole number of columns at which
// every label fits, with a blank after it.
double ColumnsPerTime(const Schedule& schedule, const Simulation& simulation) {
  double shortest = std::numeric_limits<double>::infinity();
  for (const auto& spans : simulation.spans) {
    for (const auto& span : spans) {
      if (span.end > span.start) shortest = std::min(shortest, span.end - span.start);
    }
  }
  double columns = 1;  // Of the shortest action
  for (int rank = 0; rank < schedule.ranks; ++rank) {
    for (size_t i = 0; i < schedule.actions[rank].size(); ++i) {
      const auto& span = simulation.spans[rank][i];
      if (span.end <= span.start) continue;
      const double label = LabelOf(schedule.actions[rank][i], schedule.chunks).size() + 1.0;
      // Less what floating point adds to a length.
      columns = std::max(columns, std::ceil(label * shortest / (span.end - span.start) - 1e-6));
    }
  }
  return columns / shortest;
}

std::string Legend(const Schedule& schedule, double column_time) {
  std::set<Action::Kind> kinds;
  for (const auto& list : schedule.actions) {
    for (const Action& action : list) kinds.insert(action.kind);
  }
  std::string legend = "0 forward of micro-batch 0";
  if (kinds.contains(kBackward)) legend += ", B0 backward";
  if (kinds.contains(kBackwardInput)) legend += ", I0 input half, W0 weight half";
  if (schedule.chunks > 1) {
    const char last = static_cast<char>('a' + std::min(schedule.chunks, 26) - 1);
    absl::StrAppend(&legend, ", a-", std::string(1, last), " chunk");
  }
  return absl::StrFormat("%s, . idle; a column is %.3g\n", legend, column_time);
}

}  // namespace

std::string DrawSchedule(const Schedule& schedule, const Simulation& simulation, int width) {
  const double columns_per_time = simulation.total > 0 ? ColumnsPerTime(schedule, simulation) : 1.0;
  const auto column = [&](double time) -> int64_t {
    return std::llround(std::min(time * columns_per_time, 1e15));
  };
  const int rank_digits = static_cast<int>(absl::StrCat(schedule.ranks - 1).size());
  const int frame = rank_digits + static_cast<int>(std::string("rank  ||").size());
  const int64_t columns = column(simulation.total);
  const int64_t shown = std::min<int64_t>(columns, std::max(1, width - frame));

  std::string picture;
  for (int rank = 0; rank < schedule.ranks; ++rank) {
    std::string row(shown, '.');
    for (size_t i = 0; i < schedule.actions[rank].size(); ++i) {
      const int64_t begin = column(simulation.spans[rank][i].start);
      const int64_t end = std::min(shown, column(simulation.spans[rank][i].end));
      if (begin >= end) continue;
      std::string cell = LabelOf(schedule.actions[rank][i], schedule.chunks);
      cell.resize(end - begin, ' ');
      row.replace(begin, end - begin, cell);
    }
    absl::StrAppendFormat(&picture, "rank %*d |%s%s\n", rank_digits, rank, row,
                          shown < columns ? ">" : "|");
  }
  if (shown < columns) {
    absl::StrAppendFormat(&picture, "cut at time %.6g of %.6g: %.0f%% left out, it is %d wide\n",
                          shown / columns_per_time, simulation.total,
                          100.0 * (columns - shown) / columns, columns + frame);
  }
  picture += Legend(schedule, 1 / columns_per_time);
  absl::StrAppendFormat(&picture, "%s: time %.6g, bubble %.1f%%, peak activations by rank %s",
                        NameOf(schedule.kind), simulation.total, 100 * simulation.bubble,
                        absl::StrJoin(simulation.peak_activations, " "));
  if (simulation.peak_activations_to_input_half != simulation.peak_activations) {
    absl::StrAppend(&picture, " (to the input half: ",
                    absl::StrJoin(simulation.peak_activations_to_input_half, " "), ")");
  }
  return picture + "\n";
}

}  // namespace shoal
