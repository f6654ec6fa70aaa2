#include "models/rope.h"

#include "models/json.h"
#include "models/model_config.h"
#include "tests/models/fixture.h"

namespace shoal {
namespace {

TEST(RopeTest, FrequenciesEqualTransformers) {
  PosixFileSystem files;
  const Json cases = ValueOrDie(ReadJsonFile(files, std::string(kFixtures) + "ropes.json"));
  ASSERT_EQ(cases.size(), 5u);
  for (const Json& c : cases) {
    const Json config = {{"model_type", "llama"},
                         {"hidden_size", 64},
                         {"num_attention_heads", 2},
                         {"max_position_embeddings", 16384},
                         {"rope_parameters", c["rope_parameters"]}};
    const ModelConfig parsed = ValueOrDie(ModelConfigFromJson(config));
    EXPECT_DOUBLE_EQ(parsed.rope.attention_factor, c["attention_factor"].get<double>())
        << c["rope_parameters"];
    for (const auto& [name, dtype, tolerance] :
         {std::tuple("float64", at::kDouble, 1e-14), std::tuple("float32", at::kFloat, 2.5e-7)}) {
      const Tensor got = InverseFrequencies(parsed.rope, parsed.head_dim, dtype);
      const std::vector<double> values = c[name].get<std::vector<double>>();
      const Tensor want = at::tensor(values, at::kDouble);
      ASSERT_EQ(got.sizes(), want.sizes());
      EXPECT_LT(((got - want) / want).abs().max().item<double>(), tolerance)
          << name << c["rope_parameters"];
    }
  }
}

}  // namespace
}  // namespace shoal
