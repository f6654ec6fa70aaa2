#include "core/recipe.h"

#include <filesystem>
#include <fstream>
#include <set>
#include <sstream>
#include <string>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "core/nearest_name.h"
#include "core/recipe_reference.h"
#include "core/recipe_schema.h"
#include "core/recipe_validation.h"

namespace shoal {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

constexpr char kGood[] = R"(model:
  config:
    model_type: llama
    hidden_size: 64
    rope_theta: 1e4
    tie_word_embeddings: no
tokenizer: {train: {}}
data:
  train:
    - path: corpus.txt
training:
  max_steps: 100
)";

LoadedRecipe Load(const std::string& text, const std::vector<std::string>& overrides = {}) {
  absl::StatusOr<LoadedRecipe> recipe = ParseRecipe(text, "train.yaml", overrides);
  EXPECT_TRUE(recipe.ok()) << recipe.status().message();
  return recipe.ok() ? *std::move(recipe) : LoadedRecipe();
}

TEST(Recipe, HoldsValuesDefaultsAndPlaces) {
  const LoadedRecipe recipe = Load(kGood);
  EXPECT_EQ(recipe.proto.training().max_steps(), 100);
  EXPECT_EQ(recipe.proto.optimizer().learning_rate(), 5e-5);
  EXPECT_EQ(recipe.proto.run().output_dir(), "runs/run");
  EXPECT_TRUE(recipe.proto.has_sample());
  EXPECT_FALSE(recipe.proto.training().has_global_batch_size());
  EXPECT_TRUE(recipe.IsSet("training.max_steps"));
  EXPECT_TRUE(recipe.IsSet("data.train.0.path"));
  EXPECT_FALSE(recipe.IsSet("run.output_dir"));
  EXPECT_FALSE(recipe.IsSet("optimizer.learning_rate"));
  EXPECT_EQ(recipe.ErrorAt("model.config.hidden_size", "odd").message(),
            "train.yaml:4:18: model.config.hidden_size: odd");
  EXPECT_EQ(recipe.ErrorAt("training.global_batch_size", "odd").message(),
            "train.yaml:12:3: training.global_batch_size: odd");
  EXPECT_EQ(recipe.ErrorAt("zero.stage", "odd").message(), "train.yaml:1:1: zero.stage: odd");
}

TEST(Recipe, TypesComeFromTheSchemaAndFreeFormOnesFromYaml) {
  const LoadedRecipe recipe =
      Load(kGood, {"run.name=no", "optimizer.learning_rate=1e-3", "training.max_steps=1e3",
                   "model.config.name='12'", "model.config.layers=[1, 2.5, {a: true}]"});
  EXPECT_EQ(recipe.proto.run().name(), "no");
  EXPECT_EQ(recipe.proto.run().output_dir(), "runs/no");
  EXPECT_EQ(recipe.proto.optimizer().learning_rate(), 1e-3);
  EXPECT_EQ(recipe.proto.training().max_steps(), 1000);
  const auto& config = recipe.proto.model().config().fields();
  EXPECT_EQ(config.at("hidden_size").number_value(), 64);
  EXPECT_EQ(config.at("rope_theta").number_value(), 10000);
  EXPECT_EQ(config.at("tie_word_embeddings").string_value(), "no");
  EXPECT_EQ(config.at("name").string_value(), "12");
  EXPECT_THAT(recipe.ResolvedYaml(), HasSubstr("layers: [1, 2.5, {a: true}]"));
}

TEST(Recipe, OverridesListsEntriesAndNulls) {
  const LoadedRecipe recipe = Load(
      kGood, {"sample.prompts=[a, 'b, c']", "data.train.0.path=x y.txt", "data.train.1.path=z.txt",
              "logging.report_to=[console]", "logging.report_to.1=jsonl", "training.max_steps=null",
              "training.num_train_epochs=2"});
  EXPECT_THAT(recipe.proto.sample().prompts(), ElementsAre("a", "b, c"));
  EXPECT_EQ(recipe.proto.data().train(0).path(), "x y.txt");
  EXPECT_EQ(recipe.proto.data().train(1).path(), "z.txt");
  EXPECT_THAT(recipe.proto.logging().report_to(),
              ElementsAre(LoggingSection::console, LoggingSection::jsonl_file));
  EXPECT_FALSE(recipe.proto.training().has_max_steps());
  EXPECT_EQ(Load(kGood, {"data.train=[{path: q.txt}]"}).proto.data().train(0).path(), "q.txt");
}

