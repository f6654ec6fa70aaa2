// What a recorded window says of itself: spans that nest, times that add up, bytes that are the
// communicators' own, waits that point at the rank that was late, and the same bits as without.
#include <chrono>
#include <cmath>
#include <map>
#include <set>
#include <thread>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "core/memory_file_system.h"
#include "parallel/comm/local_communicator.h"
#include "tests/trainer/training_job.h"
#include "trainer/hooks/profile_hook.h"
#include "trainer/profile/rank_profile.h"

namespace shoal {
namespace {

using nlohmann::json;

constexpr int64_t kFirst = 2, kSteps = 2;  // Of the four that a job takes
constexpr double kMilliseconds = 1e-3;

struct Profiled {
  json file;
  std::vector<std::vector<StepMetrics>> steps;  // [rank]
  std::map<std::string, double> metrics;
  std::map<std::string, std::vector<double>> state;
  MetricsRow row;

  std::vector<json> Spans(int rank) const {
    std::vector<json> spans;
    for (const json& event : file.at("traceEvents")) {
      if (event.at("ph") == "X" && event.at("pid") == rank) spans.push_back(event);
    }
    return spans;
  }
  const json& Rank(int rank) const { return file.at("otherData").at("ranks").at(rank); }
};

class Late final : public Hook {
 public:
  explicit Late(std::chrono::milliseconds time) : time_(time) {}
  absl::Status AfterStep(const Trainer& trainer, const StepMetrics& metrics) override {
    std::this_thread::sleep_for(time_);
    return absl::OkStatus();
  }

 private:
  std::chrono::milliseconds time_;
};

class Keep final : public Hook {
 public:
  explicit Keep(std::vector<StepMetrics>& steps) : steps_(steps) {}
  absl::Status AfterStep(const Trainer& trainer, const StepMetrics& metrics) override {
    steps_.push_back(metrics);
    return absl::OkStatus();
  }

