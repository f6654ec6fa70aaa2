#include "models/hf_writer.h"

#include "core/faulty_file_system.h"
#include "core/memory_file_system.h"
#include "core/recipe_yaml.h"
#include "tests/models/fixture.h"

namespace shoal {
namespace {

// Writes the model from `ranks` writers, each a part of every weight.
absl::Status ExportFrom(FileSystem& files, const Model& model, const ModelWeights& weights,
                        const std::string& directory, const ExportOptions& options, int ranks) {
  std::vector<HuggingFaceWriter> writers;
  for (int r = 0; r < ranks; ++r) {
    SHOAL_ASSIGN_OR_RETURN(HuggingFaceWriter writer,
                           HuggingFaceWriter::Plan(files, model, directory, options));
    writers.push_back(std::move(writer));
  }
  SHOAL_RETURN_IF_ERROR(writers[0].Create());
  for (int r = 0; r < ranks; ++r) {
    for (size_t b = 0; b < weights.size(); ++b) {
      for (size_t i = 0; i < weights[b].size(); ++i) {
        if (model.blocks[b]->ties()[i]) continue;
        const Tensor flat = weights[b][i].value.reshape({-1});
        const int64_t begin = flat.numel() * r / ranks, end = flat.numel() * (r + 1) / ranks;
        SHOAL_RETURN_IF_ERROR(writers[r].Write(model.blocks[b]->parameters()[i], begin,
                                               flat.narrow(0, begin, end - begin)));
      }
    }
    SHOAL_RETURN_IF_ERROR(writers[r].Flush());
  }
  return writers[0].Finish();
}

class HuggingFaceWriterTest : public testing::TestWithParam<const char*> {
 protected:
  const Fixture fixture_ = LoadFixture(GetParam());
  const ModelWeights weights_ = LoadFixtureWeights(fixture_, at::kDouble);
  MemoryFileSystem files_;
};
INSTANTIATE_TEST_SUITE_P(Models, HuggingFaceWriterTest,
                         testing::Values("llama", "llama_tied", "gpt2"));

TEST_P(HuggingFaceWriterTest, TheFileIsTheOneThatTransformersWrote) {
  ASSERT_TRUE(ExportFrom(files_, fixture_.model, weights_, "out", {.dtype = at::kDouble}, 3).ok());
  PosixFileSystem posix;
  EXPECT_EQ(ValueOrDie(ReadFile(files_, "out/model.safetensors", 1 << 20)),
            ValueOrDie(ReadFile(posix, fixture_.directory + "/model.safetensors", 1 << 20)));
  EXPECT_FALSE(ValueOrDie(Exists(files_, "out.partial")));
}

TEST_P(HuggingFaceWriterTest, ShardsReadBackEqual) {
  ASSERT_TRUE(ExportFrom(files_, fixture_.model, weights_, "out",
                         {.dtype = at::kDouble, .max_shard_bytes = 6000}, 2)
                  .ok());
  const Json index = ValueOrDie(ReadJsonFile(files_, "out/model.safetensors.index.json"));
  EXPECT_EQ(index["metadata"]["total_parameters"], fixture_.model.num_parameters());
  EXPECT_EQ(index["metadata"]["total_size"], 8 * fixture_.model.num_parameters());
  EXPECT_GT(ValueOrDie(files_.List("out")).size(), 6u);
  const Model again = ValueOrDie(BuildModel(ValueOrDie(LoadModelConfig(files_, "out"))));
  const ModelWeights loaded = ValueOrDie(LoadAllWeights(files_, again, "out", at::kDouble));
  for (size_t b = 0; b < weights_.size(); ++b) {
    for (size_t i = 0; i < weights_[b].size(); ++i) {
      EXPECT_TRUE(at::equal(loaded[b][i].value, weights_[b][i].value)) << b << " " << i;
    }
  }
}

TEST_P(HuggingFaceWriterTest, ConfigKeepsWhatWasReadAndFillsInTheRest) {
  ASSERT_TRUE(
      ExportFrom(files_, fixture_.model, weights_, "out", {.dtype = at::kBFloat16}, 1).ok());
  PosixFileSystem posix;
  const Json before = ValueOrDie(ReadJsonFile(posix, fixture_.directory + "/config.json"));
  const Json after = ValueOrDie(ReadJsonFile(files_, "out/config.json"));
  for (const auto& [key, value] : before.items()) {
    EXPECT_EQ(after[key], key == "dtype" ? Json("bfloat16") : value) << key;
  }
  EXPECT_EQ(after.contains("rope_theta"),
            after["model_type"] == "llama");  // transformers 4 reads it there
  EXPECT_EQ(ValueOrDie(ReadJsonFile(files_, "out/generation_config.json")),
            ValueOrDie(ReadJsonFile(posix, fixture_.directory + "/generation_config.json")));
}

TEST(HuggingFaceWriterFreshTest, AModelFromARecipeIsFullyDescribed) {
  const Model model =
      ValueOrDie(BuildModel(ValueOrDie(ModelConfigFromJson({{"model_type", "llama"},
                                                            {"hidden_size", 8},
                                                            {"num_attention_heads", 2},
                                                            {"num_hidden_layers", 1},
                                                            {"intermediate_size", 8},
                                                            {"vocab_size", 10},
                                                            {"eos_token_id", 0},
                                                            {"rope_theta", 500.0}}))));
  MemoryFileSystem files;
  const ModelWeights weights = InitializeAllWeights(model, 1, at::kFloat);
  const ExportOptions options{.card = {.name = "tiny: a \"test\"",
                                       .language = "en",
                                       .license = "My Licence: 1",
                                       .datasets = {"a: b", "c"},
                                       .body = "Body."},
                              .extra_files = {{"tokenizer.json", "{}"}}};
  ASSERT_TRUE(ExportFrom(files, model, weights, "out", options, 1).ok());
  const Json config = ValueOrDie(ReadJsonFile(files, "out/config.json"));
  EXPECT_EQ(config["architectures"][0], "LlamaForCausalLM");
  EXPECT_EQ(config["head_dim"], 4);
  EXPECT_EQ(config["num_key_value_heads"], 2);
  EXPECT_EQ(config["rope_parameters"]["rope_theta"], 500.0);
  EXPECT_EQ(config["rope_parameters"]["rope_type"], "default");
  EXPECT_TRUE(config["bos_token_id"].is_null());
  EXPECT_EQ(ValueOrDie(ReadJsonFile(files, "out/generation_config.json"))["eos_token_id"], 0);
  EXPECT_EQ(ValueOrDie(ReadFile(files, "out/tokenizer.json", 100)), "{}");

  const std::string card = ValueOrDie(ReadFile(files, "out/README.md", 1 << 16));
  ASSERT_EQ(card.substr(0, 4), "---\n");
  std::vector<RecipeError> errors;
  YamlNode metadata;
  ParseYaml(card.substr(4, card.find("\n---\n") - 3), {}, metadata, errors);
  ASSERT_TRUE(errors.empty()) << errors[0].ToString();
  EXPECT_EQ(metadata.Find("license")->value.text, "other");
  EXPECT_EQ(metadata.Find("license_name")->value.text, "My Licence: 1");
  EXPECT_EQ(metadata.Find("datasets")->value.items[0].text, "a: b");
}

TEST(HuggingFaceWriterFreshTest, ReplacesOnlyWhenAsked) {
  const Fixture fixture = LoadFixture("llama_tied");
  const ModelWeights weights = LoadFixtureWeights(fixture, at::kFloat);
  MemoryFileSystem files;
  ASSERT_TRUE(files.CreateDirectory("out").ok());
  ASSERT_TRUE(
      ExportFrom(files, fixture.model, weights, "out/", {}, 1).ok());  // Empty folders are taken
  EXPECT_TRUE(absl::IsAlreadyExists(ExportFrom(files, fixture.model, weights, "out", {}, 1)));
  EXPECT_TRUE(ExportFrom(files, fixture.model, weights, "out", {.overwrite = true}, 1).ok());
  EXPECT_FALSE(ValueOrDie(Exists(files, "out.partial")));
}

TEST(HuggingFaceWriterFreshTest, WhateverFailsTheFolderIsWholeOrTheOldOne) {
  const Fixture fixture = LoadFixture("llama_tied");
  const ModelWeights weights = LoadFixtureWeights(fixture, at::kFloat);
  for (int64_t call = 1;; ++call) {
    MemoryFileSystem memory;
    ASSERT_TRUE(
        ExportFrom(memory, fixture.model, weights, "out", {.extra_files = {{"old", ""}}}, 1).ok());
    FaultyFileSystem faulty(memory, {.call = call});
    const absl::Status status =
        ExportFrom(faulty, fixture.model, weights, "out", {.overwrite = true}, 2);
    const Model model = ValueOrDie(BuildModel(ValueOrDie(LoadModelConfig(memory, "out"))));
    EXPECT_TRUE(LoadAllWeights(memory, model, "out", at::kFloat).ok()) << call;
    if (status.ok()) break;
    ASSERT_LT(call, 500);
  }
}

}  // namespace
}  // namespace shoal