TEST(Recipe, ReadsBroughtNamesWithANotice) {
  const LoadedRecipe recipe =
      Load(std::string(kGood) + "lr: 3e-4\nbf16: true\nzero_optimization: {stage: 2}\n",
           {"training.micro_batch_size=4", "dp_shard_size=2"});
  EXPECT_EQ(recipe.proto.optimizer().learning_rate(), 3e-4);
  EXPECT_EQ(recipe.proto.model().dtype(), bfloat16);
  EXPECT_EQ(recipe.proto.zero().stage(), 2);
  EXPECT_EQ(recipe.proto.training().per_device_train_batch_size(), 4);
  EXPECT_EQ(recipe.proto.parallelism().data_parallel_shard(), 2);
  ASSERT_EQ(recipe.notices.size(), 5u);
  EXPECT_EQ(recipe.notices[0], "train.yaml:13:1: lr is read as optimizer.learning_rate");
  EXPECT_EQ(recipe.notices[3],
            "command line: training.micro_batch_size=4: training.micro_batch_size is read as "
            "training.per_device_train_batch_size");
  EXPECT_EQ(Load(std::string(kGood) + "lr: 3e-4\n", {"optimizer.learning_rate=1"})
                .proto.optimizer()
                .learning_rate(),
            1);
}

TEST(Recipe, SubstitutesReferences) {
  const LoadedRecipe recipe =
      Load(kGood, {"run.name=${model.dtype}-${optimizer.learning_rate}-$${x}",
                   "eval.max_batches=${training.max_steps}"});
  EXPECT_EQ(recipe.proto.run().name(), "float32-5.0e-05-${x}");
  EXPECT_EQ(recipe.proto.eval().max_batches(), 100);
  EXPECT_EQ(Load(recipe.ResolvedYaml()).proto.run().name(), "float32-5.0e-05-${x}");
}

TEST(Recipe, PrintsWhatReadsBackToTheSame) {
  const LoadedRecipe recipe = Load(kGood, {"run.name=\"é \\\"x\\\" \\\\ \\t: #\"",
                                           "sample.prompts=['', ' ', 'null', '~', '1', 'a\nb']"});
  const LoadedRecipe again = Load(recipe.ResolvedYaml());
  EXPECT_EQ(again.proto.run().name(), recipe.proto.run().name());
  EXPECT_EQ(again.ResolvedYaml(), recipe.ResolvedYaml());
  EXPECT_EQ(again.Hash(), recipe.Hash());
  EXPECT_NE(Load(kGood).Hash(), recipe.Hash());
  EXPECT_EQ(recipe.Hash().size(), 16u);
}

class ExtendsTest : public testing::Test {
 protected:
  void Write(const std::string& name, const std::string& text) {
    const std::filesystem::path path = folder_ / name;
    std::filesystem::create_directories(path.parent_path());
    std::ofstream(path) << text;
  }
  ~ExtendsTest() override { std::filesystem::remove_all(folder_); }

  const std::filesystem::path folder_ =
      std::filesystem::path(testing::TempDir()) / "shoal_extends_test";
};

