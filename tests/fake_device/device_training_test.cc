// Training on a device: the losses, norms, weights and moments of the CPU. Runs on the fake device,
// where host code that touches device memory dies, and in build/cuda on a GPU.
#include <gtest/gtest.h>

#include "tests/fake_device/device_under_training.h"
#include "tests/trainer/saved_job.h"

namespace shoal {
namespace {

constexpr double kTolerance = 1e-10;

void ExpectAsOnHost(TrainingJob job, double tolerance = kTolerance) {
  const TrainingResult& want = OnOneRank(job);
  job.device = DeviceTypeUnderTest();
  const std::string what = "on the device: " + Describe(job);
  const size_t before = DeviceCalls();
  const TrainingResult got = RunTrainingJob(job);
  EXPECT_GT(DeviceCalls() - before, 100) << what;
  ExpectClose(got, want, tolerance, what);
}

class DeviceTraining : public testing::Test {
 protected:
  void SetUp() override {
    if (DeviceTypeUnderTest() == c10::kCPU) GTEST_SKIP() << "this machine has no GPU";
  }
};

TEST_F(DeviceTraining, OneRank) {
  ExpectAsOnHost({});
  ExpectAsOnHost({.model = "gpt2"});
  ExpectAsOnHost({.model = "llama-tied", .micro_batches = 3});
  ExpectAsOnHost({.recompute = Recompute::kFull});
  ExpectAsOnHost({.model = "llama-uneven", .documents = true});
}

TEST_F(DeviceTraining, Dropout) {
  ExpectAsOnHost({.model = "gpt2-dropout"});
  ExpectAsOnHost({.model = "gpt2-dropout", .ranks = 3, .tensor = 3});
  ExpectAsOnHost({.model = "llama-dropout", .recompute = Recompute::kSelective});
}

TEST_F(DeviceTraining, ZeroStages) {
  for (const int stage : {0, 1, 2, 3}) {
    ExpectAsOnHost({.ranks = 3, .stage = stage});
    ExpectAsOnHost({.model = "gpt2", .ranks = 2, .stage = stage, .micro_batches = 3});
    ExpectAsOnHost({.ranks = 4, .replicate = 2, .stage = stage, .deterministic = false});
  }
  ExpectAsOnHost({.ranks = 2, .stage = 3, .deterministic = false, .overlap = true});
  ExpectAsOnHost({.ranks = 2, .stage = 2, .micro_batches = 2, .overlap = true});
}

TEST_F(DeviceTraining, TensorParallel) {
  ExpectAsOnHost({.ranks = 2, .tensor = 2});
  ExpectAsOnHost({.model = "gpt2", .ranks = 3, .tensor = 3});
  ExpectAsOnHost({.model = "llama-tied", .ranks = 2, .tensor = 2, .sequence_parallel = false});
  ExpectAsOnHost({.ranks = 4, .tensor = 2, .recompute = Recompute::kFull, .stage = 3});
}

TEST_F(DeviceTraining, ContextParallel) {
  using Method = ContextParallel::Method;
  for (const Method method : {Method::kRing, Method::kUlysses}) {
    ExpectAsOnHost({.ranks = 2, .context = 2, .context_method = method, .seq_length = 8});
    ExpectAsOnHost({.ranks = 4,
                    .tensor = 1,
                    .context = 2,
                    .context_method = method,
                    .stage = 2,
                    .seq_length = 8,
                    .documents = true});
  }
}

TEST_F(DeviceTraining, Pipelines) {
  for (const PipelineCase& pipeline : kPipelines) {
    ExpectAsOnHost({.ranks = 2,
                    .pipeline = 2,
                    .schedule = pipeline.schedule,
                    .chunks = pipeline.chunks,
                    .layers = 4,
                    .micro_batches = 4});
  }
  ExpectAsOnHost({.ranks = 4, .pipeline = 2, .layers = 2, .stage = 3, .micro_batches = 2});
  ExpectAsOnHost({.ranks = 4, .tensor = 2, .pipeline = 2, .layers = 2, .micro_batches = 2});
}

class DeviceTrainingRules : public DeviceTraining,
                            public testing::WithParamInterface<const char*> {};
TEST_P(DeviceTrainingRules, AsOnHost) {
  ExpectAsOnHost({.rule = GetParam()});
  ExpectAsOnHost({.ranks = 2, .stage = 1, .rule = GetParam()});
}
INSTANTIATE_TEST_SUITE_P(All, DeviceTrainingRules,
                         testing::Values("adamw", "sgd", "lion", "adafactor", "muon"),
                         [](const auto& info) { return std::string(info.param); });

TEST_F(DeviceTraining, GroupsAndMeans) {
  ExpectAsOnHost({.ranks = 2, .stage = 3, .sgd = true, .groups = true});
  ExpectAsOnHost({.ranks = 2, .stage = 2, .ema_decay = 0.9});
}

TEST_F(DeviceTraining, Experts) {
  ExpectAsOnHost({.model = "mixtral", .router_z_loss = 0.01});
  ExpectAsOnHost({.model = "mixtral-many", .micro_batches = 3});
  for (const int stage : {0, 3}) {
    ExpectAsOnHost({.model = "mixtral", .ranks = 4, .expert = 2, .stage = stage});
    ExpectAsOnHost({.model = "mixtral", .ranks = 4, .tensor = 2, .expert = 2, .stage = stage});
  }
  ExpectAsOnHost({.model = "dots1", .ranks = 2, .expert = 2, .layers = 3, .router_bias_rate = 0.1});
  TrainingJob full{.model = "mixtral", .ranks = 2, .expert = 2, .capacity_factor = 0.5};
  ExpectAsOnHost(full);
}

TEST_F(DeviceTraining, Objectives) {
  for (const char* objective : {"dpo", "ipo", "simpo", "reward"}) {
    ExpectAsOnHost({.objective = objective, .pairs = true});
    ExpectAsOnHost({.ranks = 2, .stage = 3, .objective = objective, .pairs = true});
    // With lengths, rows that begin alike are computed once.
    ExpectAsOnHost(
        {.ranks = 2, .tensor = 2, .objective = objective, .pairs = true, .lengths = true});
  }
  ExpectAsOnHost(
      {.ranks = 2, .pipeline = 2, .micro_batches = 2, .objective = "dpo", .pairs = true});
}

TEST_F(DeviceTraining, PartsOfAModel) {
  ExpectAsOnHost({.lora = true});
  ExpectAsOnHost({.ranks = 4, .tensor = 2, .stage = 3, .lora = true});
  ExpectAsOnHost({.ranks = 2, .stage = 2, .freeze = {"embed_tokens", "layers.0"}});
}

TEST_F(DeviceTraining, ActivationsElsewhere) {
  for (const OffloadTo place : {OffloadTo::kHost, OffloadTo::kDisk}) {
    ExpectAsOnHost({.layers = 6, .offload_activations = place, .seq_length = 48});
    ExpectAsOnHost({.model = "mixtral", .offload_activations = place, .seq_length = 48});
    ExpectAsOnHost({.ranks = 2,
                    .recompute = Recompute::kSelective,
                    .layers = 4,
                    .stage = 3,
                    .overlap = true,
                    .offload_activations = place,
                    .seq_length = 48});
    ExpectAsOnHost({.ranks = 2,
                    .pipeline = 2,
                    .layers = 4,
                    .micro_batches = 4,
                    .offload_activations = place,
                    .seq_length = 48});
  }
}

// A step whose loss is not finite is left out.
TEST_F(DeviceTraining, SkipsBadSteps) {
  for (const int ranks : {1, 2}) {
    TrainingJob job{.ranks = ranks, .stage = ranks, .steps = 5, .poison_step = 2};
    const TrainingResult want = RunTrainingJob(job);
    job.device = DeviceTypeUnderTest();
    const TrainingResult got = RunTrainingJob(job);
    ASSERT_EQ(got.steps.size(), want.steps.size());
    for (size_t i = 0; i < got.steps.size(); ++i)
      EXPECT_EQ(got.steps[i].skipped, want.steps[i].skipped) << i;
    for (const auto& [name, values] : want.state) {
      for (size_t i = 0; i < values.size(); ++i)
        ASSERT_NEAR(got.state.at(name)[i], values[i], kTolerance) << name;
    }
  }
}

// In float32, with the CUDA kernels that the emulator runs and with plain operators.
TEST_F(DeviceTraining, InFloat32) {
  for (const bool kernels : {false, true}) {
    SCOPED_TRACE(kernels ? "with our kernels" : "with plain operators");
    const KernelsOfDevice use(kernels);
    for (const char* model : {"llama", "gpt2-dropout", "mixtral"}) {
      // Steps by the gradient's size, not its sign, which rounding may turn.
      TrainingJob job{.model = model, .dtype = at::kFloat, .steps = 2, .sgd = true};
      ExpectAsOnHost(job, 2e-4);
      job.ranks = 2;
      job.stage = 3;
      ExpectAsOnHost(job, 2e-4);
    }
    TrainingJob ring{.dtype = at::kFloat,
                     .ranks = 2,
                     .context = 2,
                     .recompute = Recompute::kFull,
                     .steps = 2,
                     .sgd = true,
                     .seq_length = 8,
                     .documents = true};
    ExpectAsOnHost(ring, 2e-4);
    for (const char* rule : {"adamw", "lion"}) {
      TrainingJob job{
          .dtype = at::kFloat, .device = DeviceTypeUnderTest(), .steps = 1, .rule = rule};
      const TrainingResult got = RunTrainingJob(job);
      ExpectClose({got.steps, {}}, {OnOneRank(job).steps, {}}, 1e-5, rule);
    }
  }
}

// Losses of half precision, which differ by its rounding.
TEST_F(DeviceTraining, InHalfPrecision) {
  for (const bool kernels : {false, true}) {
    const KernelsOfDevice use(kernels);
    for (const at::ScalarType dtype : {at::kBFloat16, at::kHalf}) {
      TrainingJob job{.dtype = dtype, .ranks = 2, .stage = 2, .micro_batches = 2};
      if (dtype == at::kHalf) job.loss_scaling = LossScaling{};
      const TrainingResult want = RunTrainingJob(job);
      job.device = DeviceTypeUnderTest();
      const TrainingResult got = RunTrainingJob(job);
      ASSERT_EQ(got.steps.size(), want.steps.size());
      for (size_t i = 0; i < got.steps.size(); ++i)
        EXPECT_NEAR(got.steps[i].loss, want.steps[i].loss, 0.02 * want.steps[i].loss);
    }
  }
}

TEST_F(DeviceTraining, CheckpointsGoBetweenHostAndDevice) {
  ExpectEachReadsAll({{.ranks = 2, .stage = 3, .steps = 2},
                      {.device = DeviceTypeUnderTest(), .ranks = 2, .tensor = 2, .steps = 2}});
}

}  // namespace
}  // namespace shoal
