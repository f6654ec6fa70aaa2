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
  const Routing routing = RouteTokens(probabilities, /*choices=*/2, /*capacity=*/0);
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
  const Routing routing = RouteTokens(at::cat({one, one}), /*choices=*/2, /*capacity=*/2);
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

// What transformers computes: CE + 0.3 balance + 0.2 z (tests/fixtures/make_model_fixtures.py).
TEST(Router, LossesAndTheirGradientsEqualTransformers) {
  const Fixture fixture = LoadFixture("mixtral");
  ModelWeights weights = LoadFixtureWeights(fixture, at::kDouble);
  AddGradients(fixture.model, weights);
  const RouterTraining routers{.balance_coefficient = fixture.model.config.router_balance_loss,
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
      balance += activations.routing->balance / routers.num_tokens / 2;
      z += activations.routing->z / routers.num_tokens / 2;
      EXPECT_EQ(activations.routing->chosen_E.sum().item<double>(), 2 * routers.num_tokens);
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