TEST_F(ExtendsTest, MergesDeeplyAndKeepsPlaces) {
  Write("base/good.yaml", kGood);
  Write("base/small.yaml",
        "extends: good.yaml\nmodel: {config: {hidden_size: 32}}\nlr: 1\nzero: {stage: 1}\n");
  Write("train.yaml",
        "extends: base/small.yaml\ndata: {train: [{path: a}, {path: b}]}\noptimizer: "
        "{learning_rate: 2}\n");
  absl::StatusOr<LoadedRecipe> recipe = LoadRecipe((folder_ / "train.yaml").string());
  ASSERT_TRUE(recipe.ok()) << recipe.status().message();
  EXPECT_EQ(recipe->proto.model().config().fields().at("hidden_size").number_value(), 32);
  EXPECT_EQ(recipe->proto.model().config().fields().at("model_type").string_value(), "llama");
  EXPECT_EQ(recipe->proto.optimizer().learning_rate(), 2);
  EXPECT_EQ(recipe->proto.zero().stage(), 1);
  EXPECT_EQ(recipe->proto.data().train_size(), 2);
  EXPECT_THAT(recipe->OriginOf("zero.stage").ToString(), HasSubstr("base/small.yaml:4:15"));
  EXPECT_THAT(recipe->OriginOf("training.max_steps").ToString(), HasSubstr("base/good.yaml:12:14"));
  EXPECT_THAT(recipe->OriginOf("data.train").ToString(), HasSubstr("train.yaml:2:15"));
}