 private:
  std::vector<StepMetrics>& steps_;
};

Profiled RunProfiled(const TrainingJob& job, int late_rank = -1) {
  Profiled result;
  result.steps.resize(job.ranks);
  std::mutex mutex;
  MemoryFileSystem files;
  const Logger log(0, 1, stderr);
  const absl::Status status = RunRanks(job.ranks, [&](Communicator& comm) {
    return BuildTrainingJob(job, comm, [&](JobParts parts) -> absl::Status {
      parts.trainer.AddHook(std::make_unique<Keep>(result.steps[comm.rank()]));
      if (comm.rank() == late_rank)
        parts.trainer.AddHook(std::make_unique<Late>(std::chrono::milliseconds(60)));
      parts.trainer.AddHook(std::make_unique<ProfileHook>(
          Profiler::Options{.start_step = kFirst, .steps = kSteps, .directory = ""},
          Profiler::Parts{.ranks = parts.mesh.control(),
                          .files = files,
                          .log = log,
                          .matrix_peak = [] { return 1e12; },
                          .write_row =
                              [&](const MetricsRow& row) {
                                result.row = row;
                                return absl::OkStatus();
                              }}));
      SHOAL_RETURN_IF_ERROR(parts.trainer.Run());
      const std::lock_guard<std::mutex> lock(mutex);
      CollectState(parts.optimizer, result.state);
      return absl::OkStatus();
    });
  });
  EXPECT_TRUE(status.ok()) << status;
  const absl::StatusOr<std::string> text = ReadFile(files, "trace-2-3.json", 1 << 28);
  EXPECT_TRUE(text.ok()) << text.status();
  if (text.ok()) result.file = json::parse(*text);
  for (const auto& [name, value] : result.row.extra) result.metrics[name] = value;
  return result;
}

std::vector<TrainingJob> Jobs() {
  return {{.ranks = 1},
          {.dtype = at::kFloat, .ranks = 2, .stage = 3},
          {.ranks = 2, .stage = 3, .micro_batches = 3, .overlap = true},
          {.ranks = 2, .stage = 2, .overlap = true},
          {.ranks = 2, .tensor = 2},
          {.ranks = 2, .pipeline = 2, .stage = 1, .micro_batches = 3},
          {.ranks = 2, .pipeline = 2, .schedule = ScheduleKind::kZbH1, .micro_batches = 3},
          {.ranks = 4, .tensor = 2, .pipeline = 2, .micro_batches = 2},
          {.dtype = at::kBFloat16, .ranks = 3, .recompute = Recompute::kFull, .stage = 1}};
}

// In whole nanoseconds.
int64_t At(const json& event, const char* key) {
  return std::llround(1000 * event.at(key).get<double>());
}

// Of a lane, spans lie beside or inside one another, the first around all.
void ExpectNested(const Profiled& run, int rank, const std::string& what) {
  std::map<int, std::vector<int64_t>> ends;  // Of the open spans, by lane
  for (const json& span : run.Spans(rank)) {
    std::vector<int64_t>& open = ends[span.at("tid").get<int>()];
    const int64_t begin = At(span, "ts"), end = begin + At(span, "dur");
    while (open.size() > (span.at("tid") == 0 ? 1u : 0u) && open.back() <= begin) open.pop_back();
    if (!open.empty()) {
      ASSERT_LE(end, open.back()) << what << ", rank " << rank << ": " << span;
    }
    open.push_back(end);
  }
}

TEST(Profile, SpansNestAndTimesAddUp) {
  for (const TrainingJob& job : Jobs()) {
    const Profiled run = RunProfiled(job);
    const std::string what = Describe(job);
    for (int rank = 0; rank < job.ranks; ++rank) {
      ExpectNested(run, rank, what);
      const json& profile = run.Rank(rank);
      double sum = 0;
      for (const auto& [kind, seconds] : profile.at("seconds_by_kind").items()) {
        EXPECT_GE(seconds.get<double>(), 0) << what << ": " << kind;
        sum += seconds.get<double>();
        std::string name = kind;
        std::replace(name.begin(), name.end(), ' ', '_');
        EXPECT_EQ(run.metrics.at(absl::StrCat("profile_rank", rank, "_", name, "_seconds")),
                  seconds.get<double>());
      }
      EXPECT_NEAR(sum, profile.at("seconds").get<double>(), 1e-9) << what;
      // The steps' spans last as long as the steps say that they did.
      double recorded = 0, told = 0;
      int steps = 0;
      for (const json& span : run.Spans(rank)) {
        if (!absl::StartsWith(span.at("name").get<std::string>(), "step ")) continue;
        recorded += 1e-6 * span.at("dur").get<double>();
        ++steps;
      }
      EXPECT_EQ(steps, kSteps) << what;
      for (int64_t step = kFirst; step < kFirst + kSteps; ++step)
        told += run.steps[rank][step - 1].seconds;
      EXPECT_NEAR(recorded, told, 50 * kMilliseconds) << what;
      // Spans are in rank 0's time, which the others know to half a round trip.
      EXPECT_LE(recorded, profile.at("seconds").get<double>() + kMilliseconds) << what;
      EXPECT_GT(profile.at("seconds_by_kind").at("matmul").get<double>(), 0) << what;
    }
  }
}

TEST(Profile, BytesAreThoseThatTheCommunicatorsCount) {
  for (const TrainingJob& job : Jobs()) {
    const Profiled run = RunProfiled(job);
    for (int rank = 0; rank < job.ranks; ++rank) {
      int64_t traced = 0, counted = 0;
      for (const json& span : run.Spans(rank)) {
        if (span.at("cat") != "communication" || span.at("args").value("axis", "") == "control" ||
            absl::StartsWith(span.at("name").get<std::string>(), "receive")) {
          continue;
        }
        traced += span.at("args").at("bytes").get<int64_t>();
      }
      for (int64_t step = kFirst; step < kFirst + kSteps; ++step)
        counted += run.steps[rank][step - 1].bytes_sent;
      EXPECT_EQ(traced, counted) << Describe(job) << ", rank " << rank;
      if (job.ranks > 1 && rank == 0) {
        EXPECT_GT(traced, 0) << Describe(job);
      }
    }
  }
}

TEST(Profile, BlocksAndCollectivesStandOnTheLaneWhereTheyRan) {
  for (bool overlap : {false, true}) {
    const Profiled run = RunProfiled({.ranks = 2, .stage = 3, .overlap = overlap});
    std::map<std::string, std::set<int>> lanes;  // By name
    std::map<std::string, int> forwards;
    for (const json& span : run.Spans(1)) {
      const std::string name = span.at("name");
      lanes[name].insert(span.at("tid").get<int>());
      if (absl::StartsWith(name, "forward ") && span.at("args").at("micro_batch") == 0)
        ++forwards[name];
    }
    const std::set<int> communication = {overlap ? 1 : 0};
    EXPECT_EQ(lanes.at("all-gather"), communication);
    EXPECT_EQ(lanes.at("reduce-scatter"), communication);
    EXPECT_EQ(lanes.at("gather weights layer 1"), communication);
    EXPECT_EQ(lanes.at("reduce gradients head"), communication);
    EXPECT_EQ(lanes.at("backward layer 0"), std::set<int>{0});
    // Where the step came too early for what it needs: that is up to the threads.
    for (int lane : lanes["await communication"]) EXPECT_TRUE(overlap && lane == 0) << lane;
    const std::map<std::string, int> want = {{"forward stage 0", kSteps},
                                             {"forward embedding", kSteps},
                                             {"forward layer 0", kSteps},
                                             {"forward layer 1", kSteps},
                                             {"forward head", kSteps}};
    EXPECT_EQ(forwards, want);
    const double background = run.Rank(1).at("background_communication_seconds");
    EXPECT_EQ(background > 0, overlap);
    EXPECT_LE(run.Rank(1).at("hidden_communication_seconds").get<double>(), background);
  }
}

TEST(Profile, AStragglerIsFoundByWhereTheOthersWait) {
  for (bool overlap : {false, true}) {
    const Profiled run = RunProfiled({.ranks = 3, .stage = 3, .overlap = overlap}, /*late_rank=*/1);
    const auto waited = [&](int rank) {
      return run.Rank(rank).at("seconds_by_kind").at("waiting").get<double>();
    };
    // Late after both steps; what it does after the last one is in the window and waited for by
    // nobody.
    const double lost = (kSteps - 1) * 60 * kMilliseconds;
    for (int rank : {0, 2}) {
      EXPECT_GE(waited(rank), 0.8 * lost) << overlap;
      EXPECT_GE(waited(rank), waited(1) + 0.5 * lost) << overlap;
      // A step begins with the count of its targets, over all ranks.
      const auto longest = run.Rank(rank).at("waited_in").at(0);
      EXPECT_EQ(longest.at(0), "all-reduce over control") << longest;
      EXPECT_GE(longest.at(1).get<double>(), 0.7 * lost) << longest;
    }
    const std::vector<std::string> table = run.file.at("otherData").at("table");
    EXPECT_THAT(table, testing::Contains(
                           testing::AllOf(testing::HasSubstr("rank 2 waited 0."),
                                          testing::HasSubstr("% in all-reduce over control"))));
  }
}

TEST(Profile, PipelineReceivesTellWaitingFromMoving) {
  const Profiled run = RunProfiled({.ranks = 2, .pipeline = 2, .micro_batches = 3});
  int waits = 0, receives = 0;
  int64_t receive_end = 0;
  for (const json& span : run.Spans(1)) {
    const std::string name = span.at("name");
    if (name == "receive" && span.at("args").value("axis", "") == "pipeline") {
      ++receives;
      receive_end = At(span, "ts") + At(span, "dur");
      EXPECT_GT(span.at("args").at("bytes").get<int64_t>(), 0);
    }
    waits += name == "wait" && At(span, "ts") + At(span, "dur") <= receive_end;
  }
  EXPECT_EQ(receives, 3 * kSteps);  // Activations of each micro-batch
  EXPECT_GT(waits, 0);              // For the first stage to fill the pipeline
  bool named = false;
  for (const json& wait : run.Rank(1).at("waited_in")) named |= wait.at(0) == "receive of stage 1";
  EXPECT_TRUE(named) << run.Rank(1).at("waited_in");
}

TEST(Profile, RecordingChangesNoBit) {
  for (const TrainingJob& job : Jobs()) {
    const TrainingResult plain = RunTrainingJob(job);
    const Profiled run = RunProfiled(job);
    ExpectSameBits({.steps = run.steps[0], .state = run.state}, plain, Describe(job));
  }
}

TEST(Profile, ClocksAreBroughtTogether) {
  std::mutex mutex;
  const absl::Status status = RunRanks(4, [&](Communicator& comm) {
    // Seconds apart, and drifting apart by 5 % of the time.
    const int64_t begin = TraceNow();
    const auto clock = [&] {
      const int64_t now = TraceNow();
      return now + comm.rank() * 3'000'000'000 +
             static_cast<int64_t>(0.05 * comm.rank() * static_cast<double>(now - begin));
    };
    const ClockOffset before = MeasureClockOffset(comm, clock);
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
    const int64_t real = TraceNow(), skewed = clock();
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
    const ClockOffset after = MeasureClockOffset(comm, clock);
    const std::lock_guard<std::mutex> lock(mutex);
    // Half a round trip, and as much again for the threads that were stopped in between.
    const int64_t bound = std::max(before.round_trip_ns, after.round_trip_ns) + 200'000;
    EXPECT_NEAR(ToRankZero(before, after, skewed), real, bound) << "rank " << comm.rank();
    EXPECT_EQ(before.offset_ns == 0, comm.rank() == 0);
    return absl::OkStatus();
  });
  EXPECT_TRUE(status.ok()) << status;
}

TEST(Profile, ARunThatEndsInsideTheWindowIsWrittenAsFarAsItCame) {
  MemoryFileSystem files;
  const Logger log(0, 1, stderr);
  const absl::Status status = RunRanks(2, [&](Communicator& comm) {
    TrainingJob job{.ranks = 2, .steps = 3};
    return BuildTrainingJob(job, comm, [&](JobParts parts) -> absl::Status {
      parts.trainer.AddHook(std::make_unique<ProfileHook>(
          Profiler::Options{.start_step = 3, .steps = 9, .directory = ""},
          Profiler::Parts{.ranks = parts.mesh.control(),
                          .files = files,
                          .log = log,
                          .matrix_peak = [] { return 1e12; },
                          .write_row = [](const MetricsRow&) { return absl::OkStatus(); }}));
      return parts.trainer.Run();
    });
  });
  EXPECT_TRUE(status.ok()) << status;
  EXPECT_TRUE(ReadFile(files, "trace-3-3.json", 1 << 28).ok());
}

}  // namespace
}  // namespace shoal
