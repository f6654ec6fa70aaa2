// Rollouts with the weights of models in training: every mesh generates what one rank does, for one
// gathering of the weights whose bytes are counted.
#include <gmock/gmock.h>

#include "tests/inference/rollout_job.h"

namespace shoal {
namespace {

using Layout = GatheredWeights::Layout;

TEST(RolloutEngine, EveryMeshGeneratesWhatOneRankDoes) {
  for (const char* model : {"llama", "llama-tied", "llama-uneven", "gpt2", "dots1"}) {
    const RolloutOutcome want = RunRollout({.model = model}, Layout::kWhole);
    ASSERT_EQ(want.results.size(), 9u);
    EXPECT_NE(want.hash, want.stale_hash);
    std::vector<TrainingJob> jobs;
    for (int stage : {0, 1, 2, 3}) {
      jobs.push_back({.ranks = 2, .stage = stage});
      jobs.push_back({.ranks = 3, .stage = stage, .overlap = true});
      jobs.push_back({.ranks = 4, .replicate = 2, .stage = stage});
      if (std::string(model) == "gpt2") continue;  // Three heads
      jobs.push_back({.ranks = 4, .tensor = 2, .stage = stage});
    }
    jobs.push_back({.ranks = 2, .pipeline = 2, .micro_batches = 2});
    jobs.push_back({.ranks = 4, .pipeline = 2, .stage = 3, .micro_batches = 2});
    jobs.push_back({.ranks = 2,
                    .pipeline = 2,
                    .schedule = ScheduleKind::kZbV,
                    .chunks = 2,
                    .micro_batches = 2});
    if (std::string(model) == "gpt2") {
      jobs.push_back({.ranks = 3, .tensor = 3, .stage = 0});
    } else {
      jobs.push_back(
          {.ranks = 4, .tensor = 2, .sequence_parallel = false, .pipeline = 2, .micro_batches = 2});
    }
    for (TrainingJob& job : jobs) {
      job.model = model;
      for (Layout layout : {Layout::kWhole, Layout::kTensor}) {
        if (layout == Layout::kTensor && job.tensor == 1) continue;
        ExpectSameRollout(
            RunRollout(job, layout), want,
            absl::StrCat(Describe(job), layout == Layout::kWhole ? ", whole" : ", tensor"));
      }
    }
  }
}

// The formulas of gathered_weights.h; and not a byte more for any number of tokens.
TEST(RolloutEngine, GathersOnceAndSendsNothingATokens) {
  constexpr int64_t kBytes = 8;  // float64
  for (int stage : {0, 2, 3}) {
    SCOPED_TRACE(stage);
    const RolloutOutcome sharded = RunRollout({.ranks = 4, .stage = stage}, Layout::kWhole);
    EXPECT_EQ(sharded.gathered_bytes, stage == 3 ? sharded.shard_padded * kBytes * 3 / 4 : 0);
    EXPECT_EQ(sharded.generated_bytes, 0);
    EXPECT_EQ(sharded.held_bytes, stage == 3 ? sharded.local_numel * kBytes : 0);
    const RolloutOutcome tensor =
        RunRollout({.ranks = 2, .tensor = 2, .stage = stage}, Layout::kTensor);
    EXPECT_EQ(tensor.gathered_bytes, 0);
    EXPECT_GT(tensor.generated_bytes, 0) << "activations";
    const RolloutOutcome whole =
        RunRollout({.ranks = 2, .tensor = 2, .stage = stage}, Layout::kWhole);
    EXPECT_EQ(whole.gathered_bytes, whole.local_numel * kBytes) << "parts are equally long here";
    EXPECT_EQ(whole.generated_bytes, 0);
  }
  const RolloutOutcome staged =
      RunRollout({.ranks = 2, .pipeline = 2, .micro_batches = 2}, Layout::kWhole);
  EXPECT_EQ(staged.gathered_bytes, staged.local_numel * kBytes);
  EXPECT_EQ(staged.generated_bytes, 0);
}

// In deterministic mode the stages agree to the last bit, and so do hashes and log-probabilities.
TEST(RolloutEngine, StagesAgreeToTheLastBit) {
  for (at::ScalarType dtype : {at::kFloat, at::kBFloat16}) {
    const RolloutOutcome want =
        RunRollout({.dtype = dtype, .ranks = 2, .stage = 0}, Layout::kWhole);
    for (int stage : {1, 2, 3}) {
      const RolloutOutcome got =
          RunRollout({.dtype = dtype, .ranks = 2, .stage = stage}, Layout::kWhole);
      EXPECT_EQ(got.hash, want.hash) << "stage " << stage;
      for (size_t i = 0; i < want.results.size(); ++i) {
        EXPECT_EQ(got.results[i].tokens, want.results[i].tokens);
        EXPECT_EQ(got.results[i].logprobs, want.results[i].logprobs);
      }
    }
  }
}

TEST(RolloutEngine, TellsWeightsThatHaveChanged) {
  const absl::Status status = RunRanks(2, [](Communicator& comm) {
    const TrainingJob job{.ranks = 2, .stage = 3};
    return BuildTrainingJob(job, comm, [&](JobParts parts) -> absl::Status {
      SHOAL_ASSIGN_OR_RETURN(
          const auto engine,
          RolloutEngine::Create(
              {.model = parts.model, .parameters = parts.parameters, .mesh = parts.mesh}));
      SHOAL_RETURN_IF_ERROR(engine->Refresh());
      EXPECT_EQ(engine->weights().HashOfSource(), engine->weights().hash());
      SHOAL_RETURN_IF_ERROR(parts.trainer.TrainStep().status());
      EXPECT_NE(engine->weights().HashOfSource(), engine->weights().hash());
      return absl::OkStatus();
    });
  });
  EXPECT_TRUE(status.ok()) << status;
}

TEST(HashElements, PartsAddUpAndPlacesMatter) {
  const Tensor x = at::arange(1000, at::kFloat);
  const uint64_t whole = HashElements("w", 0, x);
  EXPECT_EQ(whole, HashElements("w", 0, x.narrow(0, 0, 333)) +
                       HashElements("w", 333, x.narrow(0, 333, 667)));
  EXPECT_NE(whole, HashElements("v", 0, x));
  EXPECT_NE(whole, HashElements("w", 1, x));
  EXPECT_NE(whole, HashElements("w", 0, x.flip(0)));
  Tensor changed = x.clone();
  changed[999] = 999.0001f;
  EXPECT_NE(whole, HashElements("w", 0, changed));
}

TEST(RolloutEngine, AnErrorOfOneRequestReachesAllRanks) {
  const absl::Status status = RunRanks(2, [](Communicator& comm) {
    return BuildTrainingJob({.ranks = 2}, comm, [&](JobParts parts) -> absl::Status {
      SHOAL_ASSIGN_OR_RETURN(
          const auto engine,
          RolloutEngine::Create(
              {.model = parts.model, .parameters = parts.parameters, .mesh = parts.mesh}));
      SHOAL_RETURN_IF_ERROR(engine->Refresh());
      std::vector<GenerationRequest> requests = RolloutRequests();
      requests[1].prompt = {99};  // The second rank's
      EXPECT_THAT(std::string(engine->GenerateOverRanks(requests).status().message()),
                  testing::HasSubstr("rank 1: request 0: token 0 of the prompt is 99"));
      return absl::OkStatus();
    });
  });
  EXPECT_TRUE(status.ok()) << status;
}

}  // namespace
}  // namespace shoal
