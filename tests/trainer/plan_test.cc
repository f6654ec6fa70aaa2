// What a plan says is what a run does: bytes held and sent on every rank, exactly.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "core/recipe.h"
#include "parallel/comm/local_communicator.h"
#include "parallel/pipeline/simulate.h"
#include "tests/trainer/training_job.h"
#include "trainer/plan/plan_report.h"
#include "trainer/plan/recipe_plan.h"
#include "trainer/plan/suggest.h"

namespace shoal {
namespace {

using testing::HasSubstr;

// Of RunTrainingJob's batches.
constexpr int64_t kGlobalBatch = 36;
constexpr int64_t kSeqLength = 7;

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
          {"sent, tensor", sent.tensor.bytes},
          {"sent, activations", sent.activations.bytes},
          {"sent, gradients", sent.gradients.bytes},
          {"sent, tied", sent.tied.bytes},
          {"sent", sent.total_bytes()}};
}

struct MeasuredJob {
  ModelConfig config;
  ZeroOptions zero;
  int optimizer_states = 0;
  std::vector<ByteCounts> ranks;
};

absl::Status MeasureRank(const JobParts& parts, ByteCounts& counts) {
  DeviceMesh& mesh = parts.mesh;
  const auto sent = [&] {
    Traffic axes;
    axes.shard_end.bytes = mesh.shard().counters().bytes_sent;
    axes.replicate.bytes = mesh.replicate().counters().bytes_sent;
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
  step.tensor.bytes -= before.tensor.bytes;
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
  measured.optimizer_states = job.sgd ? 1 : 2;
  return measured;
}

void ExpectAsPlanned(const TrainingJob& job) {
  const MeasuredJob measured = Measure(job);
  Planner planner(measured.config, job.freeze);
  const absl::StatusOr<Plan> plan =
      planner.Make({.mesh = job.mesh(),
                    .zero = measured.zero,
                    .sequence_parallel = job.sequence_parallel,
                    .schedule = job.schedule,
                    .chunks = job.chunks,
                    .recompute = job.recompute,
                    .sequences = kGlobalBatch / (job.data_ranks() * job.micro_batches),
                    .seq_length = kSeqLength,
                    .optimizer_states = measured.optimizer_states});
  ASSERT_TRUE(plan.ok()) << plan.status();
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

struct PipelineCase {
  ScheduleKind schedule;
  int chunks;
  int highest_stage;
};
const PipelineCase kPipelines[] = {{ScheduleKind::kGpipe, 1, 3},
                                   {ScheduleKind::k1F1B, 1, 3},
                                   {ScheduleKind::kInterleaved1F1B, 2, 3},
                                   {ScheduleKind::kZbH1, 1, 1},
                                   {ScheduleKind::kZbV, 2, 1}};

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

// A Llama of 70 billion weights.
constexpr char kLargeRecipe[] = R"(
model:
  dtype: bfloat16
  config: {model_type: llama, vocab_size: 128256, hidden_size: 8192, num_hidden_layers: 80,
           num_attention_heads: 64, num_key_value_heads: 8, intermediate_size: 28672,
           max_position_embeddings: 8192}
data: {train: [{path: nowhere.bin, format: tokens}], seq_length: 4096}
training: {max_steps: 1, global_batch_size: 1024}
zero: {stage: 1}
)";

LoadedRecipe LargeRecipe(const std::vector<std::string>& overrides = {}) {
  absl::StatusOr<LoadedRecipe> recipe = ParseRecipe(kLargeRecipe, "large.yaml", overrides);
  EXPECT_TRUE(recipe.ok()) << recipe.status();
  return *std::move(recipe);
}

Planner LargePlanner(const LoadedRecipe& recipe) {
  PosixFileSystem files;
  return PlannerOf(recipe, *PlannedModel(recipe, files));
}

Hardware Named(const std::string& name) {
  PosixFileSystem files;
  return *FindHardware(files, name);
}

TEST(Plan, MemoryThatIsNotThere) {
  const LoadedRecipe recipe = LargeRecipe();
  Planner planner = LargePlanner(recipe);
  const absl::StatusOr<Plan> plan = PlanRecipe(recipe, 64, Named("h100"), planner);
  ASSERT_TRUE(plan.ok()) << plan.status();
  EXPECT_THAT(MemoryVerdict(*plan, Named("h100")), HasSubstr("does not fit: "));
  const PlanFrame frame{.recipe = "large.yaml",
                        .model = "llama",
                        .batch_equation = "1024",
                        .hardware = Named("h100")};
  EXPECT_THAT(PlanText(frame, *plan), HasSubstr("ERROR does not fit: "));
  EXPECT_THAT(PlanJson(frame, *plan), HasSubstr("\"fits\": false"));
}

TEST(Plan, ErrorsNameTheKey) {
  const auto error = [](int ranks, const std::vector<std::string>& overrides) {
    const LoadedRecipe recipe = LargeRecipe(overrides);
    Planner planner = LargePlanner(recipe);
    return std::string(PlanRecipe(recipe, ranks, Named("h100"), planner).status().message());
  };
  EXPECT_THAT(error(48, {"parallelism.tensor_parallel=3", "training.global_batch_size=1008"}),
              HasSubstr("parallelism.tensor_parallel: 64 attention heads"));
  EXPECT_THAT(error(128, {"parallelism.pipeline_parallel=128"}),
              HasSubstr("parallelism.pipeline_parallel: 82 blocks"));
  EXPECT_THAT(error(64, {"model.freeze=[nothing]"}), HasSubstr("model.freeze: \"nothing\""));
}

TEST(Suggest, FastestMeshesThatFit) {
  for (int ranks : {64, 96, 2048}) {
    const LoadedRecipe recipe =
        LargeRecipe({absl::StrCat("training.global_batch_size=", ranks == 96 ? 960 : 2048)});
    Planner planner = LargePlanner(recipe);
    const Hardware h100 = Named("h100");
    const absl::StatusOr<Suggestions> found = SuggestMeshes(recipe, ranks, h100, planner);
    ASSERT_TRUE(found.ok()) << found.status();
    ASSERT_EQ(found->best.size(), 10u);
    EXPECT_GT(found->tried, found->fitting);
    double before = 0;
    for (const Suggestion& suggestion : found->best) {
      EXPECT_GE(suggestion.time.total, before);
      before = suggestion.time.total;
      EXPECT_EQ(suggestion.plan.job.mesh.num_ranks(), ranks);
      EXPECT_LE(suggestion.plan.fullest().memory.total_bytes(), 0.9 * h100.memory_bytes);
      // Typed, the overrides make this very plan.
      std::vector<std::string> overrides = suggestion.overrides;
      const LoadedRecipe typed = LargeRecipe(overrides);
      const absl::StatusOr<Plan> plan = PlanRecipe(typed, ranks, h100, planner);
      ASSERT_TRUE(plan.ok()) << plan.status();
      EXPECT_EQ(EstimateStep(*plan, h100).total, suggestion.time.total);
      EXPECT_EQ(plan->fullest().memory.total_bytes(),
                suggestion.plan.fullest().memory.total_bytes());
    }
  }
}

TEST(Suggest, SaysHowMuchIsMissing) {
  const LoadedRecipe recipe = LargeRecipe();
  Planner planner = LargePlanner(recipe);
  const absl::StatusOr<Suggestions> found = SuggestMeshes(recipe, 4, Named("a100"), planner);
  ASSERT_TRUE(found.ok()) << found.status();
  EXPECT_EQ(found->fitting, 0);
  EXPECT_GT(found->least_bytes, 80e9);
  EXPECT_THAT(SuggestionsText({.hardware = Named("a100")}, *found), HasSubstr("none fits"));
}

constexpr char kHardware[] = R"(
name: ours
ranks_per_host: 4
memory_bytes: 16e9
memory_bytes_per_second: 1e12
matrix_flops_per_second: {float32: 2e13}
inside_host: {bytes_per_second: 1e10, latency_seconds: 1e-5}
between_hosts: {bytes_per_second: 1e9, latency_seconds: 5e-5}
)";

