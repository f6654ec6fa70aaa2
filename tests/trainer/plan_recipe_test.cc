// Plans of recipes: their errors, suggestions of meshes, descriptions of machines.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "absl/strings/str_cat.h"
#include "core/recipe.h"
#include "trainer/plan/plan_report.h"
#include "trainer/plan/recipe_plan.h"
#include "trainer/plan/suggest.h"

namespace shoal {
namespace {

using testing::HasSubstr;

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
