// How often the host waits for the device while it generates.
#include <gtest/gtest.h>

#include "inference/loaded_model.h"
#include "inference/score.h"
#include "tests/fake_device/fake_kernels.h"
#include "tests/inference/rollout_job.h"

namespace shoal {
namespace {

class GenerationWaits : public testing::TestWithParam<bool> {
 protected:
  GenerationWaits() {
    if (GetParam()) kernels_ = std::make_unique<FakeDeviceKernels>();
    PosixFileSystem files;
    loaded_ =
        *LoadModelForInference(files, "tests/fixtures/models/llama", at::kFloat, {}, FakeDevice());
  }
  template <class F>
  static size_t WaitsOf(F&& f) {
    const size_t before = FakeDeviceWaits();
    f();
    return FakeDeviceWaits() - before;
  }

  std::unique_ptr<FakeDeviceKernels> kernels_;
  LoadedModel loaded_;
};

INSTANTIATE_TEST_SUITE_P(All, GenerationWaits, testing::Bool(), [](const auto& info) {
  return std::string(info.param ? "Emulated" : "Plain");
});

// For the logits: of a step's sequences, however many, together.
TEST_P(GenerationWaits, OnceAToken) {
  Generator generator(loaded_.model, loaded_.weights);
  std::vector<GenerationRequest> requests;
  for (int64_t i = 0; i < 5; ++i) {
    requests.push_back({.prompt = std::vector<int64_t>(1 + 6 * i, 4 + i),
                        .max_new_tokens = 1,
                        .sampling = {.temperature = 1},
                        .want_logprobs = true});
  }
  const auto generate = [&](int64_t tokens) {
    for (GenerationRequest& request : requests) request.max_new_tokens = tokens;
    return WaitsOf([&] { ASSERT_TRUE(generator.Generate(requests).ok()); });
  };
  generate(20);  // Makes the rotary table, which waits for its copies
  EXPECT_EQ(generate(1), 1u);
  EXPECT_EQ(generate(20), 20u);

  const GenerationRequest request{.prompt = {5, 6, 7}, .max_new_tokens = 15};
  EXPECT_EQ(WaitsOf([&] { ASSERT_TRUE(generator.SearchBeams(request, {.num_beams = 3}).ok()); }),
            15u);
}

TEST_P(GenerationWaits, OnceAPassOfScores) {
  const std::vector<std::vector<int64_t>> rows = {{4, 5, 6}, {7, 8, 9}, {4, 4}};
  const auto score = [&] { ASSERT_TRUE(ScoreTokens(loaded_.model, loaded_.weights, rows).ok()); };
  score();
  EXPECT_EQ(WaitsOf(score), 2u);
}

// For the hash of what is trained, and of what is generated with.
TEST_P(GenerationWaits, TwiceARefresh) {
  const absl::Status status =
      OnDevice(c10::kPrivateUse1, *MakeSingleRankCommunicator(), [&](Communicator& comm) {
        return BuildTrainingJob({.dtype = at::kFloat}, comm, [&](JobParts parts) -> absl::Status {
          SHOAL_ASSIGN_OR_RETURN(
              const auto engine,
              RolloutEngine::Create(
                  {.model = parts.model, .parameters = parts.parameters, .mesh = parts.mesh}));
          EXPECT_EQ(WaitsOf([&] { EXPECT_TRUE(engine->Refresh().ok()); }), 2u);
          return absl::OkStatus();
        });
      });
  EXPECT_TRUE(status.ok()) << status;
}

}  // namespace
}  // namespace shoal
