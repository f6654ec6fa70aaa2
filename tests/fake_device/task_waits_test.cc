// How often the host waits for the device in tasks that train several models, or one by many
// clients.
#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "absl/strings/str_cat.h"
#include "tests/fake_device/fake_kernels.h"
#include "tests/trainer/federated/federated_job.h"
#include "trainer/rlhf/policy_objective.h"
#include "trainer/rlhf/rollout.h"

namespace shoal {
namespace {

size_t WaitsOfRounds(int rounds, int clients, int steps, std::vector<std::string> overrides) {
  overrides.insert(overrides.end(), {"model.dtype=float32", "federated.partition=iid",
                                     absl::StrCat("federated.clients_per_round=", clients),
                                     absl::StrCat("federated.local_steps=", steps)});
  const size_t before = FakeDeviceWaits();
  RunFederatedJob({.rounds = rounds, .overrides = overrides, .device = c10::kPrivateUse1});
  return FakeDeviceWaits() - before;
}

// Twice a step, for loss and norm; once for the update, and once for optimizer states that are kept
// until the next visit. Rounds add nothing.
TEST(TaskWaits, OfAClientAreItsStepsAndOneForItsUpdate) {
  const FakeDeviceKernels kernels;
  const struct {
    std::vector<std::string> overrides;
    size_t more;
  } cases[] = {
      {{}, 0},
      {{"federated.algorithm=scaffold"}, 0},
      {{"federated.privacy.clip_norm=0.2", "federated.weighting=equal"}, 0},
      {{"federated.secure_aggregation.enabled=true"}, 0},
      {{"federated.aggregation=median"}, 0},
      {{"federated.keep_optimizer_state=true", "optimizer.name=adamw"}, 1},
  };
  for (const auto& [overrides, more] : cases) {
    for (const auto& [clients, steps] : {std::pair(4, 2), std::pair(6, 5)}) {
      const size_t of_rounds =
          WaitsOfRounds(5, clients, steps, overrides) - WaitsOfRounds(2, clients, steps, overrides);
      EXPECT_EQ(of_rounds, 3 * clients * (2 * steps + 1 + more))
          << clients << " clients of " << steps << " steps, "
          << (overrides.empty() ? "plainly" : overrides[0]);
    }
  }
}

// What policy and critic minimise is the host's, and adds no wait to a step's three, for loss, norm
// and figures.
TEST(TaskWaits, OfAPolicysAndACriticsLossThereAreNone) {
  const int64_t B = 3, T = 5;
  Batch host{.tokens_BT = at::zeros({B, T}, at::kLong),
             .targets_BT = at::zeros({B, T}, at::kLong),
             .num_targets = B * T - 2};
  host.targets_BT[1].narrow(0, 3, 2).fill_(Batch::kIgnoreIndex);
  for (const char* name : {kAdvantages, kOldLogprobs, kReferenceLogprobs, kRolloutLogprobs,
                           kLossWeights, kReturns, kOldValues})
    host.named[name] = at::randn({B, T}, at::kDouble);
  Batch device = host;
  for (Tensor* tensor : {&device.tokens_BT, &device.targets_BT}) *tensor = tensor->to(FakeDevice());
  for (auto& [name, tensor] : device.named) tensor = tensor.to(FakeDevice());

  const PolicyObjective policy({.kl_coef = 0.1}), gspo({.gspo = true});
  const ValueObjective critic(0.2);
  for (const Objective* objective :
       std::initializer_list<const Objective*>{&policy, &gspo, &critic}) {
    const Tensor values = at::randn({B, T}, at::kDouble);
    Tensor losses[2], gradients[2];
    for (const bool on_device : {false, true}) {
      const Tensor head_BT =
          (on_device ? values.to(FakeDevice()) : values.clone()).requires_grad_(true);
      ObjectiveMetrics metrics(objective->metric_names());
      Activations head;
      head.logprobs_BT = head.scores_BT = head_BT;
      const size_t before = FakeDeviceWaits();
      const Tensor loss = objective->Loss(on_device ? device : host, head, metrics);
      loss.backward();
      EXPECT_EQ(FakeDeviceWaits(), before);
      losses[on_device] = loss.detach().cpu();
      gradients[on_device] = head_BT.grad().cpu();
    }
    EXPECT_TRUE(at::allclose(losses[1], losses[0], 1e-12, 1e-12));
    EXPECT_TRUE(at::allclose(gradients[1], gradients[0], 1e-12, 1e-12));
  }
}

}  // namespace
}  // namespace shoal
