// Fixed points of the algorithms where they can be written down: two clients that minimise
// a_i / 2 (w - b_i)^2 with a = (1, 4), b = (0, 1) by K_i steps of learning rate 0.1 a round. FedAvg
// ends at sum (1 - r_i) b_i / sum (1 - r_i), r_i = (1 - 0.1 a_i)^K_i; SCAFFOLD at the optimum 0.8.
#include <cmath>
#include <mutex>

#include <ATen/ATen.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/custom_function.h>

#include "optim/sgd.h"
#include "parallel/comm/local_communicator.h"
#include "trainer/federated/federated_averaging.h"
#include "trainer/federated/server_rule.h"
#include "trainer/weights_setup.h"

namespace shoal {
namespace {

constexpr double kA[] = {1, 4}, kB[] = {0, 1};

struct Parabola : torch::autograd::Function<Parabola> {
  static Tensor forward(torch::autograd::AutogradContext* ctx, const Tensor& weight,
                        const Tensor& grad, int64_t client) {
    const double away = weight.item<double>() - kB[client];
    ctx->saved_data["grad"] = grad;
    ctx->saved_data["slope"] = kA[client] * away;
    return at::scalar_tensor(kA[client] / 2 * away * away, at::kDouble);
  }
  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* ctx,
                                                 torch::autograd::variable_list grads) {
    ctx->saved_data["grad"].toTensor().add_(grads[0] * ctx->saved_data["slope"].toDouble());
    return {Tensor(), Tensor(), Tensor()};
  }
};

// The whole model: one weight, whose loss is the parabola of the client that the token names.
class ParabolaBlock final : public Block {
 public:
  ParabolaBlock() {
    parameters_ = {{.name = "w", .shape = {1}, .init = {.kind = Initializer::Kind::kZeros}}};
    ties_.resize(1);
  }
  Activations Forward(const ForwardContext& ctx, const Activations& in) const override {
    Activations out;
    out.loss = Parabola::apply(ctx.weights[0].value, ctx.weights[0].grad,
                               ctx.batch->tokens_BT.item<int64_t>());
    return out;
  }
  double ForwardFlopsPerToken(int64_t sequence_length) const override { return 1; }
};

// Client 0 has the first examples, client 1 the others; a token is the client.
class ParabolaExamples final : public ExampleSet {
 public:
  explicit ParabolaExamples(const std::vector<int>& steps) : steps_(steps) {}
  int64_t size() const override { return steps_[0] + steps_[1]; }
  std::vector<int64_t> Labels() const override { return {}; }
  absl::StatusOr<std::vector<std::string>> Owners() const override {
    return std::vector<std::string>();
  }
  absl::StatusOr<Batch> Read(std::span<const int64_t> examples) const override {
    Batch batch{.tokens_BT = at::full({1, 1}, examples[0] >= steps_[0] ? 1 : 0, at::kLong),
                .targets_BT = at::zeros({1, 1}, at::kLong)};
    batch.num_targets = 1;
    return batch;
  }

