#include "parallel/pipeline/schedule.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "core/status.h"
#include "parallel/pipeline/action_lists.h"

namespace shoal {

absl::string_view NameOf(ScheduleKind kind) {
  switch (kind) {
    case ScheduleKind::kGpipe:
      return "gpipe";
    case ScheduleKind::k1F1B:
      return "1f1b";
    case ScheduleKind::kInterleaved1F1B:
      return "interleaved_1f1b";
    case ScheduleKind::kZbH1:
      return "zb_h1";
    case ScheduleKind::kZbV:
      return "zbv";
  }
  return "unknown";
}

std::string Describe(const Action& action) {
  absl::string_view name;
  switch (action.kind) {
    case Action::Kind::kForward:
      name = "forward";
      break;
    case Action::Kind::kBackward:
      name = "backward";
      break;
    case Action::Kind::kBackwardInput:
      name = "input half";
      break;
    case Action::Kind::kBackwardWeight:
      name = "weight half";
      break;
  }
  return absl::StrCat(name, " of chunk ", action.chunk, ", micro-batch ", action.micro_batch);
}

int Schedule::StageOf(int rank, int chunk) const {
  if (kind == ScheduleKind::kZbV && chunk == 1) return 2 * ranks - 1 - rank;
  return chunk * ranks + rank;
}

Schedule::Place Schedule::PlaceOf(int stage) const {
  const int chunk = stage / ranks;
  if (kind == ScheduleKind::kZbV && chunk == 1) return {2 * ranks - 1 - stage, 1};
  return {stage % ranks, chunk};
}

absl::Status CheckScheduleSize(ScheduleKind kind, int ranks, int micro_batches, int chunks) {
  for (const auto& [name, size] :
       {std::pair("ranks", ranks), {"micro-batches", micro_batches}, {"chunks", chunks}}) {
    if (size >= 1) continue;
    return absl::InvalidArgumentError(
        absl::StrCat("a pipeline schedule needs at least 1 of ", name, ", got ", size));
  }
  if (kind == ScheduleKind::kZbV && chunks != 2) {
    return absl::InvalidArgumentError(
        absl::StrCat("schedule zbv lays 2 chunks a rank in a V, got ", chunks, ": set 2"));
  }
  const bool takes_chunks = kind == ScheduleKind::kZbV || kind == ScheduleKind::kInterleaved1F1B;
  if (!takes_chunks && chunks != 1) {
    return absl::InvalidArgumentError(absl::StrCat("schedule ", NameOf(kind),
                                                   " has 1 chunk a rank, got ", chunks,
                                                   ": set 1, or take interleaved_1f1b"));
  }
  return absl::OkStatus();
}

absl::StatusOr<Schedule> MakeSchedule(ScheduleKind kind, int ranks, int micro_batches, int chunks) {
  SHOAL_RETURN_IF_ERROR(CheckScheduleSize(kind, ranks, micro_batches, chunks));
  Schedule schedule{.kind = kind,
                    .ranks = ranks,
                    .micro_batches = micro_batches,
                    .chunks = chunks,
                    .actions = {}};
  for (int rank = 0; rank < ranks; ++rank) {
    const ListSize size{.ranks = ranks, .rank = rank, .micro_batches = micro_batches};
    switch (kind) {
      case ScheduleKind::kGpipe:
        schedule.actions.push_back(GpipeList(size));
        break;
      case ScheduleKind::k1F1B:
        schedule.actions.push_back(OneFOneBList(size));
        break;
      case ScheduleKind::kInterleaved1F1B:
        schedule.actions.push_back(InterleavedList(size, chunks));
        break;
      case ScheduleKind::kZbH1:
        schedule.actions.push_back(ZbH1List(size));
        break;
      case ScheduleKind::kZbV:
        schedule.actions.push_back(ZbVList(size));
        break;
    }
  }
  return schedule;
}

}  // namespace shoal