std::string HardwareError(const std::string& from, const std::string& to) {
  std::string text = kHardware;
  text.replace(text.find(from), from.size(), to);
  return std::string(ParseHardware(text, "ours.yaml").status().message());
}

TEST(Hardware, IsReadStrictly) {
  const absl::StatusOr<Hardware> ours = ParseHardware(kHardware, "ours.yaml");
  ASSERT_TRUE(ours.ok()) << ours.status();
  EXPECT_EQ(ours->name, "ours");
  EXPECT_EQ(ours->ranks_per_host, 4);
  EXPECT_EQ(ours->MatrixFlopsOf(at::kFloat), 2e13);
  EXPECT_EQ(ours->MatrixFlopsOf(at::kBFloat16), 0);
  EXPECT_EQ(ours->LinkOver(4).bytes_per_second, 1e10);
  EXPECT_EQ(ours->LinkOver(8).bytes_per_second, 1e9);

  EXPECT_EQ(HardwareError("memory_bytes: ", "memory_byte: "),
            "ours.yaml:2:1: memory_bytes: missing\n"
            "ours.yaml:4:1: memory_byte: unknown key, did you mean memory_bytes?");
  EXPECT_THAT(HardwareError("16e9", "16 GB"),
              HasSubstr("memory_bytes: got 16 GB, expected a number above 0"));
  EXPECT_THAT(HardwareError("host: 4", "host: 0.5"), HasSubstr("ranks_per_host: got 0.5"));
  EXPECT_THAT(HardwareError("{float32: 2e13}", "2e13"), HasSubstr("expected a map such as"));
  EXPECT_THAT(HardwareError(", latency_seconds: 1e-5", ""),
              HasSubstr("inside_host.latency_seconds: missing"));
  EXPECT_THAT(HardwareError("float32", "fp32"),
              HasSubstr("matrix_flops_per_second.fp32: unknown key"));
  EXPECT_FALSE(ParseHardware("- a list", "ours.yaml").ok());
  EXPECT_FALSE(ParseHardware("", "ours.yaml").ok());
}

TEST(Hardware, UnknownNamesGetTheNearest) {
  PosixFileSystem files;
  EXPECT_THAT(std::string(FindHardware(files, "h10").status().message()),
              HasSubstr("did you mean h100?"));
  EXPECT_EQ(FindHardware(files, "/nowhere/ours.yaml").status().code(), absl::StatusCode::kNotFound);
}

}  // namespace
}  // namespace shoal
