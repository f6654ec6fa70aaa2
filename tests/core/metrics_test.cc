#include "core/metrics.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include <nlohmann/json.hpp>

#include "core/faulty_file_system.h"
#include "core/memory_file_system.h"
#include "core/metrics_console.h"
#include "core/metrics_jsonl.h"

namespace shoal {
namespace {

using ::testing::HasSubstr;

MetricsRow RowOf(int64_t step) {
  MetricsRow row;
  row.step = step;
  row.loss = 1.0 / static_cast<double>(step + 2);
  row.grad_norm = 0.1;
  row.learning_rate = 3e-4;
  row.tokens = step * 4096;
  row.tokens_per_second = 12345.678;
  row.step_seconds = 0.25;
  row.peak_rss_bytes = 312'000'000;
  row.bytes_sent = 9'007'199'254'740'993;  // more than a float64 holds
  return row;
}

std::string Content(FileSystem& files, const std::string& path) {
  return *ReadFile(files, path, 1 << 20);
}

void WriteRows(FileSystem& files, int64_t last_step, int64_t first, int64_t last) {
  auto sink = OpenJsonlSink(files, "/metrics.jsonl", last_step);
  ASSERT_EQ(sink.status(), absl::OkStatus());
  for (int64_t step = first; step <= last; ++step)
    ASSERT_EQ((*sink)->Write(RowOf(step)), absl::OkStatus());
  ASSERT_EQ((*sink)->Close(), absl::OkStatus());
}

TEST(MetricsJson, NumbersReadBackToTheLastBit) {
  for (const double loss : {1.0 / 3, 2.0, 1e-320, 1.7976931348623157e308, -0.0, 0.1 + 0.2}) {
    MetricsRow row = RowOf(7);
    row.loss = loss;
    row.extra = {{"mfu \"share\"", loss}};
    const auto json = nlohmann::json::parse(MetricsJson(row));
    for (const double got : {json["loss"].get<double>(), json["mfu \"share\""].get<double>()}) {
      EXPECT_EQ(std::signbit(got), std::signbit(loss));
      EXPECT_EQ(got, loss);
    }
    EXPECT_EQ(json["bytes_sent"].get<int64_t>(), 9'007'199'254'740'993);
    EXPECT_FALSE(json.contains("eval_loss"));
    EXPECT_FALSE(json.contains("non_finite"));
  }
}

TEST(MetricsJson, WhatIsNotFiniteIsNullAndTold) {
  MetricsRow row;
  row.step = 3;
  row.loss = std::nan("");
  row.grad_norm = std::numeric_limits<double>::infinity();
  row.eval_loss = -std::numeric_limits<double>::infinity();
  EXPECT_EQ(MetricsJson(row),
            R"({"step":3,"loss":null,"grad_norm":null,"eval_loss":null,)"
            R"("non_finite":{"loss":"nan","grad_norm":"inf","eval_loss":"-inf"}})");
}

TEST(JsonlSink, AResumedRunsFileIsAsIfNeverInterrupted) {
  MemoryFileSystem whole, resumed;
  WriteRows(whole, 0, 1, 9);
  WriteRows(resumed, 0, 1, 6);
  auto torn = *resumed.OpenForWrite("/metrics.jsonl", OpenMode::kAppend);
  ASSERT_EQ(torn->Append("{\"step\":7,\"lo"), absl::OkStatus());
  WriteRows(resumed, 4, 5, 9);
  EXPECT_EQ(Content(resumed, "/metrics.jsonl"), Content(whole, "/metrics.jsonl"));
}

TEST(JsonlSink, ANewRunBeginsAnew) {
  MemoryFileSystem files;
  WriteRows(files, 0, 1, 6);
  WriteRows(files, 0, 1, 2);
  EXPECT_EQ(Content(files, "/metrics.jsonl"),
            MetricsJson(RowOf(1)) + "\n" + MetricsJson(RowOf(2)) + "\n");
}

TEST(JsonlSink, EveryRowIsThereWhenWriteReturns) {
  MemoryFileSystem files;
  auto sink = *OpenJsonlSink(files, "/metrics.jsonl", 0);
  ASSERT_EQ(sink->Write(RowOf(1)), absl::OkStatus());
  EXPECT_EQ(Content(files, "/metrics.jsonl"), MetricsJson(RowOf(1)) + "\n");
}

TEST(JsonlSink, RefusesAnothersFile) {
  MemoryFileSystem files;
  for (const char* text :
       {"my notes\n", "{\"step\":1}\n[1]\n", "{\"step\":\"1\"}\n", "{}\n", "\xff\xfe\n"}) {
    ASSERT_EQ(WriteFileAtomically(files, "/metrics.jsonl", text), absl::OkStatus());
    const absl::Status status = OpenJsonlSink(files, "/metrics.jsonl", 5).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition) << text;
    EXPECT_EQ(Content(files, "/metrics.jsonl"), text);
  }
}

TEST(JsonlSink, AFaultWhileResumingLosesNoRow) {
  for (int64_t call = 1;; ++call) {
    MemoryFileSystem memory;
    WriteRows(memory, 0, 1, 6);
    const std::string before = Content(memory, "/metrics.jsonl");
    FaultyFileSystem files(memory, {.kind = Fault::Kind::kCrashTorn, .call = call});
    const bool opened = OpenJsonlSink(files, "/metrics.jsonl", 4).ok();
    const std::string after = Content(memory, "/metrics.jsonl");
    EXPECT_TRUE(after == before || after == before.substr(0, after.size())) << after;
    EXPECT_THAT(after, HasSubstr(MetricsJson(RowOf(4)))) << call;
    if (opened) break;
  }
}

TEST(ConsoleLine, Aligned) {
  EXPECT_EQ(ConsoleLine(RowOf(12), 1000, 200),
            "step   12/1000  loss  0.0714  grad norm 0.1  lr 3.00e-04  12.3k tokens/s  left 3m 20s "
            " 312 MB/rank");
  MetricsRow eval;
  eval.step = 200;
  eval.eval_loss = std::log(8.0);
  EXPECT_EQ(ConsoleLine(eval, 0, -1), "step  200  held-out loss 2.0794  perplexity 8.00");
}

TEST(ConsoleLine, HumanNumbers) {
  for (const auto& [seconds, text] : std::vector<std::pair<double, std::string>>{{0.2, "0s"},
                                                                                 {59.6, "1m 00s"},
                                                                                 {75, "1m 15s"},
                                                                                 {4000, "1h 06m"},
                                                                                 {90000, "1d 01h"},
                                                                                 {NAN, "?"},
                                                                                 {-1, "?"}}) {
    EXPECT_EQ(HumanSeconds(seconds), text);
  }
  for (const auto& [bytes, text] : std::vector<std::pair<double, std::string>>{{0, "0 B"},
                                                                               {999, "999 B"},
                                                                               {1000, "1.00 kB"},
                                                                               {9999, "10.0 kB"},
                                                                               {999999, "1.00 MB"},
                                                                               {312e6, "312 MB"}}) {
    EXPECT_EQ(HumanBytes(bytes), text);
  }
}

TEST(ConsoleSink, RewritesItsLineOnATerminalAndKeepsEvaluations) {
  char* text = nullptr;
  size_t size = 0;
  std::FILE* out = ::open_memstream(&text, &size);
  {
    const auto sink = MakeConsoleSink(out, {.max_steps = 10, .rewrite_line = true});
    MetricsRow eval;
    eval.step = 2;
    eval.eval_loss = 1;
    ASSERT_EQ(sink->Write(RowOf(1)), absl::OkStatus());
    ASSERT_EQ(sink->Write(RowOf(2)), absl::OkStatus());
    ASSERT_EQ(sink->Write(eval), absl::OkStatus());
    ASSERT_EQ(sink->Write(RowOf(3)), absl::OkStatus());
    ASSERT_EQ(sink->Close(), absl::OkStatus());
  }
  std::fclose(out);
  const std::string got(text, size);
  std::free(text);
  const std::string clear = "\r\033[K";
  EXPECT_EQ(got.find('\n'), got.find("perplexity 2.72") + 15) << got;
  EXPECT_EQ(std::count(got.begin(), got.end(), '\n'), 2) << got;
  EXPECT_EQ(got.substr(0, clear.size()), clear);
  EXPECT_EQ(got.back(), '\n');
}

}  // namespace
}  // namespace shoal
