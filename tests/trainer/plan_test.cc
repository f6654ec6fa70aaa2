// What a plan says is what a run does: bytes held and sent on every rank, exactly.
#include <algorithm>

#include <gtest/gtest.h>

#include "parallel/comm/local_communicator.h"
#include "parallel/pipeline/simulate.h"
#include "tests/trainer/training_job.h"
#include "trainer/plan/plan.h"
#include "trainer/update_rules.h"

namespace shoal {
namespace {

// Of RunTrainingJob's batches.
constexpr int64_t kGlobalBatch = 36;

// By what they are for, in one order.
using ByteCounts = std::vector<std::pair<std::string, int64_t>>;

ByteCounts Counts(const HeldBytes& held, int64_t optimizer, const Traffic& sent) {
  return {{"weights", held.weights},
          {"gradients", held.gradients},
          {"master weights", held.master_weights},
          {"gathered", held.gathered},
          {"optimizer", optimizer},
          {"sent, shard", sent.shard().bytes},
          {"sent, replicate", sent.replicate.bytes},
          {"sent, context", sent.context.bytes},
          {"sent, tensor", sent.tensor.bytes},
          {"sent, expert", sent.expert.bytes},
          {"sent, activations", sent.activations.bytes},
          {"sent, gradients", sent.gradients.bytes},
          {"sent, tied", sent.tied.bytes},
          {"sent", sent.total_bytes()}};
}

struct MeasuredJob {
  ModelConfig config;
  ZeroOptions zero;
  std::vector<ByteCounts> ranks;
};

absl::Status MeasureRank(const JobParts& parts, ByteCounts& counts) {
  DeviceMesh& mesh = parts.mesh;
  const auto sent = [&] {
    Traffic axes;
    axes.shard_end.bytes = mesh.shard().counters().bytes_sent;
    if (mesh.expert() != nullptr) {
      axes.shard_end.bytes += mesh.expert_shard().counters().bytes_sent;
      axes.expert.bytes = mesh.expert()->counters().bytes_sent;
    }
    axes.replicate.bytes = mesh.replicate().counters().bytes_sent;
    axes.context.bytes = mesh.context().counters().bytes_sent;
    axes.tensor.bytes = mesh.tensor().counters().bytes_sent;
    axes.activations.bytes = mesh.pipeline().counters().bytes_sent;
    axes.gradients.bytes = mesh.pipeline_gradients().counters().bytes_sent;
    axes.tied.bytes = mesh.bytes_sent() - axes.total_bytes();
    return axes;
  };
  const Traffic before = sent();
  SHOAL_ASSIGN_OR_RETURN(const StepMetrics metrics, parts.trainer.TrainStep());
  Traffic step = sent();
  step.shard_end.bytes -= before.shard_end.bytes;
  step.replicate.bytes -= before.replicate.bytes;
  step.context.bytes -= before.context.bytes;
  step.tensor.bytes -= before.tensor.bytes;
  step.expert.bytes -= before.expert.bytes;
  step.activations.bytes -= before.activations.bytes;
  step.gradients.bytes -= before.gradients.bytes;
  step.tied.bytes -= before.tied.bytes;
  EXPECT_EQ(step.total_bytes(), metrics.bytes_sent);
  counts = Counts(parts.parameters.held_bytes(), parts.optimizer.state_bytes(), step);
  return absl::OkStatus();
}

MeasuredJob Measure(const TrainingJob& job) {
  MeasuredJob measured;
  measured.ranks.resize(job.ranks);
  const absl::Status status = RunRanks(job.ranks, [&](Communicator& comm) {
    return BuildTrainingJob(job, comm, [&](JobParts parts) {
      if (comm.rank() == 0) {
        measured.config = parts.model.config;
        measured.zero = parts.parameters.options();
      }
      return MeasureRank(parts, measured.ranks[comm.rank()]);
    });
  });
  EXPECT_TRUE(status.ok()) << status;
  return measured;
}

void ExpectAsPlanned(const TrainingJob& job) {
  MeasuredJob measured = Measure(job);
  const OptimizerSection optimizer = OptimizerRecipe(job).proto.optimizer();
  Planner planner(measured.config, job.freeze, optimizer);
  const absl::StatusOr<Plan> plan = planner.Make(
      {.mesh = job.mesh(),
       .zero = measured.zero,
       .sequence_parallel = job.sequence_parallel,
       .schedule = job.schedule,
       .chunks = job.chunks,
       .recompute = job.recompute,
       .sequences = kGlobalBatch / (job.data_ranks() * job.micro_batches),
       .seq_length = job.seq_length,
       .context_method = job.context_method,
       .optimizer_states = static_cast<int>(UpdateRuleOf(optimizer)->state_names().size()),
       .whole_rule = WholeRuleOf(optimizer),
       .ema = optimizer.has_ema()});
  ASSERT_TRUE(plan.ok()) << plan.status();
  // Shares of weights that are updated as wholes differ along the shard axis: the plan is of the
  // largest.
  const auto optimizer_bytes = [&](int rank) -> int64_t& {
    return std::find_if(measured.ranks[rank].begin(), measured.ranks[rank].end(),
                        [](const auto& count) { return count.first == "optimizer"; })
        ->second;
  };
  for (int rank = 0; rank < job.ranks && !job.rule.empty() && job.stage > 0; ++rank) {
    const int shards = job.mesh().weight_shards(), place = rank / job.tensor % shards;
    if (place != 0) continue;
    int64_t most = 0;
    for (int s = 0; s < shards; ++s) most = std::max(most, optimizer_bytes(rank + s * job.tensor));
    for (int s = 0; s < shards; ++s) optimizer_bytes(rank + s * job.tensor) = most;
  }
  for (int rank = 0; rank < job.ranks; ++rank) {
    const int tensor = rank % job.tensor, pipeline = rank / (job.ranks / job.pipeline);
    int found = 0;
    for (const RankPlan& kind : plan->ranks) {
      const auto& alike = kind.tensor;
      if (kind.pipeline != pipeline || std::find(alike.begin(), alike.end(), tensor) == alike.end())
        continue;
      ++found;
      EXPECT_EQ(Counts(kind.memory.held, kind.memory.optimizer, kind.traffic), measured.ranks[rank])
          << Describe(job) << ", rank " << rank;
    }
    EXPECT_EQ(found, 1) << Describe(job) << ", rank " << rank;
  }
}

int64_t MasterBytes(const TrainingJob& job) {
  const MeasuredJob measured = Measure(job);
  for (const auto& [what, bytes] : measured.ranks[0]) {
    if (what == "master weights") return bytes;
  }
  return -1;
}

TEST(Plan, ZeroStages) {
  for (int stage = 0; stage <= 3; ++stage) {
    for (at::ScalarType dtype : {at::kDouble, at::kFloat, at::kBFloat16}) {
      for (int micro_batches : {1, 3}) {
        for (bool deterministic : {true, false}) {
          for (int replicate : {1, 2}) {
            ExpectAsPlanned({.model = stage % 2 == 0 ? "llama" : "gpt2",
                             .dtype = dtype,
                             .ranks = 3 * replicate,
                             .replicate = replicate,
                             .stage = stage,
                             .micro_batches = micro_batches,
                             .deterministic = deterministic,
                             .sgd = replicate == 2});
          }
        }
      }
    }
  }
}

TEST(Plan, SplitMasterWeightsTakeTwoBytes) {
  for (int stage = 0; stage <= 3; ++stage) {
    for (const char* rule : {"adamw", "muon"}) {
      for (const bool freezes : {false, true}) {
        TrainingJob job{.dtype = at::kBFloat16,
                        .ranks = 4,
                        .tensor = 2,
                        .stage = stage,
                        .rule = rule,
                        .ema_decay = 0.5};
        if (freezes) job.freeze = {"mlp"};
        ExpectAsPlanned(job);
        const int64_t whole = MasterBytes(job);
        job.split_master = true;
        ExpectAsPlanned(job);
        EXPECT_EQ(2 * MasterBytes(job), whole) << Describe(job);
      }
    }
  }
}

TEST(Plan, QuantizedWeightsAndGradients) {
  for (int stage : {2, 3}) {
    for (at::ScalarType dtype : {at::kFloat, at::kBFloat16}) {
      for (int which = 1; which <= 3; ++which) {
        if (stage == 2 && which != 2) continue;
        for (int replicate : {1, 2}) {
          ExpectAsPlanned({.model = replicate == 1 ? "llama" : "llama-tied",
                           .dtype = dtype,
                           .ranks = 6 * replicate,
                           .replicate = replicate,
                           .tensor = 2,
                           .stage = stage,
                           .micro_batches = 3,
                           .overlap = replicate == 2,
                           .quantized_weights = which != 2,
                           .quantized_gradients = which != 1,
                           .freeze = {"mlp.up"}});
        }
      }
    }
  }
  ExpectAsPlanned({.model = "mixtral-all",
                   .dtype = at::kFloat,
                   .ranks = 4,
                   .expert = 2,
                   .stage = 3,
                   .quantized_weights = true,
                   .quantized_gradients = true});
  ExpectAsPlanned({.dtype = at::kFloat, .ranks = 1, .stage = 3, .quantized_weights = true});
}

TEST(Plan, Float16) {
  for (int stage = 0; stage <= 3; ++stage)
    ExpectAsPlanned({.dtype = at::kHalf, .ranks = 4, .tensor = 2, .stage = stage});
}

TEST(Plan, OverlapTakesASecondSetOfBuffers) {
  for (int stage = 0; stage <= 3; ++stage) {
    for (const char* model : {"llama", "llama-tied"}) {
      ExpectAsPlanned({.model = model,
                       .dtype = at::kBFloat16,
                       .ranks = 4,
                       .tensor = 2,
                       .stage = stage,
                       .micro_batches = 3,
                       .overlap = true});
    }
  }
}

TEST(Plan, TensorParallel) {
  for (const char* model : {"llama", "llama-tied", "llama-uneven", "gpt2"}) {
    const std::string name = model;
    const std::vector<int> sizes = name == "gpt2"           ? std::vector{3}
                                   : name == "llama-uneven" ? std::vector{2, 3, 6}
                                                            : std::vector{2, 4};
    for (int tensor : sizes) {
      for (bool sequence_parallel : {true, false}) {
        for (Recompute recompute : {Recompute::kNone, Recompute::kSelective, Recompute::kFull}) {
          ExpectAsPlanned({.model = model,
                           .dtype = at::kFloat,
                           .ranks = 2 * tensor,
                           .tensor = tensor,
                           .sequence_parallel = sequence_parallel && 36 / 6 * 7 % tensor == 0,
                           .recompute = recompute,
                           .layers = 3,
                           .stage = tensor % 4,
                           .micro_batches = 3});
        }
      }
    }
  }
}

TEST(Plan, PipelineParallel) {
  for (const char* model : {"llama", "llama-tied", "gpt2"}) {
    for (const PipelineCase& c : kPipelines) {
      for (int pipeline : {2, 3}) {
        for (int stage = 0; stage <= c.highest_stage; ++stage) {
          ExpectAsPlanned({.model = model,
                           .dtype = at::kFloat,
                           .ranks = 2 * pipeline,
                           .pipeline = pipeline,
                           .schedule = c.schedule,
                           .chunks = c.chunks,
                           .layers = 4,
                           .stage = stage,
                           .micro_batches = stage == 1 ? 1 : 6,
                           .deterministic = stage != 2});
        }
      }
    }
  }
}

TEST(Plan, EveryOptimizer) {
  for (const char* rule : {"sgd", "lion", "adafactor", "muon", "adamw_8bit"}) {
    for (int stage = 0; stage <= 3; ++stage) {
      for (double ema_decay : {0.0, 0.9}) {
        const at::ScalarType dtype = stage % 2 == 0 ? at::kFloat : at::kBFloat16;
        TrainingJob job{.dtype = dtype, .ranks = 3, .stage = stage};
        job.rule = rule;
        job.ema_decay = ema_decay;
        ExpectAsPlanned(job);
        for (const char* model : {"llama-uneven", "gpt2", "llama-tied"}) {
          job.model = model;
          job.tensor = std::string(model) == "gpt2" ? 3 : 2;
          job.ranks = 2 * job.tensor;
          ExpectAsPlanned(job);
        }
        job.pipeline = 2;
        job.ranks = 8;
        job.layers = 3;
        job.micro_batches = 3;
        ExpectAsPlanned(job);
      }
    }
  }
}

TEST(Plan, ContextParallel) {
  using enum ContextParallel::Method;
  for (const char* model : {"llama", "llama-uneven", "gpt2"}) {
    const std::string name = model;
    for (auto method : {kRing, kUlysses}) {
      for (int context : {2, 3}) {
        for (int stage = 0; stage <= 3; ++stage) {
          const int tensor = stage % 2 + 1;
          const int heads = name == "gpt2" ? 3 : name == "llama-uneven" ? 6 : 4;
          if (heads % tensor != 0) continue;
          if (method == kUlysses && heads / tensor % context != 0) continue;
          TrainingJob job{.model = model,
                          .dtype = stage == 2   ? at::kDouble
                                   : stage == 3 ? at::kBFloat16
                                                : at::kFloat,
                          .ranks = 2 * context * tensor,
                          .tensor = tensor,
                          .context = context,
                          .context_method = method,
                          .recompute = static_cast<Recompute>(stage % 3),
                          .layers = 3,
                          .stage = stage,
                          .micro_batches = 3,
                          .deterministic = stage < 3,
                          .seq_length = 24};
          ExpectAsPlanned(job);
          job.pipeline = 2;
          job.ranks *= 2;
          job.rule = "muon";
          ExpectAsPlanned(job);
        }
      }
    }
  }
}

TEST(Plan, ThreeAxes) {
  for (const char* model : {"llama", "llama-tied"}) {
    for (const PipelineCase& c : kPipelines) {
      for (int stage = 0; stage <= c.highest_stage; ++stage) {
        ExpectAsPlanned({.model = model,
                         .dtype = stage == 0 ? at::kDouble : at::kBFloat16,
                         .ranks = 8,
                         .tensor = 2,
                         .sequence_parallel = stage % 2 == 0,
                         .pipeline = 2,
                         .schedule = c.schedule,
                         .chunks = c.chunks,
                         .recompute = stage == 3 ? Recompute::kFull : Recompute::kNone,
                         .layers = 4,
                         .stage = stage,
                         .micro_batches = 3});
      }
    }
  }
}

// Every token chooses every expert, so that what ranks send one another is known.
TEST(Plan, Experts) {
  for (const char* model : {"mixtral-all", "dots1-all"}) {
    for (int expert : {1, 2, 4}) {
      for (int stage = 0; stage <= 3; ++stage) {
        for (at::ScalarType dtype : {at::kFloat, at::kBFloat16}) {
          ExpectAsPlanned({.model = model,
                           .dtype = dtype,
                           .ranks = 4,
                           .expert = expert,
                           .recompute = stage == 1 ? Recompute::kFull : Recompute::kNone,
                           .stage = stage,
                           .micro_batches = 3,
                           .deterministic = stage != 2});
        }
        ExpectAsPlanned({.model = model,
                         .dtype = at::kFloat,
                         .ranks = 8,
                         .tensor = expert == 4 ? 1 : 2,
                         .sequence_parallel = stage % 2 == 0,
                         .pipeline = 2,
                         .expert = expert,
                         .layers = 3,
                         .stage = stage,
                         .micro_batches = 3,
                         .overlap = stage == 3});
      }
    }
  }
}

TEST(Plan, FrozenWeights) {
  for (const char* model : {"llama", "llama-tied", "gpt2"}) {
    for (const char* frozen : {"embed_tokens|wte", "norm|ln_", "layers\\.|h\\.0"}) {
      for (int stage : {0, 2, 3}) {
        for (int pipeline : {1, 2}) {
          ExpectAsPlanned({.model = model,
                           .dtype = at::kFloat,
                           .ranks = 2 * pipeline * (std::string(model) == "gpt2" ? 1 : 2),
                           .tensor = std::string(model) == "gpt2" ? 1 : 2,
                           .pipeline = pipeline,
                           .stage = stage,
                           .micro_batches = 3,
                           .freeze = {frozen}});
        }
      }
    }
  }
}

TEST(ScheduleShape, FewMicroBatchesStandForMany) {
  for (const PipelineCase& c : kPipelines) {
    for (int ranks : {1, 2, 4, 5}) {
      if (ranks == 1 && c.schedule == ScheduleKind::kInterleaved1F1B) continue;
      for (int micro_batches : {1, ranks, 7 * ranks, 9 * ranks + 1}) {
        const absl::StatusOr<ScheduleShape> shape =
            ScheduleShape::Make(c.schedule, ranks, micro_batches, c.chunks);
        ASSERT_TRUE(shape.ok()) << shape.status();
        const Schedule whole = *MakeSchedule(c.schedule, ranks, micro_batches, c.chunks);
        const Simulation simulation = *Simulate(whole, {});
        const std::string what = absl::StrCat(NameOf(c.schedule), ", ", ranks, " ranks, ",
                                              micro_batches, " micro-batches");
        EXPECT_NEAR(shape->bubble(), simulation.bubble, 0.01) << what;
        for (int rank = 0; rank < ranks; ++rank) {
          const std::vector<int64_t> bytes(c.chunks, 10);
          EXPECT_EQ(shape->PeakBytes(rank, bytes), 10 * simulation.peak_activations[rank])
              << what << ", rank " << rank;
        }
      }
    }
  }
}

}  // namespace
}  // namespace shoal