TEST(LoadRecipe, NamesTheFileThatCannotBeRead) {
  const absl::Status missing = LoadRecipe("nowhere/train.yaml").status();
  EXPECT_EQ(missing.code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(missing.message(), "cannot read nowhere/train.yaml: there is no such file");
  EXPECT_FALSE(LoadRecipe("/").ok());
}

BatchPlan Plan(const std::string& training, int ranks) {
  const absl::StatusOr<BatchPlan> plan = PlanBatch(Load(std::string(kGood) + training), ranks);
  EXPECT_TRUE(plan.ok()) << plan.status().message();
  return plan.value_or(BatchPlan());
}

TEST(PlanBatch, AnyTwoGiveTheThird) {
  const BatchPlan none = Plan("", 2);
  EXPECT_EQ(none.equation,
            "global_batch_size 16 = per_device_train_batch_size 8 * gradient_accumulation_steps 1 "
            "* ranks 2");
  EXPECT_EQ(Plan("  per_device_train_batch_size: 4\n  global_batch_size: 32\n", 2).accumulation, 4);
  EXPECT_EQ(Plan("  gradient_accumulation_steps: 4\n  global_batch_size: 32\n", 2).per_device, 4);
  EXPECT_EQ(Plan("  gradient_accumulation_steps: 4\n  per_device_train_batch_size: 3\n", 2).global,
            24);
  const BatchPlan global = Plan("  global_batch_size: 36\n", 3);
  EXPECT_EQ(global.per_device, 6);  // The largest of at most 8 that divides 12
  EXPECT_EQ(global.accumulation, 2);
  EXPECT_EQ(Plan("  global_batch_size: 2\n", 2).per_device, 1);
}

TEST(PlanBatch, SaysWhatDoesNotComeOut) {
  const LoadedRecipe odd =
      Load(std::string(kGood) + "  per_device_train_batch_size: 2\n  global_batch_size: 10\n");
  EXPECT_EQ(PlanBatch(odd, 2).status().message(),
            "train.yaml:14:22: training.global_batch_size: got 10, expected a multiple of "
            "per_device_train_batch_size 2 * "
            "gradient_accumulation_steps 1 * ranks 2 = 4, such as 8 or 12");
  const LoadedRecipe all = Load(std::string(kGood) +
                                "  per_device_train_batch_size: 2\n  gradient_accumulation_steps: "
                                "1\n  global_batch_size: 8\n");
  EXPECT_TRUE(PlanBatch(all, 4).ok());
  EXPECT_THAT(std::string(PlanBatch(all, 2).status().message()),
              HasSubstr("global_batch_size 8 = per_device_train_batch_size 2 * "
                        "gradient_accumulation_steps 1 * ranks 2 = 4"));
}

TEST(PlanMesh, MultipliesToTheRanks) {
  EXPECT_EQ(PlanMesh(Load(kGood), 3)->equation,
            "3 ranks = replicate 1 * shard 3 * tensor 1 * pipeline 1 * context 1");
  EXPECT_EQ(PlanMesh(Load(kGood), 1)->data_parallel_ranks, 1);
  const LoadedRecipe four = Load(kGood, {"parallelism.data_parallel_shard=4"});
  EXPECT_TRUE(PlanMesh(four, 4).ok());
  EXPECT_EQ(
      PlanMesh(four, 2).status().message(),
      "command line: parallelism.data_parallel_shard=4: parallelism.data_parallel_shard: the mesh "
      "does not come out: 2 "
      "ranks = replicate 1 * shard 4 * tensor 1 * pipeline 1 * context 1; change -n or "
      "data_parallel_shard (0: what the other axes leave)");
}

TEST(RecipeReference, EveryKeyAndValueHasACommentAndAReadableRange) {
  std::set<std::string> paths;
  for (const RecipeDoc& doc : RecipeReference()) {
    EXPECT_NE(doc.comment, "") << doc.path << " has no comment in recipe.proto";
    EXPECT_TRUE(paths.insert(doc.path).second) << doc.path;
    RangeOf(*doc.field);  // A malformed one would stop the test
    for (size_t i = 0; i < doc.value_comments.size(); ++i) {
      const bool plain = doc.field->enum_type()->value(i)->name() != "auto_dtype";
      if (!plain) continue;
      EXPECT_NE(doc.value_comments[i], "")
          << doc.path << " " << EnumYamlName(*doc.field->enum_type()->value(i));
    }
  }
  EXPECT_EQ(paths.count("data.train.path"), 1u);
}

TEST(RecipeReference, TextNamesTypeDefaultAndRange) {
  EXPECT_THAT(*RecipeReferenceText("zero.stage"),
              HasSubstr("zero.stage: a whole number between 0 and 3, default 0\n"));
  EXPECT_THAT(*RecipeReferenceText("optimizer"),
              HasSubstr("optimizer.adam_beta1: a number of at least 0 and below 1, default 0.9"));
  EXPECT_EQ(RecipeReferenceText("zero.stag").status().message(),
            "zero.stag: unknown key, did you mean zero.stage?");
}

TEST(RecipeReference, JsonSchemaIsJsonAndFollowsTheSchema) {
  const nlohmann::json schema = nlohmann::json::parse(RecipeJsonSchema());
  const nlohmann::json& stage = schema.at("properties").at("zero").at("properties").at("stage");
  EXPECT_EQ(stage.at("type"), "integer");
  EXPECT_EQ(stage.at("minimum"), 0);
  EXPECT_EQ(stage.at("maximum"), 3);
  EXPECT_EQ(stage.at("default"), 0);
  const nlohmann::json& source =
      schema.at("properties").at("data").at("properties").at("train").at("items");
  EXPECT_EQ(source.at("required"), nlohmann::json({"path"}));
  EXPECT_EQ(source.at("additionalProperties"), false);
  EXPECT_EQ(source.at("properties").at("format").at("enum").at(0), "auto");
}

TEST(RecipeReference, ThePageInDocsIsCurrent) {
  std::ifstream file("docs/recipe-reference.md");
  std::stringstream page;
  page << file.rdbuf();
  EXPECT_EQ(page.str(), RecipeReferenceMarkdown())
      << "run: build/release/shoal schema --markdown > docs/recipe-reference.md";
}

TEST(NearestName, FindsWhatWasMeant) {
  EXPECT_EQ(EditDistance("kitten", "sitting"), 3);
  EXPECT_EQ(EditDistance("adamw", "admaw"), 1);
  EXPECT_EQ(EditDistance("", "abc"), 3);
  EXPECT_EQ(NearestName("max-stpes", {"max_tokens", "max_steps"}), "max_steps");
  EXPECT_EQ(NearestName("batch_size", {"global_batch_size", "lr"}), "global_batch_size");
  EXPECT_EQ(NearestName("colour", {"stage", "gradient_dtype"}), "");
  EXPECT_EQ(NearestName("", {"stage"}), "");
}

}  // namespace
}  // namespace shoal
