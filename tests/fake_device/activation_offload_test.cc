// Training on a device whose activations go to host memory, and to disk by way of it: the same bits
// as without, in the memory of two blocks.
#include <algorithm>
#include <mutex>

#include <gtest/gtest.h>

#include "core/tensor_memory.h"
#include "parallel/comm/local_communicator.h"
#include "tests/fake_device/device_under_training.h"
#include "tests/fake_device/fake_device.h"
#include "tests/fake_device/recipe_run.h"
#include "tests/trainer/training_job.h"

namespace shoal {
namespace {

constexpr OffloadTo kPlaces[] = {OffloadTo::kHost, OffloadTo::kDisk};

size_t InUse() {
  size_t bytes = 0;
  for (int device = 0; device < kFakeDevices; ++device) bytes += FakeBytesInUse(device);
  return bytes;
}

void ExpectSameBitsAndNoMoreWaits(TrainingJob job) {
  job.device = c10::kPrivateUse1;
  job.seq_length = 24;  // So that what a block keeps is worth a copy
  job.steps = std::min(job.steps, 3);
  size_t waits = FakeDeviceWaits();
  const TrainingResult want = RunTrainingJob(job);
  const size_t want_waits = FakeDeviceWaits() - waits;
  for (const OffloadTo place : kPlaces) {
    const std::string what =
        Describe(job) + (place == OffloadTo::kHost ? ", in host memory" : ", on disk");
    job.offload_activations = place;
    const size_t before = InUse();
    waits = FakeDeviceWaits();
    const LazyFakeStreams lazy;
    const TrainingResult got = RunTrainingJob(job);
    if (place == OffloadTo::kHost) {
      EXPECT_EQ(FakeDeviceWaits() - waits, want_waits) << what;
    }
    EXPECT_EQ(InUse(), before) << what;
    ExpectSameBits(got, want, what);
    for (const StepMetrics& step : got.steps) {
      ASSERT_TRUE(step.offload_host) << what;
      EXPECT_GT(step.offload_host->written, 0) << what;
      EXPECT_GT(step.offload_host->read, 0) << what;
      ASSERT_EQ(step.offload.has_value(), place == OffloadTo::kDisk) << what;
      if (step.offload) {
        EXPECT_GT(step.offload->written, 0) << what;
      }
    }
  }
}

TEST(ActivationOffload, Models) {
  ExpectSameBitsAndNoMoreWaits({});
  ExpectSameBitsAndNoMoreWaits({.model = "llama-tied", .micro_batches = 3});
  ExpectSameBitsAndNoMoreWaits({.model = "gpt2-dropout"});
  ExpectSameBitsAndNoMoreWaits({.model = "mixtral", .router_z_loss = 0.1});
  ExpectSameBitsAndNoMoreWaits({.documents = true});
  ExpectSameBitsAndNoMoreWaits({.lora = true});
  ExpectSameBitsAndNoMoreWaits({.objective = "dpo", .pairs = true});
}

TEST(ActivationOffload, OurKernels) {
  const KernelsOfDevice use(true);
  ExpectSameBitsAndNoMoreWaits({.dtype = at::kFloat, .steps = 2});
}

TEST(ActivationOffload, Recompute) {
  for (const Recompute recompute : {Recompute::kSelective, Recompute::kFull})
    ExpectSameBitsAndNoMoreWaits({.recompute = recompute, .layers = 4});
}

TEST(ActivationOffload, Zero) {
  for (int stage = 0; stage <= 3; ++stage)
    ExpectSameBitsAndNoMoreWaits({.ranks = 2, .stage = stage, .micro_batches = 2});
  ExpectSameBitsAndNoMoreWaits({.ranks = 2, .stage = 3, .overlap = true});
}

TEST(ActivationOffload, Meshes) {
  ExpectSameBitsAndNoMoreWaits({.ranks = 2, .tensor = 2});
  ExpectSameBitsAndNoMoreWaits({.model = "gpt2", .ranks = 3, .tensor = 3});
  ExpectSameBitsAndNoMoreWaits(
      {.ranks = 4, .tensor = 2, .recompute = Recompute::kFull, .stage = 3});
  for (const auto method : {ContextParallel::Method::kRing, ContextParallel::Method::kUlysses})
    ExpectSameBitsAndNoMoreWaits({.ranks = 2, .context = 2, .context_method = method});
  ExpectSameBitsAndNoMoreWaits({.model = "mixtral", .ranks = 2, .expert = 2});
}

TEST(ActivationOffload, Pipelines) {
  for (const PipelineCase& pipeline : kPipelines) {
    if (pipeline.schedule == ScheduleKind::kZbH1 || pipeline.schedule == ScheduleKind::kZbV)
      continue;  // Refused in recipes
    for (const Recompute recompute : {Recompute::kNone, Recompute::kFull}) {
      ExpectSameBitsAndNoMoreWaits({.ranks = 2,
                                    .pipeline = 2,
                                    .schedule = pipeline.schedule,
                                    .chunks = pipeline.chunks,
                                    .recompute = recompute,
                                    .layers = 6,
                                    .micro_batches = 4});
    }
  }
}

// Of a step of one rank, at most and when it is over.
struct Taken {
  int64_t peak = 0, after = 0, moved = 0;
};

Taken TakenBy(const TrainingJob& job) {
  Taken taken;
  const absl::Status status = RunRanks(1, [&](Communicator& host) {
    return OnDevice(job.device, host, [&](Communicator& comm) {
      return BuildTrainingJob(job, comm, [&](JobParts parts) -> absl::Status {
        SHOAL_RETURN_IF_ERROR(parts.trainer.TrainStep().status());
        const size_t before = FakeBytesInUse();
        SHOAL_ASSIGN_OR_RETURN(const StepMetrics step, parts.trainer.TrainStep());
        EXPECT_EQ(FakeBytesInUse(), before) << "left by a step";
        taken = {.peak = step.peak_tensor_bytes,
                 .after = static_cast<int64_t>(before),
                 .moved = step.offload_host ? step.offload_host->written : 0};
        return absl::OkStatus();
      });
    });
  });
  EXPECT_TRUE(status.ok()) << status;
  return taken;
}

// What a step takes beside what a rank holds anyway does not grow with the number of layers.
void ExpectTheMemoryOfTwoBlocks(TrainingJob job) {
  job.device = c10::kPrivateUse1;
  job.seq_length = 48;
  const std::string what = Describe(job);
  const auto activations = [&](int layers, OffloadTo place) {
    job.layers = layers;
    job.offload_activations = place;
    const Taken taken = TakenBy(job);
    EXPECT_EQ(taken.moved > 0, place != OffloadTo::kNowhere) << what;
    return taken.peak - taken.after;
  };
  const int64_t four = activations(4, OffloadTo::kNowhere),
                eight = activations(8, OffloadTo::kNowhere), layer = (eight - four) / 4;
  for (const OffloadTo place : kPlaces) {
    const int64_t few = activations(4, place), many = activations(8, place);
    EXPECT_LT(many - few, 4 * layer / 20) << what << ": a layer keeps " << layer;
    EXPECT_LT(few, four - layer) << what << ": a layer keeps " << layer;
  }
}

TEST(ActivationOffload, TheMemoryOfTwoBlocks) {
  ExpectTheMemoryOfTwoBlocks({});
  ExpectTheMemoryOfTwoBlocks({.recompute = Recompute::kFull});
  ExpectTheMemoryOfTwoBlocks({.model = "gpt2-dropout"});
  ExpectTheMemoryOfTwoBlocks({.model = "mixtral"});
}

class ActivationOffloadRun : public RecipeRun {};

TEST_F(ActivationOffloadRun, SaysWhatItMoves) {
  const nlohmann::json recipe = Pretraining();
  const Rows want = Run(recipe, "stay", 2, c10::kPrivateUse1);
  for (const std::string place : {"host", "disk"}) {
    const Rows got =
        Run(recipe, place, 2, c10::kPrivateUse1, {"training.offload_activations=" + place});
    ExpectSameRows(got, want, place, /*tolerance=*/0);
    for (const nlohmann::json& row : got) {
      if (!row.contains("loss")) continue;
      EXPECT_GT(row.value("offload_host_bytes_read", 0.0), 0) << row;
      EXPECT_GT(row.value("offload_host_bytes_written", 0.0), 0) << row;
      EXPECT_EQ(row.contains("offload_bytes_written"), place == "disk") << row;
    }
  }
  // In host memory they are anyway.
  const Rows host = Run(recipe, "cpu", 1, c10::kCPU, {"training.offload_activations=host"});
  ExpectSameRows(host, want, "on the host");
  ASSERT_FALSE(host.empty());
  EXPECT_FALSE(host[0].contains("offload_host_bytes_read"));
}

}  // namespace
}  // namespace shoal
