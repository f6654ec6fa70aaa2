// Rollouts between two steps of a training job, for tests that compare meshes and devices.
#pragma once

#include <mutex>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "inference/rollout_engine.h"
#include "parallel/comm/local_communicator.h"
#include "tests/trainer/training_job.h"

namespace shoal {

// Prompts of several lengths, two of them three times, greedy and sampled.
inline std::vector<GenerationRequest> RolloutRequests() {
  std::vector<GenerationRequest> requests;
  for (int64_t i = 0; i < 9; ++i) {
    GenerationRequest request{.max_new_tokens = 2 + i,
                              .sampling = {.temperature = i % 3 == 0 ? 0.0 : 1.0, .seed = 4},
                              .stream = static_cast<uint64_t>(i),
                              .eos_token_ids = {30},
                              .want_logprobs = i % 2 == 0};
    for (int64_t j = 0; j <= i / 3; ++j) request.prompt.push_back(3 + 5 * j);
    requests.push_back(request);
  }
  return requests;
}

struct RolloutOutcome {
  std::vector<Generation> results;
  uint64_t hash = 0, source_hash = 0, stale_hash = 0;
  int64_t gathered_bytes = 0, generated_bytes = 0, held_bytes = 0;  // Of rank 0
  int64_t shard_padded = 0, local_numel = 0;
};

// Trains a step, rolls out, trains another, and rolls out again; the second rollout is returned.
inline RolloutOutcome RunRollout(const TrainingJob& job, GatheredWeights::Layout layout) {
  RolloutOutcome rollout;
  std::mutex mutex;
  const auto on_device = [&](Communicator& comm) {
    return BuildTrainingJob(job, comm, [&](JobParts parts) -> absl::Status {
      SHOAL_ASSIGN_OR_RETURN(
          const auto engine,
          RolloutEngine::Create(
              {.model = parts.model, .parameters = parts.parameters, .mesh = parts.mesh},
              {.layout = layout, .generator = {.max_batch_size = 3}}));
      EXPECT_EQ(engine->Generate(RolloutRequests()).status().code(),
                absl::StatusCode::kFailedPrecondition);
      SHOAL_RETURN_IF_ERROR(parts.trainer.TrainStep().status());
      SHOAL_RETURN_IF_ERROR(engine->Refresh());
      const uint64_t first_hash = engine->weights().hash();
      SHOAL_RETURN_IF_ERROR(engine->GenerateOverRanks(RolloutRequests()).status());
      engine->Release();
      SHOAL_RETURN_IF_ERROR(parts.trainer.TrainStep().status());

      const int64_t before = parts.mesh.bytes_sent();
      SHOAL_RETURN_IF_ERROR(engine->Refresh());
      const int64_t refreshed = parts.mesh.bytes_sent();
      SHOAL_ASSIGN_OR_RETURN(const std::vector<Generation> results,
                             engine->GenerateOverRanks(RolloutRequests()));
      const std::lock_guard<std::mutex> lock(mutex);
      if (comm.rank() == 0) {
        rollout.results = results;
        rollout.gathered_bytes = refreshed - before;
        rollout.generated_bytes = parts.mesh.bytes_sent() - refreshed;
        rollout.held_bytes = engine->weights().held_bytes();
        rollout.hash = engine->weights().hash();
        rollout.stale_hash = first_hash;
        for (const auto& unit : parts.parameters.units()) {
          rollout.shard_padded += unit->layout().padded_numel();
          rollout.local_numel += unit->layout().numel();
        }
      } else {
        EXPECT_EQ(results.size(), RolloutRequests().size());
      }
      return absl::OkStatus();
    });
  };
  const absl::Status status = RunRanks(
      job.ranks, [&](Communicator& host) { return OnDevice(job.device, host, on_device); });
  EXPECT_TRUE(status.ok()) << status << Describe(job);
  return rollout;
}

inline void ExpectSameRollout(const RolloutOutcome& got, const RolloutOutcome& want,
                              const std::string& what) {
  ASSERT_EQ(got.results.size(), want.results.size()) << what;
  for (size_t i = 0; i < want.results.size(); ++i) {
    EXPECT_EQ(got.results[i].tokens, want.results[i].tokens) << what << ", request " << i;
    EXPECT_EQ(got.results[i].finish_reason, want.results[i].finish_reason) << what;
    ASSERT_EQ(got.results[i].logprobs.size(), want.results[i].logprobs.size()) << what;
    for (size_t t = 0; t < want.results[i].logprobs.size(); ++t)
      EXPECT_NEAR(got.results[i].logprobs[t], want.results[i].logprobs[t], 1e-9) << what;
  }
}

}  // namespace shoal
