// Routers and their losses; experts over ranks.
#include <torch/csrc/autograd/autograd.h>

#include "models/blocks/router.h"
#include "tests/models/fixture.h"

namespace shoal {
namespace {

// (1, tokens, experts) whose likeliest experts are the ones given, in their order.
Tensor ProbabilitiesOf(const std::vector<std::vector<int64_t>>& chosen, int64_t experts) {
  const auto tokens = static_cast<int64_t>(chosen.size());
  Tensor logits_TE = at::zeros({tokens, experts}, at::kDouble);
  for (int64_t t = 0; t < tokens; ++t) {
    for (size_t j = 0; j < chosen[t].size(); ++j)
      logits_TE[t][chosen[t][j]] = 3.0 - static_cast<double>(j);
  }
  return at::softmax(logits_TE, -1).unsqueeze(0);
}

std::vector<int64_t> ToVector(const Tensor& tensor) {
  const Tensor flat = tensor.contiguous().view({-1});
  return {flat.const_data_ptr<int64_t>(), flat.const_data_ptr<int64_t>() + flat.numel()};
}

TEST(Router, RowsAreSortedByExpertAndToken) {
  const Tensor probabilities = ProbabilitiesOf({{2, 0}, {0, 3}, {2, 3}}, 5);
  const Routing routing = RouteTokens(probabilities, /*bias_E=*/{}, {.choices = 2});
  EXPECT_EQ(routing.rows_of_expert, (std::vector<int64_t>{2, 0, 2, 2, 0}));
  // Choices are numbered token by token.
  EXPECT_EQ(ToVector(routing.rows.choice_S), (std::vector<int64_t>{1, 2, 0, 4, 3, 5}));
  EXPECT_EQ(ToVector(routing.rows.row_RK), (std::vector<int64_t>{2, 0, 1, 4, 3, 5}));
  EXPECT_FALSE(routing.rows.taken_RK.defined());
  EXPECT_NEAR(routing.weights_RK[0][0].item<double>(), 1 / (1 + std::exp(-1.0)), 1e-15);
  EXPECT_TRUE(at::allclose(routing.weights_RK.sum(1), at::ones({3}, at::kDouble)));
}

TEST(Router, AFullExpertTakesTheFirstTokensOfEachSequence) {
  const Tensor one = ProbabilitiesOf({{1, 0}, {1, 2}, {1, 0}, {0, 1}}, 3);
  const Routing routing =
      RouteTokens(at::cat({one, one}), /*bias_E=*/{}, {.choices = 2, .capacity = 2});
  // Expert 1 is chosen by all four tokens, expert 0 by three.
  EXPECT_EQ(routing.dropped, 2 * (2 + 1));
  EXPECT_EQ(routing.rows_of_expert, (std::vector<int64_t>{4, 4, 2}));
  const Tensor chosen = routing.chosen_BE;
  EXPECT_EQ(chosen[1][1].item<double>(), 4);
  const Tensor taken =
      at::tensor({1.0, 1.0, 1.0, 1.0, 0.0, 1.0, 0.0, 0.0}, at::kDouble).view({4, 2});
  EXPECT_TRUE(at::equal(routing.rows.taken_RK, at::cat({taken, taken})));
  EXPECT_TRUE(at::equal(routing.weights_RK.ne(0).to(at::kDouble), at::cat({taken, taken})));
  EXPECT_EQ(ExpertCapacity(1.0, 2, 7, 4), 4);
  EXPECT_EQ(ExpertCapacity(1.25, 2, 8, 4), 5);
}

TEST(Router, ABiasChangesWhatIsChosenAndNotItsWeight) {
  const Tensor scores = at::tensor({0.6, 0.5, 0.2, 0.1}, at::kDouble).view({1, 1, 4});
  const auto chosen = [&](const Tensor& bias_E, const RouterOptions& options) {
    return ToVector(RouteTokens(scores, bias_E, options).chosen_BE.to(at::kLong));
  };
  EXPECT_EQ(chosen({}, {.choices = 2}), (std::vector<int64_t>{1, 1, 0, 0}));
  const Tensor bias = at::tensor({-0.2, 0.0, 0.25, 0.0}, at::kDouble);
  EXPECT_EQ(chosen(bias, {.choices = 2}), (std::vector<int64_t>{0, 1, 1, 0}));
  const Routing routing = RouteTokens(scores, bias, {.choices = 2, .scale = 3});
  const Tensor weights = std::get<0>(routing.weights_RK.view({-1}).sort());
  EXPECT_NEAR(weights[0].item<double>(), 3 * 0.2 / 0.7, 1e-15);
  EXPECT_NEAR(weights[1].item<double>(), 3 * 0.5 / 0.7, 1e-15);
  const Routing plain = RouteTokens(scores, bias, {.choices = 2, .normalize = false});
  EXPECT_NEAR(plain.weights_RK.sum().item<double>(), 0.7, 1e-15);
}

TEST(Router, TokensChooseFromTheGroupsWhoseTwoBestAddUpToMost) {
  // The best expert of all stands in the second of three groups.
  const Tensor scores =
      at::tensor({0.5, 0.5, 0.0, 0.7, 0.1, 0.1, 0.3, 0.3, 0.3}, at::kDouble).view({1, 1, 9});
  const Routing routing =
      RouteTokens(scores, /*bias_E=*/{}, {.choices = 3, .groups = 3, .groups_per_token = 1});
  EXPECT_EQ(ToVector(routing.chosen_BE.to(at::kLong)),
            (std::vector<int64_t>{1, 1, 1, 0, 0, 0, 0, 0, 0}));
  const Routing two =
      RouteTokens(scores, /*bias_E=*/{}, {.choices = 3, .groups = 3, .groups_per_token = 2});
  EXPECT_EQ(ToVector(two.chosen_BE.narrow(1, 3, 3).to(at::kLong)), (std::vector<int64_t>{1, 0, 0}));
}

// CE + 0.3 balance + 0.2 z (tests/fixtures/make_model_fixtures.py).
class RouterLosses : public testing::TestWithParam<const char*> {};
INSTANTIATE_TEST_SUITE_P(Models, RouterLosses, testing::Values("mixtral", "dots1"));

TEST_P(RouterLosses, AndTheirGradientsEqualPyTorchs) {
  const Fixture fixture = LoadFixture(GetParam());
  const ModelConfig& config = fixture.model.config;
  // Of sigmoids DeepSeek counts choices over k T.
  const double scale = config.num_dense_layers > 0 ? config.experts_per_token : 1;
  ModelWeights weights = LoadFixtureWeights(fixture, at::kDouble);
  AddGradients(fixture.model, weights);
  const RouterTraining routers{.balance_coefficient = config.router_balance_loss,
                               .z_coefficient = 0.2,
                               .num_tokens = static_cast<double>(fixture.batch.tokens_BT.numel())};
  ForwardContext context{.weights = {},
                         .batch = &fixture.batch,
                         .loss_denominator = static_cast<double>(fixture.batch.num_targets),
                         .routers = &routers};
  Activations activations;
  Tensor loss;
  double balance = 0, z = 0;
  for (size_t b = 0; b < fixture.model.blocks.size(); ++b) {
    context.weights = weights[b];
    activations = fixture.model.blocks[b]->Forward(context, activations);
    if (activations.routing) {
      balance += activations.routing->balance.item<double>() / routers.num_tokens / 2 / scale;
      z += activations.routing->z.item<double>() / routers.num_tokens / 2;
      EXPECT_EQ(activations.routing->chosen_E.sum().item<double>(),
                config.experts_per_token * routers.num_tokens);
    }
    for (const Tensor& more : {activations.loss, activations.router_loss}) {
      if (more.defined()) loss = loss.defined() ? loss + more : more;
    }
  }
  EXPECT_NEAR(balance, ReadTensor(*fixture.expected, "balance_loss").item<double>(), 1e-12);
  EXPECT_NEAR(z, ReadTensor(*fixture.expected, "z_loss").item<double>(), 1e-12);
  torch::autograd::backward({loss}, {});
  for (size_t b = 0; b < weights.size(); ++b) {
    for (size_t i = 0; i < weights[b].size(); ++i) {
      if (!weights[b][i].grad.defined()) continue;  // A buffer
      const std::string& name = fixture.model.blocks[b]->parameters()[i].name;
      EXPECT_LT(
          RelativeError(weights[b][i].grad, ReadTensor(*fixture.expected, "router_grad." + name)),
          1e-10)
          << name;
    }
  }
}

}  // namespace
}  // namespace shoal
