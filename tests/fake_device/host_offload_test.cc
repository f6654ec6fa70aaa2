// Optimizers and weights that ranks on a device leave to the host: the same training, in the bytes
// that the plan says.
#include <gtest/gtest.h>

#include <mutex>

#include "core/dtype.h"
#include "parallel/comm/local_communicator.h"
#include "tests/fake_device/fake_device.h"
#include "tests/fake_device/recipe_run.h"
#include "tests/trainer/saved_job.h"
#include "trainer/plan/plan.h"
#include "trainer/update_rules.h"

namespace shoal {
namespace {

constexpr OffloadTo kPlaces[] = {OffloadTo::kHost, OffloadTo::kDisk};

TrainingJob OnFakeDevice(TrainingJob job, OffloadTo optimizer, OffloadTo parameters) {
  job.device = c10::kPrivateUse1;
  job.offload_optimizer = optimizer;
  if (job.stage == 3) job.offload_parameters = parameters;
  return job;
}

// Wherever things are put, and the same bits for every place.
void ExpectAsOnHost(const TrainingJob& job) {
  const TrainingResult& want = OnOneRank(job);
  for (const OffloadTo parameters : {OffloadTo::kNowhere, OffloadTo::kHost, OffloadTo::kDisk}) {
    if (job.stage < 3 && parameters != OffloadTo::kNowhere) break;
    std::optional<TrainingResult> first;
    for (const OffloadTo optimizer : kPlaces) {
      const TrainingJob offloaded = OnFakeDevice(job, optimizer, parameters);
      const TrainingResult got = RunTrainingJob(offloaded);
      ExpectClose(got, want, 1e-10, Describe(offloaded));
      if (first) ExpectSameBits(got, *first, Describe(offloaded));
      first = got;
    }
  }
}

void OnRanks(const TrainingJob& job, const std::function<absl::Status(JobParts)>& body) {
  const absl::Status status = RunRanks(job.ranks, [&](Communicator& host) {
    return OnDevice(job.device, host,
                    [&](Communicator& comm) { return BuildTrainingJob(job, comm, body); });
  });
  EXPECT_TRUE(status.ok()) << status << ", " << Describe(job);
}

TEST(HostOffload, ZeroStages) {
  for (const int stage : {0, 1, 2, 3}) {
    ExpectAsOnHost({.stage = stage});
    ExpectAsOnHost({.ranks = 3, .stage = stage, .micro_batches = 2});
    ExpectAsOnHost(
        {.ranks = 2, .stage = stage, .micro_batches = 3, .deterministic = false, .overlap = true});
  }
  for (const int stage : {0, 2, 3})
    ExpectAsOnHost({.ranks = 4, .replicate = 2, .stage = stage, .micro_batches = 3});
}

TEST(HostOffload, OtherAxes) {
  ExpectAsOnHost({.ranks = 4, .tensor = 2, .stage = 3});
  ExpectAsOnHost({.model = "llama-tied", .ranks = 2, .pipeline = 2, .layers = 2});
  ExpectAsOnHost({.model = "llama-tied",
                  .ranks = 4,
                  .pipeline = 2,
                  .layers = 2,
                  .stage = 3,
                  .micro_batches = 2});
  ExpectAsOnHost({.ranks = 2, .context = 2, .stage = 3, .seq_length = 8});
  ExpectAsOnHost({.model = "mixtral", .ranks = 4, .expert = 2, .stage = 3});
}

TEST(HostOffload, PartsOfAModel) {
  ExpectAsOnHost({.ranks = 2, .stage = 3, .freeze = {"embed_tokens", "layers.0"}});
  ExpectAsOnHost({.ranks = 2, .stage = 3, .lora = true});
  ExpectAsOnHost({.ranks = 2, .stage = 2, .ema_decay = 0.9});
}

class HostOffloadRules : public testing::TestWithParam<const char*> {};
TEST_P(HostOffloadRules, UpdateInHostMemory) {
  ExpectAsOnHost({.ranks = 2, .stage = 1, .rule = GetParam()});
  ExpectAsOnHost({.ranks = 3, .stage = 3, .micro_batches = 2, .rule = GetParam()});
}
INSTANTIATE_TEST_SUITE_P(All, HostOffloadRules,
                         testing::Values("adamw", "sgd", "lion", "adafactor", "muon"),
                         [](const auto& info) { return std::string(info.param); });

// What computes is the rounding of the masters, whichever way it came.
TEST(HostOffload, WeightsAreTheMastersRounded) {
  for (const at::ScalarType dtype : {at::kBFloat16, at::kHalf, at::kFloat}) {
    for (const int stage : {0, 1, 2, 3}) {
      for (const OffloadTo place : kPlaces) {
        TrainingJob job{.dtype = dtype, .ranks = 2, .stage = stage, .steps = 2};
        if (dtype == at::kHalf) job.loss_scaling = LossScaling{};
        job = OnFakeDevice(job, place, stage == 3 ? place : OffloadTo::kNowhere);
        OnRanks(job, [&](JobParts parts) -> absl::Status {
          SHOAL_RETURN_IF_ERROR(parts.trainer.Run());
          for (const auto& unit : parts.parameters.units()) {
            const Tensor masters = unit->owned_weights(), computes = unit->owned_compute_weights();
            EXPECT_TRUE(masters.is_cpu());
            OffloadHold hold(masters, OffloadAccess::kRead);
            hold.Add(computes, OffloadAccess::kRead);
            EXPECT_EQ(computes.is_cpu(), job.offload_parameters != OffloadTo::kNowhere);
            EXPECT_TRUE(computes.cpu().equal(masters.to(dtype))) << Describe(job);
          }
          return absl::OkStatus();
        });
      }
    }
  }
}

TEST(HostOffload, CheckpointsGoBetweenPlaces) {
  const TrainingJob job{.ranks = 2, .stage = 3, .steps = 2};
  ExpectEachReadsAll({job, OnFakeDevice(job, OffloadTo::kHost, OffloadTo::kHost),
                      OnFakeDevice(job, OffloadTo::kDisk, OffloadTo::kHost)});
}

using Bytes = std::vector<std::pair<std::string, int64_t>>;

Bytes BytesOf(const HeldBytes& held, int64_t states, int64_t in_host, int64_t on_disk) {
  return {{"weights", held.weights},
          {"gradients", held.gradients},
          {"masters", held.master_weights},
          {"gathered", held.gathered},
          {"weights in host", held.weights_in_host},
          {"gradients in host", held.gradients_in_host},
          {"masters in host", held.master_weights_in_host},
          {"weights on disk", held.weights_on_disk},
          {"masters on disk", held.master_weights_on_disk},
          {"states", states},
          {"states in host", in_host},
          {"states on disk", on_disk}};
}

void ExpectAsPlanned(const TrainingJob& job) {
  const OptimizerSection optimizer = OptimizerRecipe(job).proto.optimizer();
  OnRanks(job, [&](JobParts parts) -> absl::Status {
    ZeroOptions zero = parts.parameters.options();
    zero.offload = nullptr;
    Planner planner(parts.model.config, job.freeze, optimizer);
    SHOAL_ASSIGN_OR_RETURN(const Plan plan,
                           planner.Make({.mesh = job.mesh(),
                                         .zero = zero,
                                         .sequences = 1,
                                         .seq_length = 7,
                                         .optimizer_states = static_cast<int>(
                                             UpdateRuleOf(optimizer)->state_names().size()),
                                         .whole_rule = WholeRuleOf(optimizer),
                                         .ema = optimizer.has_ema()}));
    const RankMemory& memory = plan.ranks[0].memory;
    EXPECT_EQ(
        BytesOf(parts.parameters.held_bytes(), parts.optimizer.state_bytes(),
                parts.optimizer.state_bytes_in_host(), parts.optimizer.state_bytes_on_disk()),
        BytesOf(memory.held, memory.optimizer, memory.optimizer_in_host, memory.offload.optimizer))
        << Describe(job);
    return absl::OkStatus();
  });
}

TEST(HostOffload, HoldsWhatIsPlanned) {
  for (const int stage : {0, 3}) {
    ExpectAsPlanned({.dtype = at::kBFloat16,
                     .device = c10::kPrivateUse1,
                     .ranks = 3,
                     .stage = stage,
                     .split_master = true});
  }
  for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16}) {
    for (const int stage : {0, 1, 2, 3}) {
      for (const OffloadTo optimizer : kPlaces) {
        TrainingJob job{.dtype = dtype, .ranks = 3, .stage = stage, .micro_batches = 2};
        job.ema_decay = stage == 2 ? 0.9 : 0;
        ExpectAsPlanned(OnFakeDevice(job, optimizer, OffloadTo::kNowhere));
        if (stage < 3) continue;
        for (const OffloadTo parameters : kPlaces)
          ExpectAsPlanned(OnFakeDevice(job, optimizer, parameters));
        job.freeze = {"layers.0"};
        ExpectAsPlanned(OnFakeDevice(job, optimizer, OffloadTo::kHost));
      }
    }
  }
}

