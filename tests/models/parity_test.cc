// Whole models against transformers' results, committed as fixtures, and against themselves.
#include <torch/csrc/autograd/autograd.h>

#include "tests/models/fixture.h"

namespace shoal {
namespace {

class ParityTest : public testing::TestWithParam<const char*> {};
INSTANTIATE_TEST_SUITE_P(Models, ParityTest,
                         testing::Values("llama", "llama_tied", "gpt2", "mixtral", "dots1",
                                         "dots1_plain", "qwen3"));

struct Outputs {
  Tensor logits, logprobs, loss;
};

Outputs RunAll(const Fixture& fixture, const ModelWeights& weights) {
  const at::NoGradGuard no_grad;
  const auto run = [&](HeadMode mode) {
    return ForwardAll(
        fixture.model, weights, fixture.batch,
        {.head_mode = mode, .loss_denominator = static_cast<double>(fixture.batch.num_targets)});
  };
  return {run(HeadMode::kLogits).logits_BTV, run(HeadMode::kLogprobs).logprobs_BT,
          run(HeadMode::kLoss).loss};
}

void ExpectParity(const Fixture& fixture, const Outputs& got, double tolerance) {
  EXPECT_LT(RelativeError(got.logits, ReadTensor(*fixture.expected, "logits")), tolerance);
  EXPECT_LT(RelativeError(got.logprobs, ReadTensor(*fixture.expected, "logprobs")), tolerance);
  EXPECT_LT(RelativeError(got.loss, ReadTensor(*fixture.expected, "loss")), tolerance);
}

TEST_P(ParityTest, Float64ForwardEqualsTransformers) {
  const Fixture fixture = LoadFixture(GetParam());
  ExpectParity(fixture, RunAll(fixture, LoadFixtureWeights(fixture, at::kDouble)), 1e-10);
}

TEST_P(ParityTest, Float32ForwardEqualsTransformers) {
  const Fixture fixture = LoadFixture(GetParam());
  ExpectParity(fixture, RunAll(fixture, LoadFixtureWeights(fixture, at::kFloat)), 2e-5);
}

TEST_P(ParityTest, Bfloat16ForwardIsNearTransformers) {
  const Fixture fixture = LoadFixture(GetParam());
  ExpectParity(fixture, RunAll(fixture, LoadFixtureWeights(fixture, at::kBFloat16)), 0.1);
}

void ExpectGradients(const Fixture& fixture, ModelWeights& weights, double tolerance) {
  const Activations out =
      ForwardAll(fixture.model, weights, fixture.batch,
                 {.loss_denominator = static_cast<double>(fixture.batch.num_targets)});
  torch::autograd::backward({out.loss}, {});
  for (size_t b = 0; b < weights.size(); ++b) {
    for (size_t i = 0; i < weights[b].size(); ++i) {
      if (fixture.model.blocks[b]->parameters()[i].buffer) continue;
      const std::string& name = fixture.model.blocks[b]->parameters()[i].name;
      EXPECT_LT(RelativeError(weights[b][i].grad, ReadTensor(*fixture.expected, "grad." + name)),
                tolerance)
          << name;
    }
  }
}

TEST_P(ParityTest, Float64GradientsEqualTransformers) {
  const Fixture fixture = LoadFixture(GetParam());
  ModelWeights weights = LoadFixtureWeights(fixture, at::kDouble);
  AddGradients(fixture.model, weights);
  ExpectGradients(fixture, weights, 1e-9);
}

TEST_P(ParityTest, GradientsOfScatteredWeightsAreTheSame) {
  const Fixture fixture = LoadFixture(GetParam());
  ModelWeights weights = LoadFixtureWeights(fixture, at::kDouble);
  for (auto& block : weights) {
    for (Parameter& p : block) p.value = p.value.clone();
  }
  AddGradients(fixture.model, weights);
  for (auto& block : weights) {
    for (Parameter& p : block) {
      if (p.grad.defined()) p.value.set_requires_grad(true);
    }
  }
  ExpectGradients(fixture, weights, 1e-9);
}

TEST_P(ParityTest, Float32GradientsAreNearTransformers) {
  const Fixture fixture = LoadFixture(GetParam());
  ModelWeights weights = LoadFixtureWeights(fixture, at::kFloat);
  AddGradients(fixture.model, weights);
  ExpectGradients(fixture, weights, 1e-4);
}

// Central differences of the loss along a random direction of each weight.
TEST_P(ParityTest, GradientsEqualFiniteDifferences) {
  const Fixture fixture = LoadFixture(GetParam());
  ModelWeights weights = LoadFixtureWeights(fixture, at::kDouble);
  AddGradients(fixture.model, weights);
  const ForwardOptions options{.loss_denominator = static_cast<double>(fixture.batch.num_targets)};
  torch::autograd::backward({ForwardAll(fixture.model, weights, fixture.batch, options).loss}, {});
  const at::NoGradGuard no_grad;
  for (auto& block : weights) {
    for (Parameter& p : block) {
      if (!p.grad.defined()) continue;  // A buffer
      const Tensor direction =
          at::linspace(-1, 1, p.value.numel(), p.value.options()).view(p.value.sizes()).cos();
      constexpr double kStep = 1e-5;
      const auto loss_at = [&](double step) {
        Tensor value = p.value.detach();
        value.add_(direction, step);
        const double loss =
            ForwardAll(fixture.model, weights, fixture.batch, options).loss.item<double>();
        value.sub_(direction, step);
        return loss;
      };
      const double numeric = (loss_at(kStep) - loss_at(-kStep)) / (2 * kStep);
      EXPECT_NEAR((p.grad * direction).sum().item<double>(), numeric,
                  1e-5 * (1 + std::abs(numeric)));
    }
  }
}

// Blocks of so few places that every sequence spans several.
KeyValueCache MakeCache(const Model& model) {
  return KeyValueCache({.num_layers = model.config.num_layers,
                        .num_key_value_heads = model.config.num_key_value_heads,
                        .head_dim = model.config.head_dim,
                        .dtype = at::kDouble,
                        .block_places = 4});
}

// Row b of the tokens continues sequence rows[b].
Tensor CachedLogits(const Fixture& fixture, const ModelWeights& weights, KeyValueCache& cache,
                    const std::vector<KeyValueCache::Sequence>& rows, const Tensor& tokens,
                    const Tensor& positions) {
  const at::NoGradGuard no_grad;
  std::vector<KeyValueCache::Segment> segments;
  for (KeyValueCache::Sequence row : rows) segments.push_back({row, tokens.size(1)});
  cache.BeginPass(segments);
  const Batch batch{
      .tokens_BT = tokens, .targets_BT = {}, .positions_BT = positions, .documents_BT = {}};
  return ForwardAll(fixture.model, weights, batch,
                    {.head_mode = HeadMode::kLogits, .cache = &cache})
      .logits_BTV;
}

TEST_P(ParityTest, CacheChangesNothing) {
  const Fixture fixture = LoadFixture(GetParam());
  const ModelWeights weights = LoadFixtureWeights(fixture, at::kDouble);
  KeyValueCache cache = MakeCache(fixture.model);
  const std::vector<KeyValueCache::Sequence> rows = {cache.Add(), cache.Add()};
  const Tensor& tokens = fixture.batch.tokens_BT;
  std::vector<Tensor> logits;
  int64_t place = 0;
  for (int64_t step : {5, 1, 1, 3, 1}) {  // A prompt, single tokens, several at once
    const Tensor piece = tokens.narrow(1, place, step).contiguous();
    logits.push_back(CachedLogits(fixture, weights, cache, rows, piece, Positions(piece, place)));
    place += step;
  }
  EXPECT_LT(RelativeError(at::cat(logits, 1), ReadTensor(*fixture.expected, "logits")), 1e-10);
}

TEST_P(ParityTest, SequencesOfACacheMayDifferInLength) {
  const Fixture fixture = LoadFixture(GetParam());
  const ModelWeights weights = LoadFixtureWeights(fixture, at::kDouble);
  KeyValueCache cache = MakeCache(fixture.model);
  const std::vector<KeyValueCache::Sequence> rows = {cache.Add(), cache.Add()};
  const Tensor& tokens = fixture.batch.tokens_BT;
  const Tensor expected = ReadTensor(*fixture.expected, "logits");
  for (int row : {0, 1}) {
    const Tensor prompt = tokens.narrow(0, row, 1).narrow(1, 0, row == 0 ? 6 : 3).contiguous();
    CachedLogits(fixture, weights, cache, {rows[row]}, prompt, Positions(prompt));
  }
  const Tensor next = at::stack({tokens[0].narrow(0, 6, 2), tokens[1].narrow(0, 3, 2)});
  const Tensor positions = at::stack({at::arange(6, 8, at::kLong), at::arange(3, 5, at::kLong)});
  const Tensor logits = CachedLogits(fixture, weights, cache, rows, next, positions);
  EXPECT_LT(RelativeError(logits[0], expected[0].narrow(0, 6, 2)), 1e-10);
  EXPECT_LT(RelativeError(logits[1], expected[1].narrow(0, 3, 2)), 1e-10);
}

TEST_P(ParityTest, HeadOfOnePlaceIsThatPlace) {
  const Fixture fixture = LoadFixture(GetParam());
  const ModelWeights weights = LoadFixtureWeights(fixture, at::kDouble);
  const at::NoGradGuard no_grad;
  const Tensor logits =
      ForwardAll(fixture.model, weights, fixture.batch,
                 {.head_mode = HeadMode::kLogits,
                  .only_rows_S =
                      at::tensor({int64_t{10}, fixture.batch.tokens_BT.size(1) + 4}, at::kLong)})
          .logits_BTV;
  const Tensor expected = ReadTensor(*fixture.expected, "logits");
  EXPECT_LT(
      RelativeError(logits, at::stack({expected[0].narrow(0, 10, 1), expected[1].narrow(0, 4, 1)})),
      1e-10);
}

TEST_P(ParityTest, PackedDocumentsDoNotSeeEachOther) {
  Fixture fixture = LoadFixture(GetParam());
  const ModelWeights weights = LoadFixtureWeights(fixture, at::kDouble);
  const Tensor rows = fixture.batch.tokens_BT.narrow(1, 0, 7);
  const Tensor positions = at::arange(7, at::kLong);
  const at::NoGradGuard no_grad;
  const Batch packed{.tokens_BT = rows.reshape({1, 14}),
                     .targets_BT = {},
                     .positions_BT = at::cat({positions, positions}).unsqueeze(0),
                     .documents_BT = at::arange(14, at::kInt).ge(7).to(at::kInt).unsqueeze(0)};
  const Tensor logits =
      ForwardAll(fixture.model, weights, packed, {.head_mode = HeadMode::kLogits}).logits_BTV;
  const Tensor expected = ReadTensor(*fixture.expected, "logits").narrow(1, 0, 7);
  EXPECT_LT(RelativeError(logits.view(expected.sizes()), expected), 1e-10);
}

TEST_P(ParityTest, TokensOutsideTheVocabularyAreNamed) {
  Fixture fixture = LoadFixture(GetParam());
  const ModelWeights weights = LoadFixtureWeights(fixture, at::kFloat);
  fixture.batch.tokens_BT = fixture.batch.tokens_BT.clone().fill_(fixture.model.vocab_size());
  EXPECT_THROW(ForwardAll(fixture.model, weights, fixture.batch), std::out_of_range);
}

}  // namespace
}  // namespace shoal
