#include "models/adapters/lora.h"

#include "core/memory_file_system.h"
#include "models/adapters/adapter_folder.h"
#include "tests/models/fixture.h"

namespace shoal {
namespace {

struct Adapted {
  Fixture fixture;       // Without adapters
  Model model;           // With
  ModelWeights weights;  // Of the model, the adapters random
};

Adapted Adapt(const std::string& name, const std::vector<std::string>& targets) {
  PosixFileSystem files;
  Adapted adapted{.fixture = LoadFixture(name), .model = {}, .weights = {}};
  ModelConfig config = ValueOrDie(LoadModelConfig(files, adapted.fixture.directory));
  config.lora = {.rank = 3, .alpha = 5, .targets = targets};
  adapted.model = ValueOrDie(BuildModel(config));
  const WeightReader reader =
      ValueOrDie(WeightReader::Open(files, adapted.fixture.directory, adapted.model));
  adapted.weights = InitializeAllWeights(adapted.model, 1, at::kDouble);
  for (size_t b = 0; b < adapted.model.blocks.size(); ++b) {
    const Block& block = *adapted.model.blocks[b];
    for (size_t i = 0; i < block.parameters().size(); ++i) {
      const ParameterSpec& spec = block.parameters()[i];
      EXPECT_EQ(reader.Holds(spec), !spec.adapter) << spec.name;
      EXPECT_EQ(spec.trainable, spec.adapter) << spec.name;
      Tensor& value = adapted.weights[b][i].value;
      if (reader.Holds(spec)) {
        EXPECT_TRUE(reader.Read(spec, 0, value).ok());
      } else {
        value.copy_(at::randn(value.sizes(), value.options()) * 0.3);
      }
    }
  }
  return adapted;
}

Tensor Logits(const Model& model, const ModelWeights& weights, const Batch& batch) {
  return ForwardAll(model, weights, batch, {.head_mode = HeadMode::kLogits}).logits_BTV;
}

TEST(LoraTest, MergedWeightsGiveTheSameLogits) {
  for (const std::string name : {"llama", "gpt2"}) {
    const Adapted adapted = Adapt(name, {LoraOptions::kAllLinear});
    const Fixture& fixture = adapted.fixture;
    const Tensor got = Logits(adapted.model, adapted.weights, fixture.batch);
    ModelWeights merged = LoadFixtureWeights(fixture, at::kDouble);
    EXPECT_GT(RelativeError(got, Logits(fixture.model, merged, fixture.batch)), 1e-3);
    int adapters = 0;
    for (size_t b = 0; b < fixture.model.blocks.size(); ++b) {
      for (size_t i = 0; i < fixture.model.blocks[b]->parameters().size(); ++i) {
        const std::string& weight = fixture.model.blocks[b]->parameters()[i].name;
        const auto find = [&](const char* part) -> Tensor {
          for (size_t j = 0; j < adapted.model.blocks[b]->parameters().size(); ++j) {
            const ParameterSpec& spec = adapted.model.blocks[b]->parameters()[j];
            if (spec.adapter && spec.name == LoraWeightName(weight, part))
              return adapted.weights[b][j].value;
          }
          return {};
        };
        if (!weight.ends_with(".weight") || !find("lora_A").defined()) continue;
        ++adapters;
        merged[b][i].value += LoraDelta(find("lora_A"), find("lora_B"), 5.0 / 3.0, name == "gpt2");
      }
    }
    EXPECT_GT(adapters, 0);
    EXPECT_LT(RelativeError(got, Logits(fixture.model, merged, fixture.batch)), 1e-12) << name;
  }
}

TEST(LoraTest, TargetsAreChosenByTheEndOfTheirNames) {
  const LoraOptions options{.targets = {"q_proj", "mlp.up_proj"}};
  EXPECT_TRUE(IsLoraTarget(options, "model.layers.0.self_attn.q_proj"));
  EXPECT_TRUE(IsLoraTarget(options, "model.layers.0.mlp.up_proj"));
  EXPECT_FALSE(IsLoraTarget(options, "model.layers.0.self_attn.xq_proj"));
  EXPECT_FALSE(IsLoraTarget(options, "model.layers.0.other.up_proj"));
  const Adapted adapted = Adapt("llama", {"q_proj", "down_proj"});
  for (const ParameterSpec& spec : adapted.model.unique_parameters()) {
    if (!spec.adapter) continue;
    EXPECT_TRUE(spec.name.find("q_proj") != std::string::npos ||
                spec.name.find("down_proj") != std::string::npos)
        << spec.name;
  }
}

TEST(LoraTest, ATargetThatIsNoneIsRefused) {
  PosixFileSystem files;
  ModelConfig config = ValueOrDie(LoadModelConfig(files, std::string(kFixtures) + "llama"));
  config.lora = {.targets = {"q_proj", "lm_head"}};
  const absl::Status status = BuildModel(config).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kNotFound);
  EXPECT_NE(status.message().find("\"lm_head\" is no matrix"), std::string::npos) << status;
}

TEST(AdapterFolderTest, WhatPeftCannotMeanHereIsRefusedByName) {
  MemoryFileSystem files;
  const auto read = [&](const std::string& json) {
    EXPECT_TRUE(WriteFileAtomically(files, "/a/adapter_config.json", json).ok());
    return ReadAdapterFolder(files, "/a");
  };
  ASSERT_TRUE(CreateDirectories(files, "/a").ok());
  EXPECT_FALSE(ValueOrDie(ReadAdapterFolder(files, "/a")));
  const auto good = ValueOrDie(read(R"({"peft_type": "LORA", "r": 4, "lora_alpha": 8,
      "use_rslora": true, "target_modules": ["q_proj"], "base_model_name_or_path": "m",
      "bias": "none", "use_dora": false, "rank_pattern": {}})"));
  EXPECT_EQ(good->base, "m");
  EXPECT_DOUBLE_EQ(good->lora.scale(), 8.0 / 2.0);
  const auto message = [&](const std::string& json) {
    return std::string(read(json).status().message());
  };
  EXPECT_NE(message(R"({"r": 4, "use_dora": true})").find("use_dora"), std::string::npos);
  EXPECT_NE(message(R"({"r": 4, "bias": "all"})").find("bias"), std::string::npos);
  EXPECT_NE(message(R"({"r": 0})").find("r: got 0"), std::string::npos);
  EXPECT_NE(message(R"({"r": 4, "lora_alpha": 8})").find("target_modules: absent"),
            std::string::npos);
}

}  // namespace
}  // namespace shoal
