#include "core/tensorboard_writer.h"

#include <gtest/gtest.h>

#include <cstring>

#include "core/memory_file_system.h"
#include "core/tensorboard.pb.h"

namespace shoal {
namespace {

// The records of an event file, their frames checked except for the checksums.
std::vector<tensorboard::Event> Events(absl::string_view bytes) {
  std::vector<tensorboard::Event> events;
  while (!bytes.empty()) {
    uint64_t length;
    std::memcpy(&length, bytes.data(), sizeof length);
    const absl::string_view data = bytes.substr(12, length);
    EXPECT_EQ(TfRecord(data), bytes.substr(0, length + 16));
    tensorboard::Event event;
    EXPECT_TRUE(event.ParseFromArray(data.data(), static_cast<int>(data.size())));
    events.push_back(event);
    bytes.remove_prefix(length + 16);
  }
  return events;
}

// What tensorboard 2.21's own writer (tensorboard.summary.writer.record_writer) makes of b"shoal".
TEST(TfRecord, EqualsTensorboards) {
  const unsigned char want[] = {0x05, 0,   0,   0,   0,   0,   0,    0,    0xea, 0xb2, 0x04,
                                0x3e, 's', 'h', 'o', 'a', 'l', 0xa5, 0xcd, 0x0a, 0xc4};
  EXPECT_EQ(TfRecord("shoal"), std::string(reinterpret_cast<const char*>(want), sizeof want));
}

TEST(TensorboardSink, WritesScalarsUnderTags) {
  MemoryFileSystem files;
  auto sink = *OpenTensorboardSink(files, "/run/tensorboard", 4, "run:\n  seed: 7\n");
  MetricsRow row;
  row.step = 5;
  row.loss = 2.5;
  row.bytes_sent = 1024;
  row.eval_loss = 1.5;
  row.extra = {{"mfu", 0.5}, {"data/epoch", 2}};
  ASSERT_EQ(sink->Write(row), absl::OkStatus());
  ASSERT_EQ(sink->Close(), absl::OkStatus());

  const auto names = *files.List("/run/tensorboard");
  ASSERT_EQ(names.size(), 1u);
  EXPECT_NE(names[0].find("tfevents"), std::string::npos);
  const auto events = Events(*ReadFile(files, "/run/tensorboard/" + names[0], 1 << 20));
  ASSERT_EQ(events.size(), 4u);
  EXPECT_EQ(events[0].file_version(), "brain.Event:2");
  EXPECT_EQ(events[1].step(), 5);
  EXPECT_EQ(events[1].session_log().status(), 1);
  EXPECT_EQ(events[2].summary().value(0).tensor().string_val(0), "    run:\n      seed: 7\n    ");
  const auto& values = events[3].summary();
  EXPECT_EQ(events[3].step(), 5);
  std::vector<std::pair<std::string, float>> got;
  for (const auto& value : values.value()) got.emplace_back(value.tag(), value.simple_value());
  EXPECT_EQ(got, (std::vector<std::pair<std::string, float>>{{"train/loss", 2.5},
                                                             {"bytes/bytes_sent", 1024},
                                                             {"eval/loss", 1.5},
                                                             {"train/mfu", 0.5},
                                                             {"data/epoch", 2}}));
}

TEST(TensorboardSink, EveryStartHasItsFile) {
  MemoryFileSystem files;
  for (int start = 0; start < 3; ++start)
    ASSERT_TRUE(OpenTensorboardSink(files, "/tb", 0, "").ok());
  EXPECT_EQ(files.List("/tb")->size(), 3u);
}

}  // namespace
}  // namespace shoal
