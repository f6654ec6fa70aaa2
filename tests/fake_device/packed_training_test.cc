// Training with packed numbers on a device: int8 between ranks, split master weights, moments of a
// byte. Runs on the fake device, and in build/cuda on a GPU.
#include <gtest/gtest.h>

#include "tests/fake_device/device_under_training.h"
#include "tests/trainer/saved_job.h"

namespace shoal {
namespace {

TrainingJob OnDeviceUnderTest(TrainingJob job) {
  job.device = DeviceTypeUnderTest();
  return job;
}

// The same job on the host's ranks.
void ExpectAsOnHostRanks(const TrainingJob& job, double tolerance) {
  const TrainingResult want = RunTrainingJob(job);
  const size_t before = DeviceCalls();
  const TrainingResult got = RunTrainingJob(OnDeviceUnderTest(job));
  EXPECT_GT(DeviceCalls() - before, 100);
  ExpectClose(got, want, tolerance, "on the device: " + Describe(job));
}

// Losses alone: of roundings that another rounding may turn.
void ExpectLossesAsOnHostRanks(const TrainingJob& job, double tolerance) {
  const TrainingResult want = RunTrainingJob(job);
  const TrainingResult got = RunTrainingJob(OnDeviceUnderTest(job));
  ASSERT_EQ(got.steps.size(), want.steps.size());
  for (size_t i = 0; i < got.steps.size(); ++i)
    EXPECT_NEAR(got.steps[i].loss, want.steps[i].loss, tolerance * want.steps[i].loss)
        << Describe(job) << ", step " << i;
}

class PackedTraining : public testing::Test {
 protected:
  void SetUp() override {
    if (DeviceTypeUnderTest() == c10::kCPU) GTEST_SKIP() << "this machine has no GPU";
  }
};

TrainingJob WithInt8(TrainingJob job) {
  job.quantized_weights = job.stage == 3;
  job.quantized_gradients = true;
  return job;
}

TEST_F(PackedTraining, Int8BetweenRanks) {
  for (const TrainingJob& job :
       {TrainingJob{.ranks = 3, .stage = 3},
        {.ranks = 2, .stage = 2, .micro_batches = 3},
        {.model = "llama-tied", .ranks = 4, .tensor = 2, .stage = 3},
        {.ranks = 4, .replicate = 2, .stage = 3},
        {.ranks = 2, .stage = 3, .deterministic = false, .overlap = true},
        {.ranks = 4, .pipeline = 2, .layers = 4, .stage = 3, .micro_batches = 2},
        {.model = "mixtral", .ranks = 4, .expert = 2, .stage = 3}}) {
    ExpectAsOnHostRanks(WithInt8(job), 1e-9);
  }
}

TEST_F(PackedTraining, Int8InFloat32AndHalfPrecision) {
  for (const bool kernels : {false, true}) {
    SCOPED_TRACE(kernels ? "with our kernels" : "with plain operators");
    const KernelsOfDevice use(kernels);
    for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16}) {
      for (const int stage : {2, 3}) {
        TrainingJob job = WithInt8({.dtype = dtype, .ranks = 2, .stage = stage, .steps = 2});
        ExpectLossesAsOnHostRanks(job, dtype == at::kFloat ? 1e-3 : 0.02);
      }
    }
  }
}

TEST_F(PackedTraining, Int8SkipsStepsThatAreNotFinite) {
  for (const bool kernels : {false, true}) {
    const KernelsOfDevice use(kernels);
    const TrainingResult result = RunTrainingJob(OnDeviceUnderTest(
        WithInt8({.dtype = at::kFloat, .ranks = 3, .stage = 3, .poison_step = 1})));
    ASSERT_EQ(result.steps.size(), 4u);
    EXPECT_TRUE(result.steps[1].skipped);
    EXPECT_FALSE(result.steps[2].skipped);
  }
}

// The bits of float32 masters on the same device.
TEST_F(PackedTraining, SplitMastersKeepEveryBit) {
  for (const bool kernels : {false, true}) {
    SCOPED_TRACE(kernels ? "with our kernels" : "with plain operators");
    const KernelsOfDevice use(kernels);
    for (const int stage : {0, 1, 2, 3}) {
      for (const char* rule : {"adamw", "muon", "adamw_8bit"}) {
        if (kernels && (stage == 1 || std::string(rule) == "muon")) continue;  // Nothing new
        TrainingJob job = OnDeviceUnderTest({.dtype = at::kBFloat16,
                                             .ranks = 3,
                                             .stage = stage,
                                             .steps = 2,
                                             .rule = rule,
                                             .groups = true});
        if (stage == 2) job.ema_decay = 0.8;
        const TrainingResult whole = RunTrainingJob(job);
        job.split_master = true;
        ExpectSameBits(RunTrainingJob(job), whole, Describe(job) + " split");
      }
    }
    TrainingJob job = OnDeviceUnderTest({.model = "llama-tied",
                                         .dtype = at::kBFloat16,
                                         .ranks = 4,
                                         .tensor = 2,
                                         .stage = 3,
                                         .micro_batches = 3,
                                         .steps = 2});
    const TrainingResult whole = RunTrainingJob(job);
    job.split_master = true;
    ExpectSameBits(RunTrainingJob(job), whole, Describe(job) + " split");
  }
}

TEST_F(PackedTraining, MomentsOfAByte) {
  for (const int stage : {0, 1, 2, 3})
    ExpectAsOnHostRanks({.ranks = 3, .stage = stage, .rule = "adamw_8bit"}, 1e-9);
  ExpectAsOnHostRanks({.ranks = 4, .tensor = 2, .stage = 3, .rule = "adamw_8bit", .groups = true},
                      1e-9);
  ExpectAsOnHostRanks({.model = "mixtral", .ranks = 2, .expert = 2, .rule = "adamw_8bit"}, 1e-9);
}

TEST_F(PackedTraining, MomentsOfAByteInFloat32AndHalfPrecision) {
  for (const bool kernels : {false, true}) {
    SCOPED_TRACE(kernels ? "with our kernels" : "with plain operators");
    const KernelsOfDevice use(kernels);
    for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16}) {
      TrainingResult first;
      for (const int stage : {0, 1, 2, 3}) {
        TrainingJob job{
            .dtype = dtype, .ranks = 2, .stage = stage, .steps = 2, .rule = "adamw_8bit"};
        if (stage % 2 == 0) ExpectLossesAsOnHostRanks(job, dtype == at::kFloat ? 1e-4 : 0.02);
        const TrainingResult got = RunTrainingJob(OnDeviceUnderTest(job));
        if (stage == 0) first = got;
        ExpectSameBits(got, first, Describe(job) + " as stage 0");
      }
    }
  }
}

TEST_F(PackedTraining, CheckpointsGoBetweenHostAndDevice) {
  for (const bool kernels : {false, true}) {
    const KernelsOfDevice use(kernels);
    const TrainingJob bytes{
        .dtype = at::kFloat, .ranks = 2, .stage = 3, .steps = 2, .rule = "adamw_8bit"};
    TrainingJob elsewhere = bytes;
    elsewhere.tensor = 2;
    ExpectEachReadsAll({bytes, OnDeviceUnderTest(elsewhere)});
    const TrainingJob split{
        .dtype = at::kBFloat16, .ranks = 2, .stage = 2, .steps = 2, .split_master = true};
    TrainingJob whole = split;
    whole.split_master = false;
    ExpectEachReadsAll({split, OnDeviceUnderTest(split), OnDeviceUnderTest(whole)});
  }
}

}  // namespace
}  // namespace shoal