 private:
  const std::vector<int> steps_;
};

struct Outcome {
  double weight = 0;
  double control = 0;                   // SCAFFOLD's c
  std::vector<double> client_controls;  // and its c_i
};

// `steps` examples each, in batches of one: so many local steps.
Outcome Minimise(const FederatedSection& federated, const std::vector<int>& steps, int rounds,
                 int ranks = 1) {
  Outcome outcome;
  std::mutex mutex;
  const absl::Status status = RunRanks(ranks, [&](Communicator& world) -> absl::Status {
    const auto group = world.Split(world.rank(), 0), outer = world.Split(0, world.rank());
    SHOAL_ASSIGN_OR_RETURN(DeviceMesh mesh, DeviceMesh::Create(*group, {}));
    Model model;
    model.blocks.push_back(std::make_unique<ParabolaBlock>());
    SHOAL_ASSIGN_OR_RETURN(const auto blocks, DescribeParameters(model));
    const ZeroOptions zero{.compute_dtype = at::kDouble, .gradient_dtype = at::kDouble};
    ShardedParameters server(blocks, zero, GroupsOf(mesh)), client(blocks, zero, GroupsOf(mesh));
    ShardedOptimizer server_step(std::make_unique<Sgd>(Sgd::Options{}), server, {});
    const bool scaffold = federated.algorithm() == FederatedSection::scaffold;
    const double mu =
        federated.algorithm() == FederatedSection::fedprox ? federated.proximal_mu() : 0;
    ShardedOptimizer client_step(
        std::make_unique<CorrectedRule>(std::make_unique<Sgd>(Sgd::Options{}),
                                        CorrectedRule::Options{.mu = mu, .correction = scaffold}),
        client, {});
    const RunnerOptions runner = OneStage(model, 1);
    ClientTrainer trainer({.trainer = {}, .corrected = scaffold, .pulled_to_start = mu != 0},
                          {.mesh = mesh,
                           .model = model,
                           .runner_options = runner,
                           .parameters = client,
                           .optimizer = client_step});
    const ParabolaExamples examples(steps);
    Partition clients(2);
    for (int64_t i = 0; i < examples.size(); ++i) clients[i >= steps[0]].push_back(i);
    const Logger log(world.rank(), world.size());
    SHOAL_ASSIGN_OR_RETURN(
        const auto averaging,
        FederatedAveraging::Create(
            {.federated = federated,
             .rounds = rounds,
             .learning_rate = {.type = LrSchedule::Type::kConstant, .peak = 0.1},
             .batch = {.per_device = 1, .accumulation = 1, .global = 1}},
            {.mesh = mesh,
             .outer = *outer,
             .model = model,
             .parameters = server,
             .optimizer = server_step,
             .trainer = [&](int) -> absl::StatusOr<ClientTrainer*> { return &trainer; },
             .examples = examples,
             .clients = clients,
             .log = log}));
    for (int round = 0; round < rounds; ++round)
      SHOAL_RETURN_IF_ERROR(averaging->RunRound().status());
    const std::lock_guard lock(mutex);
    outcome.weight = server.optimizer_slices()[0].weights.item<double>();
    for (const StatePiece& piece : averaging->PiecesToSave()) {
      if (piece.name == "scaffold/w") outcome.control = piece.data.item<double>();
      if (piece.name.find("/scaffold/w") != std::string::npos)
        outcome.client_controls.push_back(piece.data.item<double>());
    }
    return absl::OkStatus();
  });
  EXPECT_TRUE(status.ok()) << status;
  return outcome;
}

FederatedSection Equal() {
  FederatedSection federated;
  federated.set_weighting(FederatedSection::equal);
  return federated;
}

TEST(Quadratic, FedAvgEndsAtItsFixedPoints) {
  EXPECT_NEAR(Minimise(Equal(), {10, 10}, 300).weight, 0.604126, 1e-6);
  EXPECT_NEAR(Minimise(Equal(), {2, 20}, 300).weight, 0.840331, 1e-6);
  EXPECT_NEAR(Minimise(Equal(), {1, 1}, 300).weight, 0.8, 1e-9);
}

TEST(Quadratic, ScaffoldReachesTheOptimumWhateverTheSteps) {
  FederatedSection scaffold = Equal();
  scaffold.set_algorithm(FederatedSection::scaffold);
  for (const std::vector<int>& steps : {std::vector<int>{10, 10}, {2, 20}}) {
    const Outcome outcome = Minimise(scaffold, steps, 400);
    EXPECT_NEAR(outcome.weight, 0.8, 1e-9);
    ASSERT_EQ(outcome.client_controls.size(), 2u);
    EXPECT_NEAR((outcome.client_controls[0] + outcome.client_controls[1]) / 2, outcome.control,
                1e-9);
    // Each c_i is about the client's own gradient.
    EXPECT_NEAR(outcome.client_controls[0], kA[0] * (0.8 - kB[0]), 1e-6);
  }
}

TEST(Quadratic, ControlVariatesAverageToTheServersInEveryRound) {
  FederatedSection scaffold = Equal();
  scaffold.set_algorithm(FederatedSection::scaffold);
  for (int rounds = 1; rounds < 6; ++rounds) {
    const Outcome outcome = Minimise(scaffold, {3, 7}, rounds, /*ranks=*/1);
    EXPECT_NEAR((outcome.client_controls[0] + outcome.client_controls[1]) / 2, outcome.control,
                1e-12);
  }
}

TEST(Quadratic, FedProxFollowsItsRecurrence) {
  FederatedSection prox = Equal();
  prox.set_algorithm(FederatedSection::fedprox);
  prox.set_proximal_mu(0.5);
  const std::vector<int> steps = {4, 9};
  double want = 0;
  for (int round = 0; round < 20; ++round) {
    double mean = 0;
    for (int i = 0; i < 2; ++i) {
      double y = want;
      for (int k = 0; k < steps[i]; ++k) y -= 0.1 * (kA[i] * (y - kB[i]) + 0.5 * (y - want));
      mean += y / 2;
    }
    want = mean;
  }
  EXPECT_NEAR(Minimise(prox, steps, 20).weight, want, 1e-12);
}

TEST(Quadratic, ExamplesWeigh) {
  // One round from 0: the mean of the ends, weighted 2 to 20.
  FederatedSection federated;
  const double ends[] = {0, 1 - std::pow(0.6, 20)};
  EXPECT_NEAR(Minimise(federated, {2, 20}, 1).weight, (2 * ends[0] + 20 * ends[1]) / 22, 1e-12);
}

double OneStep(const AdaptiveServerRule::Options& options) {
  const AdaptiveServerRule rule(options);
  UpdateOperands operands{.weights = at::zeros({1}, at::kDouble),
                          .gradients = at::full({1}, -0.1, at::kDouble),
                          .states = {at::zeros({1}, at::kDouble), at::zeros({1}, at::kDouble)}};
  rule.Update(operands, {.learning_rate = 0.1, .step = 1});
  return operands.weights.item<double>();
}

TEST(ServerRule, OneStepAsInThePaper) {
  using Kind = AdaptiveServerRule::Kind;
  EXPECT_NEAR(OneStep({.kind = Kind::kAdam}), 0.090503, 1e-6);
  EXPECT_NEAR(OneStep({.kind = Kind::kAdam, .bias_correction = true}), 0.099010, 1e-6);
  // v = tau^2 + 0.01 and v = tau^2 + 0.01 * 0.01 * 1, by hand.
  EXPECT_NEAR(OneStep({.kind = Kind::kAdagrad}), 0.1 * 0.01 / (std::sqrt(0.010001) + 1e-3), 1e-12);
  EXPECT_NEAR(OneStep({.kind = Kind::kYogi}), 0.1 * 0.01 / (std::sqrt(1e-6 + 1e-4) + 1e-3), 1e-12);
}

}  // namespace
}  // namespace shoal