// What a device holds between steps, but for what goes with its tokens.
TEST(HostOffload, MemoryLeavesTheDevice) {
  const auto held = [](const TrainingJob& job) {
    int64_t bytes = 0;
    const auto before = static_cast<int64_t>(FakeBytesInUse());
    OnRanks(job, [&](JobParts parts) -> absl::Status {
      SHOAL_RETURN_IF_ERROR(parts.trainer.Run());
      bytes = static_cast<int64_t>(FakeBytesInUse()) - before;
      return absl::OkStatus();
    });
    EXPECT_EQ(static_cast<int64_t>(FakeBytesInUse()), before) << Describe(job);
    return bytes;
  };
  for (const int stage : {0, 3}) {
    const TrainingJob job{
        .dtype = at::kBFloat16, .device = c10::kPrivateUse1, .layers = 6, .stage = stage};
    HeldBytes here;
    int64_t states = 0;
    OnRanks(job, [&](JobParts parts) {
      here = parts.parameters.held_bytes();
      states = parts.optimizer.state_bytes();
      return absl::OkStatus();
    });
    constexpr double kSlack = 16 << 10;  // Of the allocator's blocks
    const auto on_device = static_cast<double>(held(job));
    for (const OffloadTo place : kPlaces) {
      const auto left =
          static_cast<double>(here.master_weights + states + (stage == 3 ? here.gradients : 0));
      EXPECT_NEAR(
          on_device - static_cast<double>(held(OnFakeDevice(job, place, OffloadTo::kNowhere))),
          left, kSlack)
          << stage;
      if (stage < 3) continue;
      EXPECT_NEAR(on_device - static_cast<double>(held(OnFakeDevice(job, place, place))),
                  left + static_cast<double>(here.weights), kSlack);
    }
  }
}

