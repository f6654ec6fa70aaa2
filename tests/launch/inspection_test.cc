#include "launch/inspection.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <ATen/ATen.h>
#include <nlohmann/json.hpp>

#include "core/memory_file_system.h"
#include "models/safetensors.h"
#include "parallel/comm/local_communicator.h"

namespace shoal {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

void SaveStep(FileSystem& files, int64_t step) {
  TrainerState state;
  state.set_step(step);
  state.set_tokens(step * 10);
  state.set_recipe_yaml("zero:\n  stage: 3\n");
  state.mutable_layout()->set_ranks(2);
  state.mutable_layout()->set_zero_stage(3);
  state.mutable_layout()->set_shard(2);
  ASSERT_EQ(RunRanks(2,
                     [&](Communicator& comm) {
                       const StatePiece weight = {.name = "weights/w",
                                                  .shape = {3, 4},
                                                  .begin = 6 * comm.rank(),
                                                  .data = at::ones({6})};
                       const StatePiece moment = {.name = "adam_m/w",
                                                  .shape = {3, 4},
                                                  .begin = 0,
                                                  .data = at::ones({12}, at::kBFloat16)};
                       return SaveCheckpoint(files, comm, "/run/checkpoints", state,
                                             {weight, moment}, {.save_total_limit = 9, .warn = {}});
                     }),
            absl::OkStatus());
}

TEST(Inspect, ACheckpoint) {
  MemoryFileSystem files;
  SaveStep(files, 20);
  const auto inspection = Inspect(files, "/run/checkpoints/step-20", /*verify=*/true);
  ASSERT_EQ(inspection.status(), absl::OkStatus());
  EXPECT_EQ(inspection->total_numel(), 24);
  EXPECT_EQ(inspection->total_bytes(), 12 * 4 + 12 * 2);
  const std::string text = InspectionText(*inspection);
  for (const char* part : {"step 20, 200 tokens", "2 ranks, ZeRO stage 3, shard 2", "(3, 4)",
                           "adam_m: 12 elements, 24 B", "every byte matches its checksum"}) {
    EXPECT_THAT(text, HasSubstr(part));
  }
  const auto json = nlohmann::json::parse(InspectionJson(*inspection));
  EXPECT_EQ(json["state"]["recipe"], "zero:\n  stage: 3\n");
  EXPECT_EQ(json["tensors"][1]["name"], "weights/w");
  EXPECT_EQ(json["tensors"][1]["files"].size(), 2u);
  EXPECT_EQ(json["totals"]["bytes"], 72);
}

TEST(Inspect, ARunShowsItsNewestValidCheckpoint) {
  MemoryFileSystem files;
  for (const int64_t step : {9, 10, 11}) SaveStep(files, step);
  ASSERT_EQ(files.Remove("/run/checkpoints/step-11/MANIFEST"), absl::OkStatus());
  for (const char* path : {"/run", "/run/checkpoints"}) {
    const auto inspection = Inspect(files, path, /*verify=*/false);
    ASSERT_EQ(inspection.status(), absl::OkStatus());
    EXPECT_EQ(inspection->path, "/run/checkpoints/step-10");
    EXPECT_THAT(inspection->checkpoints, ElementsAre("step-9", "step-10", "step-11"));
    EXPECT_THAT(inspection->notes, ElementsAre(HasSubstr("skipped step-11")));
  }
}

TEST(Inspect, DamageIsAnErrorThatNamesTheTensor) {
  MemoryFileSystem files;
  SaveStep(files, 20);
  const std::string shard = "/run/checkpoints/step-20/rank-00001.safetensors";
  std::string bytes = *ReadFile(files, shard, 1 << 20);
  bytes.back() ^= 1;
  ASSERT_EQ(WriteFileAtomically(files, shard, bytes), absl::OkStatus());
  EXPECT_EQ(Inspect(files, "/run/checkpoints/step-20", /*verify=*/false).status(),
            absl::OkStatus());
  const absl::Status status = Inspect(files, "/run/checkpoints/step-20", /*verify=*/true).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss);
  EXPECT_THAT(std::string(status.message()), HasSubstr("/w is damaged"));
}

TEST(Inspect, SafetensorsAndHuggingFaceFolders) {
  MemoryFileSystem files;
  ASSERT_EQ(CreateDirectories(files, "/model"), absl::OkStatus());
  ASSERT_EQ(WriteSafetensors(files, "/model/model.safetensors",
                             {{"a", at::ones({2, 3})}, {"b", at::ones({})}}),
            absl::OkStatus());
  const auto file = Inspect(files, "/model/model.safetensors", /*verify=*/false);
  ASSERT_EQ(file.status(), absl::OkStatus());
  EXPECT_EQ(file->total_bytes(), 28);
  ASSERT_EQ(WriteFileAtomically(files, "/model/config.json",
                                R"({"model_type": "llama", "hidden_size": 8})"),
            absl::OkStatus());
  const auto folder = Inspect(files, "/model", /*verify=*/true);
  ASSERT_EQ(folder.status(), absl::OkStatus());
  const std::string text = InspectionText(*folder);
  EXPECT_THAT(text, HasSubstr("model_type: llama"));
  EXPECT_THAT(text, HasSubstr("hidden_size: 8"));
  EXPECT_THAT(text, HasSubstr("hold no checksums"));
}

TEST(Inspect, SaysWhatIsNotThere) {
  MemoryFileSystem files;
  ASSERT_EQ(CreateDirectories(files, "/empty"), absl::OkStatus());
  EXPECT_EQ(Inspect(files, "/nowhere", false).status().code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(Inspect(files, "/empty", false).status().code(), absl::StatusCode::kNotFound);
  ASSERT_EQ(WriteFileAtomically(files, "/empty/text", "hello"), absl::OkStatus());
  EXPECT_FALSE(Inspect(files, "/empty/text", false).ok());
}

}  // namespace
}  // namespace shoal
