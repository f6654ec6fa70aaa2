// Update rules against those of torch, transformers and published formulas:
// tests/fixtures/make_optimizer_fixtures.py.
#include <cmath>
#include <fstream>
#include <functional>
#include <map>
#include <mutex>

#include <ATen/ATen.h>
#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "optim/adafactor.h"
#include "optim/adamw.h"
#include "optim/adamw_8bit.h"
#include "optim/lion.h"
#include "optim/muon.h"
#include "optim/sharded_optimizer.h"
#include "parallel/comm/local_communicator.h"

namespace shoal {
namespace {

using Json = nlohmann::json;

const Json& Fixture() {
  static const Json fixture = [] {
    std::ifstream file("tests/fixtures/optimizers.json");
    return Json::parse(file);
  }();
  return fixture;
}

struct RuleCase {
  std::string name;  // In the fixture
  bool is_whole = true;
  bool vectors_too = true;  // Else they are AdamW's, and not compared
  std::function<std::shared_ptr<const WholeRule>()> whole;
  std::function<std::unique_ptr<UpdateRule>()> plain = [] {
    return std::make_unique<AdamW>(AdamW::Options{.weight_decay = 0.1});
  };
  double learning_rate;
};

std::vector<BlockParameters> BlocksOf(const RuleCase& rule) {
  BlockParameters block;
  for (const auto& shape : Fixture()["shapes"]) {
    block.specs.push_back(
        {.name = std::to_string(block.specs.size()),
         .shape = shape.get<std::vector<int64_t>>(),
         .init = {},
         .whole_update = rule.is_whole && (rule.vectors_too || shape.size() == 2)});
    block.ties.emplace_back();
  }
  return {block};
}

// Weight k's index is its name.
double Start(int64_t i, int k) { return std::cos(static_cast<double>(i) + 1 + k); }
double Gradient(int64_t i, int k, int step) {
  return std::sin(0.37 * static_cast<double>(i * i % 101) + 1.3 * step + k);
}

void Train(const RuleCase& rule, int ranks, int stage) {
  std::map<std::string, std::vector<double>> weights;
  std::mutex mutex;
  const absl::Status status = RunRanks(ranks, [&](Communicator& comm) {
    ShardedParameters parameters(
        BlocksOf(rule),
        {.stage = stage, .compute_dtype = at::kDouble, .gradient_dtype = at::kDouble}, {comm});
    ShardedOptimizer optimizer(rule.plain(), parameters,
                               {.whole_rule = rule.is_whole ? rule.whole() : nullptr});
    const auto fill = [](Tensor data, int64_t begin, const auto& value) {
      for (int64_t i = 0; i < data.numel(); ++i) data[i] = value(begin + i);
    };
    for (auto& piece : optimizer.PiecesToLoad()) {
      if (!piece.name.starts_with("weights/")) continue;
      const int k = std::stoi(piece.spec->name);
      fill(piece.data, piece.begin, [&](int64_t i) { return Start(i, k); });
    }
    parameters.SyncFromMaster();
    for (int step = 1; step <= Fixture()["steps"].get<int>(); ++step) {
      for (const OptimizerSlice& slice : parameters.optimizer_slices()) {
        for (const auto& run :
             slice.layout->RunsOf(slice.begin, slice.begin + slice.gradients.numel())) {
          const int k = std::stoi(run.spec.name);
          fill(slice.gradients.narrow(0, run.offset, run.whole.count), run.whole.first,
               [&](int64_t i) { return 2 * Gradient(i, k, step); });
        }
      }
      optimizer.Step({.learning_rate = rule.learning_rate, .grad_scale = 0.5, .step = step});
    }
    const std::lock_guard lock(mutex);
    for (const auto& piece : optimizer.PiecesToSave()) {
      if (!piece.name.starts_with("weights/")) continue;
      auto& whole = weights[piece.spec->name];
      whole.resize(piece.spec->numel());
      for (int64_t i = 0; i < piece.data.numel(); ++i)
        whole[piece.begin + i] = piece.data[i].item<double>();
    }
    return absl::OkStatus();
  });
  ASSERT_TRUE(status.ok()) << status;
  const Json& want = Fixture()[rule.name];
  for (size_t k = 0; k < want.size(); ++k) {
    const std::vector<double> expected = want[k];
    const std::vector<double>& got = weights.at(std::to_string(k));
    ASSERT_EQ(got.size(), expected.size());
    for (size_t i = 0; i < got.size(); ++i) {
      ASSERT_NEAR(got[i], expected[i], 1e-12)
          << rule.name << ", weight " << k << "[" << i << "], stage " << stage << " of " << ranks;
    }
  }
}

TEST(OptimizerReference, EveryRule) {
  const auto adafactor = [](bool scaled, double weight_decay) {
    return [=] {
      return std::make_shared<Adafactor>(
          Adafactor::Options{.scale_parameter = scaled, .weight_decay = weight_decay});
    };
  };
  const auto muon = [](Muon::Scale scale, bool nesterov) {
    return [=] {
      return std::make_shared<Muon>(
          Muon::Options{.nesterov = nesterov, .scale = scale, .weight_decay = 0.1});
    };
  };
  const std::vector<RuleCase> rules = {
      {.name = "lion",
       .is_whole = false,
       .plain = [] { return std::make_unique<Lion>(Lion::Options{.weight_decay = 0.1}); },
       .learning_rate = 0.01},
      {.name = "adafactor_torch", .whole = adafactor(true, 0.1), .learning_rate = 0.03},
      {.name = "adafactor_transformers", .whole = adafactor(true, 0), .learning_rate = 0.03},
      {.name = "adafactor_transformers_unscaled",
       .whole = adafactor(false, 0),
       .learning_rate = 0.03},
      {.name = "muon_original",
       .vectors_too = false,
       .whole = muon(Muon::Scale::kOriginal, true),
       .learning_rate = 0.02},
      {.name = "muon_match_adamw",
       .vectors_too = false,
       .whole = muon(Muon::Scale::kMatchAdamW, false),
       .learning_rate = 0.02},
      {.name = "adamw_8bit",
       .vectors_too = false,
       .whole = [] { return std::make_shared<AdamW8Bit>(AdamW8Bit::Options{.weight_decay = 0.1}); },
       .learning_rate = 0.01},
  };
  for (const RuleCase& rule : rules) {
    Train(rule, 1, 0);
    for (int stage : {0, 3}) Train(rule, 3, stage);
  }
}

TEST(DynamicCode, IsThatOfThePaper) {
  for (int moment = 0; moment < 2; ++moment) {
    const std::vector<double> want = Fixture()["dynamic_code"][moment];
    const Tensor code = DynamicCode(moment == 0);
    ASSERT_EQ(code.numel(), 256);
    for (int i = 0; i < 256; ++i) EXPECT_NEAR(code[i].item<double>(), want[i], 1e-15) << i;
  }
}

// Singular values of what comes out lie near 1.
TEST(Orthogonalize, BringsSingularValuesNearOne) {
  for (const at::ScalarType dtype : {at::kDouble, at::kFloat}) {
    for (const auto& [rows, columns] : {std::pair(24, 40), {40, 24}, {24, 24}}) {
      Tensor matrix = at::empty({rows, columns}, at::kDouble);
      for (int64_t i = 0; i < matrix.numel(); ++i) matrix.view({-1})[i] = Gradient(i, 0, 1);
      const Tensor result = Orthogonalize(matrix.to(dtype), 10).to(at::kDouble);
      const Tensor gram = rows < columns ? at::mm(result, result.t()) : at::mm(result.t(), result);
      const double trace = gram.diagonal().mean().item<double>();
      EXPECT_GT(trace, 0.7);
      EXPECT_LT(trace, 1.2);
    }
  }
}

}  // namespace
}  // namespace shoal
