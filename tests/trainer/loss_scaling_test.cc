// Training in float16: the loss scale against torch.amp.GradScaler's, curves against torch's
// autocast, meshes against one process.
#include <cmath>
#include <fstream>
#include <mutex>

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "checkpoint/checkpoint.h"
#include "core/memory_file_system.h"
#include "core/status.h"
#include "models/safetensors.h"
#include "models/weights.h"
#include "parallel/comm/local_communicator.h"
#include "tests/trainer/training_job.h"
#include "trainer/state_pieces.h"
#include "trainer/update_rules.h"
#include "trainer/weights_setup.h"

namespace shoal {
namespace {

// tests/fixtures/make_float16_fixtures.py.
nlohmann::json Fixture() {
  std::ifstream file("tests/fixtures/float16.json");
  return nlohmann::json::parse(file);
}

TEST(LossScale, FollowsGradScaler) {
  const nlohmann::json cases = Fixture().at("scales");
  ASSERT_EQ(cases.size(), 4u);
  for (const auto& c : cases) {
    const LossScaling options{.initial_scale = c.at("initial_scale"),
                              .growth_interval = c.at("growth_interval")};
    LossScale scale{.scale = options.initial_scale};
    for (size_t i = 0; i < c.at("scales").size(); ++i) {
      EXPECT_EQ(scale.scale, c.at("scales")[i].get<double>()) << i;
      scale = NextLossScale(options, scale, c.at("overflows")[i]);
    }
  }
}

// The same batch in every step.
class OneBatch final : public BatchSource {
 public:
  explicit OneBatch(Batch batch) : batch_(std::move(batch)) {}
  absl::StatusOr<std::vector<Batch>> MicroBatches(int64_t step) override {
    return std::vector<Batch>{batch_};
  }