// The host waits once for gradients, instead of for their norm.
TEST(HostOffload, WaitsNoMoreOften) {
  const auto waits_a_step = [](TrainingJob job) {
    std::vector<size_t> waits;
    for (const int steps : {2, 5}) {
      job.steps = steps;
      const size_t before = FakeDeviceWaits();
      RunTrainingJob(job);
      waits.push_back(FakeDeviceWaits() - before);
    }
    return (waits[1] - waits[0]) / 3;
  };
  for (const int stage : {0, 3}) {
    const TrainingJob job{.stage = stage, .micro_batches = 2};
    const size_t want = waits_a_step(OnFakeDevice(job, OffloadTo::kNowhere, OffloadTo::kNowhere));
    EXPECT_EQ(waits_a_step(OnFakeDevice(job, OffloadTo::kHost, OffloadTo::kHost)), want) << stage;
    EXPECT_EQ(waits_a_step(OnFakeDevice(job, OffloadTo::kDisk, OffloadTo::kDisk)), want) << stage;
  }
}

class OffloadRun : public RecipeRun {};

TEST_F(OffloadRun, ByRecipe) {
  const nlohmann::json recipe = Pretraining();
  const Rows want = Run(recipe, "host", 1, c10::kCPU);
  ExpectSameRows(Run(recipe, "one", 1, c10::kPrivateUse1, {"zero.offload_optimizer=host"}), want,
                 "one rank");
  const std::vector<std::string> all = {"zero.stage=3", "zero.offload_optimizer=host",
                                        "zero.offload_parameters=host"};
  ExpectSameRows(Run(recipe, "all", 1, c10::kPrivateUse1, all), want, "all in host memory");
  ExpectSameRows(Run(recipe, "two", 2, c10::kPrivateUse1, all), want, "two ranks");
  ExpectSameRows(Run(recipe, "disk", 2, c10::kPrivateUse1,
                     {"zero.stage=3", "zero.offload_optimizer=disk", "zero.offload_parameters=disk",
                      "parallelism.tensor_parallel=2"}),
                 want, "on disk");
  // Where there is no device, host memory holds all.
  ExpectSameRows(Run(recipe, "none", 2, c10::kCPU, all), want, "ranks on the CPU");
}

}  // namespace
}  // namespace shoal
