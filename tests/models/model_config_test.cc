#include "models/model_config.h"

#include "core/memory_file_system.h"
#include "models/family.h"
#include "tests/models/fixture.h"

namespace shoal {
namespace {

std::string ErrorOf(const std::string& json) {
  return std::string(ModelConfigFromJson(ValueOrDie(ParseJson(json, "test"))).status().message());
}

void ExpectError(const std::string& json, const std::string& expected) {
  const std::string error = ErrorOf(json);
  EXPECT_NE(error.find(expected), std::string::npos)
      << json << "\ngot:  " << error << "\nwant: " << expected;
}

TEST(ModelConfigTest, DefaultsAreTransformers) {
  const ModelConfig llama = ValueOrDie(ModelConfigFromJson({{"model_type", "llama"}}));
  EXPECT_EQ(llama.vocab_size, 32000);
  EXPECT_EQ(llama.num_key_value_heads, 32);
  EXPECT_EQ(llama.head_dim, 128);
  EXPECT_EQ(llama.rope.theta, 10000);
  EXPECT_FALSE(llama.tie_word_embeddings);
  EXPECT_FALSE(llama.dropout.any());
  const ModelConfig gpt2 = ValueOrDie(ModelConfigFromJson({{"model_type", "gpt2"}}));
  EXPECT_EQ(gpt2.intermediate_size, 3072);
  EXPECT_EQ(gpt2.head_dim, 64);
  EXPECT_TRUE(gpt2.tie_word_embeddings && gpt2.attention_bias);
  EXPECT_EQ(gpt2.dropout.embedding, 0.1);
  EXPECT_EQ(gpt2.dropout.attention, 0.1);
  EXPECT_EQ(gpt2.dropout.residual, 0.1);
}

TEST(ModelConfigTest, CountsTheParametersOfKnownModels) {
  const auto count = [](const Json& config) {
    return ValueOrDie(BuildModel(ValueOrDie(ModelConfigFromJson(config)))).num_parameters();
  };
  EXPECT_EQ(count({{"model_type", "gpt2"}}), 124'439'808);     // The 124M model
  EXPECT_EQ(count({{"model_type", "llama"}}), 6'738'415'616);  // Llama 2 7B
}

TEST(ModelConfigTest, BothRopeDialectsAreOne) {
  const Json four = {{"model_type", "llama"},
                     {"rope_theta", 5e5},
                     {"rope_scaling", {{"type", "linear"}, {"factor", 2}}}};
  const Json five = {
      {"model_type", "llama"},
      {"rope_parameters", {{"rope_type", "linear"}, {"factor", 2.0}, {"rope_theta", 5e5}}}};
  for (const Json& config : {four, five}) {
    const RopeOptions rope = ValueOrDie(ModelConfigFromJson(config)).rope;
    EXPECT_EQ(rope.type, RopeOptions::Type::kLinear);
    EXPECT_EQ(rope.theta, 5e5);
    EXPECT_EQ(rope.factor, 2);
  }
}

TEST(ModelConfigTest, NumbersOfARecipeMayBeDoubles) {
  const ModelConfig config = ValueOrDie(ModelConfigFromJson({{"model_type", "llama"},
                                                             {"hidden_size", 64.0},
                                                             {"num_attention_heads", 4.0},
                                                             {"eos_token_id", 7.0},
                                                             {"rms_norm_eps", 1}}));
  EXPECT_EQ(config.hidden_size, 64);
  EXPECT_TRUE(config.json["hidden_size"].is_number_integer());
  EXPECT_TRUE(config.json["eos_token_id"].is_number_integer());
  EXPECT_TRUE(config.json["rms_norm_eps"].is_number_float());
  EXPECT_EQ(config.eos_token_ids, std::vector<int64_t>{7});
}

TEST(ModelConfigTest, ErrorsNameTheKey) {
  ExpectError("{}", "model_type: is missing; known: decision_llama, dots1, gpt2");
  ExpectError(R"({"model_type": "bert"})",
              "\"bert\" is no known family; known: decision_llama, dots1, gpt2");
  ExpectError(R"({"model_type": 3})", "model_type: is missing");
  ExpectError(R"({"model_type": "llama", "hiden_size": 3})",
              "hiden_size: unknown key of family llama; did you mean hidden_size?");
  ExpectError(R"({"model_type": "llama", "hidden_size": "big"})",
              "hidden_size: got \"big\", expected a whole number");
  ExpectError(R"({"model_type": "llama", "hidden_size": 64.5})", "hidden_size: got 64.5");
  ExpectError(R"({"model_type": "llama", "hidden_size": -1})",
              "hidden_size: got -1, expected 1 to");
  ExpectError(R"({"model_type": "llama", "hidden_size": 1e300})", "hidden_size: got 1e+300");
  ExpectError(R"({"model_type": "llama", "hidden_size": 65, "num_attention_heads": 4})",
              "hidden_size: got 65, expected a multiple of num_attention_heads = 4");
  ExpectError(R"({"model_type": "llama", "num_key_value_heads": 5})",
              "num_key_value_heads: got 5, expected a divisor of num_attention_heads = 32");
  ExpectError(R"({"model_type": "llama", "head_dim": 7})",
              "head_dim: got 7; rotary positions need an even head size");
  ExpectError(R"({"model_type": "llama", "hidden_act": "mish"})",
              "hidden_act: activation \"mish\" is not known; known: gelu");
  ExpectError(R"({"model_type": "llama", "mlp_bias": 1})",
              "mlp_bias: got 1, expected true or false");
  ExpectError(R"({"model_type": "llama", "sliding_window": 4096})",
              "sliding_window: got 4096, only null is supported");
  ExpectError(R"({"model_type": "llama", "quantization_config": {}})",
              "quantization_config: quantised weights");
  ExpectError(R"({"model_type": "llama", "rope_scaling": {"type": "longrope"}})",
              "rope_scaling.rope_type: \"longrope\" is not supported; supported: default, linear, "
              "llama3, yarn");
  ExpectError(R"({"model_type": "llama", "rope_parameters": {"rope_type": "linear"}})",
              "rope_parameters.factor: is missing");
  ExpectError(R"({"model_type": "llama", "rope_parameters": {"rope_type": "linear", "factor": 0}})",
              "rope_parameters.factor: got 0, expected a number above 0");
  ExpectError(
      R"({"model_type": "llama", "rope_parameters": {"rope_type": "linear", "factor": 2, "facter": 2}})",
      "rope_parameters.facter: is not known for rope_type linear");
  ExpectError(R"({"model_type": "llama", "rope_parameters": 3})",
              "rope_parameters: got 3, expected a map");
  ExpectError(R"({"model_type": "llama", "partial_rotary_factor": 0.5})",
              "partial_rotary_factor: got 0.5, only 1");
  ExpectError(R"({"model_type": "gpt2", "add_cross_attention": true})",
              "add_cross_attention: got true, only false");
  ExpectError(R"({"model_type": "gpt2", "resid_pdrop": 1.5})",
              "resid_pdrop: got 1.5, expected a rate");
  ExpectError(R"({"model_type": "gpt2", "eos_token_id": "end"})",
              "eos_token_id: got \"end\", expected a token's id");
}

TEST(ModelConfigTest, AllIssuesComeAtOnceWithTheirKeys) {
  std::vector<ConfigIssue> issues;
  const Json config = {
      {"model_type", "llama"}, {"hiden_size", 3}, {"mlp_bias", 1}, {"num_hidden_layers", 0}};
  EXPECT_FALSE(ModelConfigFromJson(config, {.family_file = "", .issues = &issues}).ok());
  std::vector<std::string> keys;
  for (const ConfigIssue& issue : issues) keys.push_back(issue.key);
  EXPECT_EQ(keys, (std::vector<std::string>{"hiden_size", "num_hidden_layers", "mlp_bias"}));
}

TEST(ModelConfigTest, FoldersMayHoldUnknownKeysButOverridesMayNot) {
  MemoryFileSystem files;
  ASSERT_TRUE(files.CreateDirectory("m").ok());
  ASSERT_TRUE(WriteFileAtomically(files, "m/config.json",
                                  R"({"model_type": "gpt2", "n_layer": 3, "made_up": [1]})")
                  .ok());
  const ModelConfig config =
      ValueOrDie(LoadModelConfig(files, "m", {{"n_layer", 2}, {"resid_pdrop", 0}}));
  EXPECT_EQ(config.num_layers, 2);
  EXPECT_EQ(config.json["made_up"][0], 1);
  const absl::Status status = LoadModelConfig(files, "m", {{"n_layers", 2}}).status();
  EXPECT_NE(std::string(status.message()).find("m/config.json: n_layers: unknown key"),
            std::string::npos)
      << status;
  EXPECT_FALSE(LoadModelConfig(files, "nowhere").ok());
}

TEST(ModelConfigTest, GenerationConfigNamesTheEnds) {
  PosixFileSystem files;
  const ModelConfig config = ValueOrDie(LoadModelConfig(files, std::string(kFixtures) + "llama"));
  EXPECT_EQ(config.eos_token_ids, (std::vector<int64_t>{2, 3}));
  EXPECT_EQ(config.bos_token_id, 1);
  EXPECT_FALSE(config.pad_token_id);
}

TEST(JsonTest, RefusesWhatIsNotPlainJson) {
  EXPECT_FALSE(ParseJson(R"({"a": 1, "a": 2})", "f").ok());
  EXPECT_FALSE(ParseJson(std::string(100'000, '['), "f").ok());
  EXPECT_FALSE(ParseJson("1e999", "f").ok());
  EXPECT_FALSE(ParseJson("{\"\xff\": 1}", "f").ok());
  EXPECT_FALSE(ParseJson("", "f").ok());
  EXPECT_TRUE(ParseJson(R"({"a": {"b": 1}, "c": {"b": 2}})", "f").ok());
}

}  // namespace
}  // namespace shoal