 private:
  Batch batch_;
};

absl::StatusOr<Tensor> Read(const SafetensorsReader& reader, const std::string& name) {
  const SafetensorsEntry* entry = reader.Find(name);
  SHOAL_CHECK(entry != nullptr) << name;
  Tensor tensor = at::empty(entry->shape, at::TensorOptions(*DtypeOfSafetensors(entry->dtype)));
  SHOAL_RETURN_IF_ERROR(reader.Read(*entry, 0, tensor));
  return tensor;
}

TEST(Float16, LearnsAsTorchAutocastDoes) {
  const nlohmann::json fixture = Fixture().at("training");
  const std::string folder = "tests/fixtures/models/llama";
  const absl::Status status = RunRanks(1, [&](Communicator& comm) -> absl::Status {
    PosixFileSystem files;
    SHOAL_ASSIGN_OR_RETURN(DeviceMesh mesh, DeviceMesh::Create(comm, {}));
    SHOAL_ASSIGN_OR_RETURN(const ModelConfig config, LoadModelConfig(files, folder));
    SHOAL_ASSIGN_OR_RETURN(const Model model, BuildModel(config));
    SHOAL_ASSIGN_OR_RETURN(const std::vector<BlockParameters> blocks,
                           DescribeParameters(model, {}));
    ShardedParameters parameters(blocks, {.compute_dtype = at::kHalf}, GroupsOf(mesh, nullptr));
    const OptimizerSection section;
    ShardedOptimizer optimizer(UpdateRuleOf(section), parameters, OptimizerOptionsOf(section));
    SHOAL_ASSIGN_OR_RETURN(const WeightReader weights, WeightReader::Open(files, folder, model));
    SHOAL_RETURN_IF_ERROR(ReadWeights(weights, 0, optimizer, parameters));
    SHOAL_ASSIGN_OR_RETURN(const auto reader,
                           SafetensorsReader::Open(files, folder + "/expected.safetensors"));
    Batch batch;
    SHOAL_ASSIGN_OR_RETURN(batch.tokens_BT, Read(*reader, "tokens"));
    SHOAL_ASSIGN_OR_RETURN(batch.targets_BT, Read(*reader, "targets"));
    batch.positions_BT =
        at::arange(batch.tokens_BT.size(1), at::kLong).expand(batch.tokens_BT.sizes()).contiguous();
    batch.num_targets = batch.targets_BT.ne(Batch::kIgnoreIndex).sum().item<int64_t>();
    OneBatch batches(std::move(batch));
    BlockRunner runner(model, parameters, OneStage(model, 1));
    const auto& steps = fixture.at("steps");
    Trainer trainer({.num_steps = static_cast<int64_t>(steps.size()),
                     .max_grad_norm = 1,
                     .learning_rate = {.type = LrSchedule::Type::kConstant, .peak = 1e-3},
                     .loss_scaling = LossScaling{.initial_scale = fixture.at("initial_scale"),
                                                 .growth_interval = fixture.at("growth_interval")}},
                    {.mesh = mesh,
                     .runner = runner,
                     .parameters = parameters,
                     .optimizer = optimizer,
                     .batches = batches});
    // Gradients of weights are float32 here and float16 there, where they overflow sooner: what is
    // alike is the sequence of the steps that were not skipped.
    std::vector<StepMetrics> taken;
    for (size_t i = 0; i < steps.size(); ++i) {
      SHOAL_ASSIGN_OR_RETURN(const StepMetrics metrics, trainer.Step());
      if (!metrics.skipped) taken.push_back(metrics);
    }
    EXPECT_LT(taken.size(), steps.size());
    EXPECT_GE(taken[0].loss_scale, 65536);
    size_t update = 0;
    for (const auto& step : steps) {
      if (step.at("skipped")) continue;
      if (update == taken.size()) break;
      EXPECT_NEAR(taken[update].loss, step.at("loss").get<double>(), 0.01) << "update " << update;
      EXPECT_NEAR(taken[update].grad_norm / step.at("grad_norm").get<double>(), 1, 0.05)
          << "update " << update;
      ++update;
    }
    EXPECT_GT(update, 20u);
    return absl::OkStatus();
  });
  EXPECT_TRUE(status.ok()) << status;
}

// A scale that at first is too large, and grows until it is again.
TrainingJob Scaled(TrainingJob job) {
  job.dtype = at::kHalf;
  job.steps = 24;
  job.loss_scaling = LossScaling{.initial_scale = std::exp2(28), .growth_interval = 4};
  return job;
}

TEST(Float16, EveryMeshSkipsTheSameStepsAndLearnsTheSame) {
  for (const char* model : {"llama", "llama-tied", "gpt2"}) {
    const TrainingResult one = RunTrainingJob(Scaled({.model = model}));
    int64_t skipped = 0;
    for (const StepMetrics& step : one.steps) skipped += step.skipped;
    EXPECT_GT(skipped, 3);
    EXPECT_LT(skipped, 20);
    for (TrainingJob job :
         {TrainingJob{.ranks = 3, .stage = 0},
          {.ranks = 3, .stage = 3, .micro_batches = 3},
          {.ranks = 4, .replicate = 2, .stage = 2},
          {.ranks = 4, .tensor = 2, .stage = 1},
          {.ranks = 4, .pipeline = 2, .layers = 2, .stage = 3, .micro_batches = 3}}) {
      job.model = model;
      if (job.tensor > 1 && job.model == "gpt2") {
        job.ranks = 6;
        job.tensor = 3;
      }
      const TrainingResult got = RunTrainingJob(Scaled(job));
      ASSERT_EQ(got.steps.size(), one.steps.size());
      for (size_t i = 0; i < got.steps.size(); ++i) {
        EXPECT_EQ(got.steps[i].loss_scale, one.steps[i].loss_scale) << Describe(job) << ", " << i;
        EXPECT_EQ(got.steps[i].skipped, one.steps[i].skipped) << Describe(job) << ", " << i;
        EXPECT_NEAR(got.steps[i].loss, one.steps[i].loss, 5e-3) << Describe(job) << ", " << i;
      }
    }
  }
}

TEST(Float16, StagesGiveTheSameBits) {
  TrainingJob job = Scaled({.ranks = 3, .micro_batches = 3});
  const TrainingResult stage0 = RunTrainingJob(job);
  for (job.stage = 1; job.stage <= 3; ++job.stage)
    ExpectSameBits(RunTrainingJob(job), stage0, Describe(job));
}

TEST(Float16, EveryModelAndObjectiveIsNearFloat32) {
  for (TrainingJob job :
       {TrainingJob{.model = "mixtral", .ranks = 2, .expert = 2, .stage = 2},
        {.model = "mixtral", .ranks = 2, .tensor = 2, .router_z_loss = 0.1},
        {.model = "llama-dropout", .ranks = 2, .stage = 1},
        {.ranks = 2, .recompute = Recompute::kFull, .stage = 3},
        {.ranks = 2, .stage = 3, .objective = "dpo"},
        {.ranks = 2, .stage = 3, .objective = "reward"},
        {.ranks = 2, .stage = 3, .lora = true},
        {.ranks = 2, .stage = 3, .rule = "muon", .groups = true, .ema_decay = 0.5},
        {.ranks = 2, .stage = 0, .rule = "adafactor"},
        {.ranks = 2, .stage = 2, .rule = "lion"}}) {
    job.dtype = at::kFloat;
    const TrainingResult exact = RunTrainingJob(job);
    job.dtype = at::kHalf;
    job.loss_scaling = LossScaling{.initial_scale = 4096};
    const TrainingResult half = RunTrainingJob(job);
    ASSERT_EQ(half.steps.size(), exact.steps.size());
    for (size_t i = 0; i < half.steps.size(); ++i) {
      EXPECT_FALSE(half.steps[i].skipped) << Describe(job);
      EXPECT_NEAR(half.steps[i].loss, exact.steps[i].loss, 0.02) << Describe(job) << ", " << i;
      EXPECT_NEAR(half.steps[i].grad_norm / exact.steps[i].grad_norm, 1, 0.05)
          << Describe(job) << ", " << i;
    }
  }
}

TEST(Float16, OneRanksOverflowSkipsTheStepOnAll) {
  for (int stage : {0, 3}) {
    TrainingJob job{.dtype = at::kHalf, .ranks = 3, .stage = stage, .poison_step = 1};
    job.loss_scaling = LossScaling{.initial_scale = 1024, .growth_interval = 2};
    const TrainingResult result = RunTrainingJob(job);
    ASSERT_EQ(result.steps.size(), 4u);
    EXPECT_TRUE(result.steps[1].skipped);
    EXPECT_EQ(result.steps[1].loss_scale, 1024);
    EXPECT_EQ(result.steps[2].loss_scale, 512);
    EXPECT_EQ(result.steps[3].loss_scale, 512);
  }
}

TEST(Float16, EndsWhereTheScaleWouldBeTooSmall) {
  TrainingJob job{.dtype = at::kHalf, .ranks = 2, .stage = 1};
  job.loss_scaling = LossScaling{.initial_scale = std::exp2(34), .min_scale = std::exp2(32)};
  const absl::Status status = RunRanks(job.ranks, [&](Communicator& comm) {
    return BuildTrainingJob(job, comm, [&](JobParts parts) { return parts.trainer.Run(); });
  });
  EXPECT_EQ(status.code(), absl::StatusCode::kAborted);
  EXPECT_NE(status.message().find("step 3: loss "), std::string::npos) << status;
  EXPECT_NE(status.message().find(" at loss scale 4.29497e+09, half of which is below "
                                  "training.loss_scaling.min_scale 4.29497e+09. Weights are as "
                                  "they were before."),
            std::string::npos)
      << status;
}

TEST(Float16, ACutRunGoesOnWithTheSameBits) {
  TrainingJob job = Scaled({.ranks = 2, .stage = 2});
  job.steps = 22;
  TrainingResult whole = RunTrainingJob(job);
  whole.steps = {whole.steps.back()};
  MemoryFileSystem files;
  TrainProgress progress;
  TrainingResult result;
  std::mutex mutex;
  for (bool second : {false, true}) {
    const absl::Status status = RunRanks(job.ranks, [&](Communicator& comm) {
      return BuildTrainingJob(job, comm, [&](JobParts parts) -> absl::Status {
        if (second) {
          SHOAL_RETURN_IF_ERROR(LoadCheckpoint(files, comm, "checkpoints/step-12",
                                               ToStatePieces(parts.optimizer.PiecesToLoad()))
                                    .status());
          parts.parameters.SyncFromMaster();
          parts.trainer.Resume(progress);
        }
        StepMetrics last;
        for (int step = second ? 12 : 0; step < (second ? 22 : 12); ++step) {
          SHOAL_ASSIGN_OR_RETURN(last, parts.trainer.Step());
        }
        if (second) {
          const std::lock_guard lock(mutex);
          if (comm.rank() == 0) result.steps = {last};
          CollectState(parts.optimizer, result.state);
          return absl::OkStatus();
        }
        if (comm.rank() == 0) progress = parts.trainer.progress();
        TrainerState state;
        state.set_step(12);
        return SaveCheckpoint(files, comm, "checkpoints", state,
                              ToStatePieces(parts.optimizer.PiecesToSave()));
      });
    });
    ASSERT_TRUE(status.ok()) << status;
  }
  ExpectSameBits(result, whole, "cut");
}

}  // namespace
}  // namespace shoal
