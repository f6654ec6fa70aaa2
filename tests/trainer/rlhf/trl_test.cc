// Losses and gradients beside TRL's (tests/fixtures/make_rlhf_fixtures.py).
#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "core/file_system.h"
#include "models/json.h"
#include "trainer/rlhf/policy_objective.h"
#include "trainer/rlhf/rollout.h"

namespace shoal {
namespace {

Tensor Read(const Json& rows) {
  std::vector<double> values;
  for (const Json& row : rows) {
    if (row.is_array()) {
      for (const Json& value : row)
        values.push_back(value.is_boolean() ? value.get<bool>() : value.get<double>());
    } else {
      values.push_back(row.get<double>());
    }
  }
  const int64_t B = static_cast<int64_t>(rows.size());
  return at::tensor(values, at::kDouble).view({B, -1});
}

TEST(PolicyObjective, EqualsTrl) {
  PosixFileSystem files;
  const auto read = ReadJsonFile(files, "tests/fixtures/rlhf.json");
  ASSERT_TRUE(read.ok()) << read.status();
  const Json& given = *read;
  const Tensor mask = Read(given.at("mask")) > 0;
  ASSERT_EQ(given.at("cases").size(), 12u);
  for (const Json& wanted : given.at("cases")) {
    const std::string type = wanted.at("loss_type"), level = wanted.at("level");
    const double beta = wanted.at("beta");
    SCOPED_TRACE(absl::StrCat(type, " ", level, " beta ", beta));
    const PolicyObjective objective(
        {.gspo = level == "sequence",
         .clip = {.low = given.at("epsilon_low"), .high = given.at("epsilon_high")},
         .kl_coef = beta,
         .kl = {.estimator = KlEstimator::kK3, .unbiased_gradient = false}});
    const LossAggregation aggregation = type == "grpo"   ? LossAggregation::kSequenceMean
                                        : type == "dapo" ? LossAggregation::kTokenMean
                                                         : LossAggregation::kMaximumLength;
    Batch batch;
    batch.tokens_BT = at::zeros(mask.sizes(), at::kLong);
    batch.targets_BT = at::where(mask, at::zeros_like(batch.tokens_BT),
                                 at::full_like(batch.tokens_BT, Batch::kIgnoreIndex));
    batch.num_targets = mask.sum().item<int64_t>();
    batch.named = {{kAdvantages, Read(given.at("advantages")).expand(mask.sizes())},
                   {kOldLogprobs, Read(given.at("old_logprobs"))},
                   {kReferenceLogprobs, Read(given.at("reference_logprobs"))},
                   {kLossWeights, LossWeights(mask, aggregation, given.at("longest"))}};
    Activations head;
    head.logprobs_BT = Read(given.at("logprobs")).set_requires_grad(true);
    ObjectiveMetrics metrics(objective.metric_names());
    const Tensor loss = objective.Loss(batch, head, metrics) / objective.Count(batch);
    loss.backward();
    EXPECT_NEAR(loss.item<double>(), wanted.at("loss").get<double>(), 1e-12);
    EXPECT_LT((head.logprobs_BT.grad() - Read(wanted.at("gradient"))).abs().max().item<double>(),
              1e-12);
  }
}

}  // namespace
}  // namespace shoal
