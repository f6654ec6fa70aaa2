#include "trainer/profile/profiler.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/full.h>

#include <cstring>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "checkpoint/agreement.h"
#include "core/status.h"
#include "trainer/profile/rank_profile.h"
#include "trainer/profile/trace_file.h"

namespace shoal {
namespace {

// Of every rank, in rank order, on rank 0; nothing elsewhere. Collective.
std::vector<std::string> StringsOnRankZero(Communicator& ranks, const std::string& mine) {
  if (ranks.rank() != 0) {
    const auto bytes = static_cast<int64_t>(mine.size());
    ranks.Send(at::full({1}, bytes, at::kLong), 0);
    at::Tensor text = at::empty({bytes}, at::kByte);
    std::memcpy(text.mutable_data_ptr(), mine.data(), mine.size());
    ranks.Send(text, 0);
    return {};
  }
  std::vector<std::string> all = {mine};
  for (int peer = 1; peer < ranks.size(); ++peer) {
    at::Tensor bytes = at::empty({1}, at::kLong);
    ranks.Recv(bytes, peer);
    at::Tensor text = at::empty({*bytes.const_data_ptr<int64_t>()}, at::kByte);
    ranks.Recv(text, peer);
    all.emplace_back(static_cast<const char*>(text.const_data_ptr()), text.nbytes());
  }
  return all;
}

int64_t BroadcastNumber(Communicator& ranks, int64_t number) {
  at::Tensor cell = at::full({1}, number, at::kLong);
  ranks.Broadcast(cell, /*root=*/0);
  return *cell.const_data_ptr<int64_t>();
}

}  // namespace

Profiler::Options ProfilerOptionsOf(const Recipe& recipe) {
  return {.start_step = recipe.profiling().start_step(),
          .steps = recipe.profiling().steps(),
          .directory = recipe.run().output_dir()};
}

Profiler::Profiler(const Options& options, Parts parts)
    : options_(options), parts_(std::move(parts)) {
  if (options_.steps > 0 && options_.start_step == 1) Begin();
}

void Profiler::Begin() {
  matrix_peak_ = parts_.matrix_peak();
  before_ = MeasureClockOffset(parts_.ranks);
  parts_.ranks.Barrier();
  recorder_ = std::make_unique<TraceRecorder>();
  recorder_->Begin();
}

absl::Status Profiler::AfterStep(int64_t step) {
  if (options_.steps == 0) return absl::OkStatus();
  ++done_;
  if (recorder_ && done_ == options_.start_step + options_.steps - 1) return Finish(step);
  if (done_ + 1 == options_.start_step) Begin();
  return absl::OkStatus();
}

absl::Status Profiler::AtEnd(int64_t step) {
  if (options_.steps > 0 && done_ < options_.start_step && !recorder_) {
    parts_.log.Info(absl::StrFormat(
        "profile   nothing: the run ended after %d steps, profiling.start_step is %d", done_,
        options_.start_step));
  }
  return recorder_ ? Finish(step) : absl::OkStatus();
}

absl::Status Profiler::Finish(int64_t step) {
  recorder_->End();
  const std::unique_ptr<TraceRecorder> recorder = std::move(recorder_);
  const std::vector<const TraceLane*> lanes = recorder->lanes();
  const ClockOffset after = MeasureClockOffset(parts_.ranks);
  const int64_t origin = BroadcastNumber(parts_.ranks, lanes[0]->events()[0].begin_ns);
  RankProfile profile = ProfileOf(lanes);
  profile.matrix_peak = matrix_peak_;
  profile.clock_round_trip =
      static_cast<double>(std::max(before_.round_trip_ns, after.round_trip_ns)) * 1e-9;
  const std::vector<std::string> profiles = StringsOnRankZero(parts_.ranks, ToJson(profile).dump());
  const std::vector<std::string> events =
      StringsOnRankZero(parts_.ranks, TraceEvents({.rank = parts_.ranks.rank(),
                                                   .lanes = lanes,
                                                   .before = before_,
                                                   .after = after,
                                                   .origin_ns = origin}));
  absl::Status written = absl::OkStatus();
  if (parts_.ranks.rank() == 0) {
    const int64_t first = step - (done_ - options_.start_step);
    const std::string path =
        JoinPath(options_.directory, absl::StrCat("trace-", first, "-", step, ".json"));
    std::vector<RankProfile> ranks;
    nlohmann::json tables = nlohmann::json::array();
    for (const std::string& text : profiles) {
      tables.push_back(nlohmann::json::parse(text));
      ranks.push_back(RankProfileFromJson(tables.back()));
    }
    const std::vector<std::string> lines = ProfileLines(ranks);
    parts_.log.Info(absl::StrFormat("profile   steps %d to %d: %s", first, step, path));
    for (const std::string& line : lines) parts_.log.Info(absl::StrCat("          ", line));
    written = WriteFileAtomically(
        parts_.files, path,
        TraceFile(events, {{"first_step", first},
                           {"last_step", step},
                           {"clocks",
                            "ping-pong with rank 0, the quickest of 16 exchanges before "
                            "and after the window, linear between them"},
                           {"ranks", tables},
                           {"table", lines}}));
    MetricsRow row{.step = step, .eval_loss = {}, .extra = ProfileMetrics(ranks)};
    if (written.ok()) written = parts_.write_row(row);
  }
  return Agree(parts_.ranks, written);
}

}  // namespace shoal
