#include "models/family.h"

#include "absl/strings/str_replace.h"

#include "core/memory_file_system.h"
#include "models/family_list.h"
#include "models/name_pattern.h"
#include "tests/models/fixture.h"

namespace shoal {
namespace {

std::string TextOf(const std::string& model_type) {
  for (const EmbeddedFamily& family : EmbeddedFamilies()) {
    if (family.model_type == model_type) return family.text;
  }
  return "";
}

std::string LlamaText() { return TextOf("llama"); }

TEST(FamilyTest, EveryFamilyParsesAndIsShort) {
  for (const EmbeddedFamily& embedded : EmbeddedFamilies()) {
    const auto family = ValueOrDie(FindFamily(embedded.model_type));
    EXPECT_EQ(family->model_type, embedded.model_type);
    EXPECT_LT(std::count(embedded.text.begin(), embedded.text.end(), '\n'), 100);
    if (family->stack.kind == StackOptions::Kind::kImageClassifier) continue;
    EXPECT_FALSE(family->lora_targets.empty());
    EXPECT_FALSE(family->tensor_parallel.empty());
  }
  EXPECT_EQ(KnownFamilies(),
            (std::vector<std::string>{"decision_llama", "dots1", "gpt2", "image_classifier",
                                      "llama", "mixtral", "qwen3"}));
}

TEST(FamilyTest, NamesWeightsByLayer) {
  const auto family = ValueOrDie(FindFamily("llama"));
  EXPECT_EQ(family->WeightName("layer.gate.weight", 12), "model.layers.12.mlp.gate_proj.weight");
  EXPECT_EQ(family->WeightName("head.norm.weight"), "model.norm.weight");
  EXPECT_EQ(family->WeightName("layer.qkv.weight", 0), "");
  EXPECT_TRUE(family->IgnoresWeight("model.layers.3.self_attn.rotary_emb.inv_freq"));
  EXPECT_FALSE(family->IgnoresWeight("model.layers.x.self_attn.rotary_emb.inv_freq"));
  EXPECT_EQ(family->tensor_parallel.at("model.layers.{i}.self_attn.k_proj"), "colwise");
}

struct Edit {
  const char *from, *to, *expected;
};

TEST(FamilyTest, ErrorsNameFileAndLine) {
  const std::vector<Edit> edits = {
      {"positions: rotary", "positions: rotari",
       "mine.yaml:28:3: stack.positions: \"rotari\" is not known; did you mean rotary?"},
      {"num_layers: [", "num_layer: [", "did you mean num_layers?"},
      {"num_layers: [num_hidden_layers, 32]", "num_layers: {a: b}",
       "must be [key of config.json, default]"},
      {"num_layers: [num_hidden_layers, 32]", "", "config.num_layers: is missing"},
      {"hidden_size / num_heads]", "hidden_size / heads]", "\"heads\" is no number"},
      {"head_dim, hidden_size / num_heads]", "head_dim, hidden_size - num_heads]", "\"a / b\""},
      {"layer.mlp_norm.weight", "layer.mlp_nrom.weight", "did you mean layer.mlp_norm.weight?"},
      {"model.norm.weight: head.norm.weight", "model.norm.weight: head.weight", "has two names"},
      {"layer.{q,k,v,o}.{weight,bias}", "layer.{q,k,v}.{weight,bias}",
       "stands for 8 names, but 6 slots"},
      {"model.layers.{i}.input_layernorm", "model.layers.0.input_layernorm",
       "{i} belongs in names of layer weights"},
      {"lora_targets: [q_proj", "lora_targets: [query", "no weight is called query"},
      {"o_proj: rowwise", "o_proj: sideways", "\"sideways\" is not known"},
      {"default_theta: 10000", "default_theta: hot", "rope.default_theta"},
      {"[attention_dropout, 0]", "[attention_dropout, 2]", "[0, 1)"},
      {"attention: [attention_dropout", "attenton: [attention_dropout", "did you mean attention?"},
      {"model_type: llama", "", "model_type: is missing"},
      {"stack:", "stakc:", "did you mean stack?"},
  };
  for (const Edit& edit : edits) {
    const std::string text = absl::StrReplaceAll(LlamaText(), {{edit.from, edit.to}});
    ASSERT_NE(text, LlamaText()) << edit.from;
    const absl::Status status = ParseFamily(text, "mine.yaml").status();
    EXPECT_NE(std::string(status.message()).find(edit.expected), std::string::npos)
        << edit.to << ":\n"
        << status;
    EXPECT_NE(std::string(status.message()).find("mine.yaml:"), std::string::npos) << status;
  }
  EXPECT_FALSE(ParseFamily("", "mine.yaml").ok());
  EXPECT_FALSE(ParseFamily("- a", "mine.yaml").ok());
}

TEST(FamilyTest, ExpertsHaveNamesAndValuesOfTheirOwn) {
  const auto family = ValueOrDie(FindFamily("mixtral"));
  EXPECT_EQ(family->WeightName("layer.experts.up.weight", 3, 7),
            "model.layers.3.block_sparse_moe.experts.7.w3.weight");
  const std::vector<Edit> edits = {
      {"experts.{e}.{w1,w3,w2}.weight", "experts.0.{w1,w3,w2}.weight",
       "{e} belongs in names of experts' weights"},
      {"num_experts: [num_local_experts, 8]", "", "config.num_experts: is missing"},
      {"mlp: experts", "mlp: gated", "config.num_experts: is of stack.mlp: experts"},
      {"linear: out_in", "linear: in_out", "stack.linear: must be out_in with mlp: experts"},
  };
  for (const Edit& edit : edits) {
    const std::string text = absl::StrReplaceAll(TextOf("mixtral"), {{edit.from, edit.to}});
    const absl::Status status = ParseFamily(text, "mine.yaml").status();
    EXPECT_NE(std::string(status.message()).find(edit.expected), std::string::npos) << status;
  }
  EXPECT_NE(std::string(ModelConfigFromJson({{"model_type", "mixtral"}, {"num_experts_per_tok", 9}})
                            .status()
                            .message())
                .find("num_experts_per_tok: got 9, expected at most num_local_experts = 8"),
            std::string::npos);
}

TEST(FamilyTest, RoutersWithABiasNeedItsName) {
  const std::string text =
      absl::StrReplaceAll(TextOf("dots1"), {{"mlp.gate.e_score_correction_bias: layer.router.sel",
                                             "mlp.gate.bias: layer.router.bias  # sel"}});
  const auto family = ValueOrDie(ParseFamily(text, "mine.yaml"));
  ModelConfig config = ValueOrDie(ModelConfigFromJson({{"model_type", "dots1"},
                                                       {"n_routed_experts", 4},
                                                       {"num_experts_per_tok", 2},
                                                       {"n_shared_experts", 1}}));
  config.num_layers = 1;
  EXPECT_TRUE(BuildModel(config).ok());
  config.family = family;
  EXPECT_NE(std::string(BuildModel(config).status().message())
                .find("mine.yaml: weights has no entry for layer.router.selection_bias"),
            std::string::npos);
  const absl::Status gated =
      ParseFamily(absl::StrReplaceAll(TextOf("llama"), {{"mlp: gated", "mlp: gated\n  router: x"}}),
                  "mine.yaml")
          .status();
  EXPECT_NE(std::string(gated.message()).find("stack.router: is of stack.mlp: experts"),
            std::string::npos)
      << gated;
}

TEST(FamilyTest, ExpertsThatDoNotFitTheirGroups) {
  const auto message = [](const Json& changes) {
    Json config = {{"model_type", "dots1"},
                   {"n_routed_experts", 8},
                   {"num_experts_per_tok", 3},
                   {"n_shared_experts", 1}};
    config.merge_patch(changes);
    return std::string(ModelConfigFromJson(config).status().message());
  };
  EXPECT_EQ(message({{"n_group", 4}, {"topk_group", 2}}), "");
  for (int groups : {3, 8}) {
    EXPECT_NE(message({{"n_group", groups}})
                  .find("n_group: got " + std::to_string(groups) +
                        ", expected a divisor of n_routed_experts = 8 that leaves groups of two"),
              std::string::npos);
  }
  EXPECT_NE(message({{"n_group", 4}})
                .find("num_experts_per_tok: got 3, expected at most the 2 experts of topk_group = "
                      "1 groups"),
            std::string::npos)
      << message({{"n_group", 4}});
  EXPECT_NE(message({{"n_group", 2}, {"topk_group", 3}})
                .find("topk_group: got 3, expected at most n_group = 2"),
            std::string::npos);
  EXPECT_NE(message({{"first_k_dense_replace", 63}})
                .find("first_k_dense_replace: got 63, expected at most num_hidden_layers = 62"),
            std::string::npos);
  EXPECT_NE(message({{"n_shared_experts", nullptr}}).find("n_shared_experts: is missing"),
            std::string::npos);
  EXPECT_EQ(message({{"layer_types", {"full_attention", "full_attention"}}}), "");
  EXPECT_NE(message({{"layer_types", {"full_attention", "sliding_attention"}}})
                .find("only a list of nothing but \"full_attention\" is supported"),
            std::string::npos);
}

TEST(FamilyTest, UnknownFamiliesListTheKnown) {
  const absl::Status status = FindFamily("lama").status();
  EXPECT_NE(std::string(status.message()).find("did you mean llama?"), std::string::npos) << status;
  EXPECT_NE(
      std::string(status.message()).find("known: decision_llama, dots1, gpt2, image_classifier"),
      std::string::npos)
      << status;
}

TEST(FamilyTest, AStackThatLacksANameIsAnError) {
  const std::string text =
      absl::StrReplaceAll(LlamaText(), {{"attention: split", "attention: fused"}});
  const auto family = ValueOrDie(ParseFamily(text, "mine.yaml"));
  ModelConfig config = ValueOrDie(ModelConfigFromJson({{"model_type", "llama"}}));
  config.family = family;
  const absl::Status status = BuildModel(config).status();
  EXPECT_EQ(status.message(),
            "mine.yaml: weights has no entry for layer.qkv.weight, which the stack needs");
}

TEST(NamePatternTest, ExpandsBraces) {
  EXPECT_EQ(ValueOrDie(ExpandBraces("h.{i}.{q,k}.{w,b}")),
            (std::vector<std::string>{"h.{i}.q.w", "h.{i}.q.b", "h.{i}.k.w", "h.{i}.k.b"}));
  EXPECT_EQ(ValueOrDie(ExpandBraces("plain")), std::vector<std::string>{"plain"});
  EXPECT_FALSE(ExpandBraces("open{a,b").ok());
  EXPECT_FALSE(ExpandBraces("{a,b,c,d,e}{a,b,c,d,e}{a,b,c,d,e}").ok());
}

}  // namespace
}  // namespace shoal
