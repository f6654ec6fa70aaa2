#include "optim/sharded_optimizer.h"

#include <cmath>
#include <map>

#include <ATen/ops/zeros.h>
#include <gtest/gtest.h>

#include "optim/adamw.h"
#include "optim/grad_norm.h"
#include "optim/sgd.h"
#include "parallel/comm/local_communicator.h"

namespace shoal {
namespace {

std::vector<BlockParameters> Blocks() {
  const auto spec = [](const std::string& name, std::vector<int64_t> shape, bool decay,
                       bool trainable = true) {
    return ParameterSpec{
        .name = name, .shape = shape, .init = {}, .decay = decay, .trainable = trainable};
  };
  return {{.specs = {spec("a", {3, 3}, true), spec("b", {5}, false), spec("c", {2}, true)},
           .ties = {std::nullopt, std::nullopt, std::nullopt}},
          {.specs = {spec("d", {7}, false), spec("e", {3}, false, false)},
           .ties = {std::nullopt, std::nullopt}}};
}

using Values = std::map<std::string, std::vector<double>>;

// Each rank's pieces, put together to whole tensors.
void Collect(const std::vector<ShardedOptimizer::NamedPiece>& pieces, Values& values) {
  for (const auto& piece : pieces) {
    auto& whole = values[piece.name];
    whole.resize(piece.spec->numel(), std::nan(""));
    const Tensor data = piece.data.to(at::kDouble);
    for (int64_t i = 0; i < data.numel(); ++i) whole[piece.begin + i] = data[i].item<double>();
  }
}

std::unique_ptr<UpdateRule> MakeRule(const std::string& name) {
  if (name == "adamw") return std::make_unique<AdamW>(AdamW::Options{.weight_decay = 0.1});
  return std::make_unique<Sgd>(
      Sgd::Options{.momentum = 0.9, .weight_decay = 0.1, .nesterov = true});
}

// Five clipped steps on made-up gradients; what all ranks then save.
Values Train(const std::string& rule, int ranks, int stage, at::ScalarType dtype) {
  std::vector<Values> saved(ranks);
  const absl::Status status = RunRanks(ranks, [&](Communicator& comm) {
    ShardedParameters parameters(
        Blocks(), {.stage = stage, .compute_dtype = dtype, .gradient_dtype = dtype}, {comm});
    ShardedOptimizer optimizer(MakeRule(rule), parameters, {});
    for (auto& piece : optimizer.PiecesToLoad()) {
      for (int64_t i = 0; i < piece.data.numel(); ++i) {
        piece.data[i] = piece.name.starts_with("weights/") ? std::cos(piece.begin + i) : 0.0;
      }
    }
    parameters.SyncFromMaster();
    for (int step = 1; step <= 5; ++step) {
      for (int b = 1; b >= 0; --b) {
        parameters.ZeroGradients(b, 0);
        parameters.BeginBackward(b);
        for (const Parameter& p : parameters.BeginForward(b)) {
          if (p.grad.defined()) p.grad.fill_(0.1 * step + 0.01 * comm.rank() + 0.3 * b);
        }
        parameters.EndBackward(b, 0);
      }
      const double norm =
          GlobalGradNorm(parameters.optimizer_slices(), comm, *comm.Split(comm.rank(), 0));
      optimizer.Step({.learning_rate = 0.01, .grad_scale = ClipScale(norm, 1.0), .step = step});
    }
    Collect(optimizer.PiecesToSave(), saved[comm.rank()]);
    return absl::OkStatus();
  });
  EXPECT_TRUE(status.ok()) << status;
  Values all;
  for (const Values& values : saved) {
    for (const auto& [name, part] : values) {
      auto& whole = all[name];
      whole.resize(part.size(), std::nan(""));
      for (size_t i = 0; i < part.size(); ++i) {
        if (std::isnan(part[i])) continue;
        EXPECT_TRUE(std::isnan(whole[i])) << name << "[" << i << "] is saved twice";
        whole[i] = part[i];
      }
    }
  }
  for (const auto& [name, whole] : all) {
    for (double value : whole) EXPECT_FALSE(std::isnan(value)) << name << " is not saved whole";
  }
  return all;
}

TEST(ShardedOptimizer, StagesAreEqualToTheLastBit) {
  for (const std::string rule : {"adamw", "sgd"}) {
    for (at::ScalarType dtype : {at::kFloat, at::kDouble, at::kBFloat16}) {
      for (int ranks = 1; ranks <= 4; ++ranks) {
        const Values stage0 = Train(rule, ranks, 0, dtype);
        EXPECT_EQ(stage0.size(), rule == "adamw" ? 5u + 8u : 5u + 4u);
        for (int stage = 1; stage <= 3; ++stage) {
          EXPECT_EQ(Train(rule, ranks, stage, dtype), stage0)
              << rule << " stage " << stage << ", " << ranks << " ranks";
        }
      }
    }
  }
}

TEST(ShardedOptimizer, LeavesFrozenWeightsAndSparesNormsFromDecay) {
  const Values values = Train("sgd", 2, 3, at::kDouble);
  EXPECT_EQ(values.at("weights/e")[1], std::cos(1.0));
  // b and c get the same gradients; only c decays, so it moves further towards zero.
  const double moved_b = values.at("weights/b")[0] - std::cos(0.0);
  const double moved_c = values.at("weights/c")[0] - std::cos(0.0);
  EXPECT_LT(moved_c, moved_b - 1e-4);
}

TEST(GlobalGradNorm, IsTheNormOfTheSumOverRanks) {
  for (int stage = 0; stage <= 3; ++stage) {
    const absl::Status status = RunRanks(2, [&](Communicator& comm) {
      ShardedParameters parameters(Blocks(), {.stage = stage}, {comm});
      for (int b = 1; b >= 0; --b) {
        parameters.ZeroGradients(b, 0);
        parameters.BeginBackward(b);
        for (const Parameter& p : parameters.BeginForward(b)) {
          if (p.grad.defined()) p.grad.fill_(comm.rank() + 1);
        }
        parameters.EndBackward(b, 0);
      }
      EXPECT_DOUBLE_EQ(
          GlobalGradNorm(parameters.optimizer_slices(), comm, *comm.Split(comm.rank(), 0)),
          std::sqrt(23 * 9.0));
      return absl::OkStatus();
    });
    ASSERT_TRUE(status.ok()) << status;
  }
  EXPECT_EQ(ClipScale(0.5, 1.0), 1.0);
  EXPECT_NEAR(ClipScale(4.0, 1.0), 0.25, 1e-6);
  EXPECT_EQ(ClipScale(4.0, 0), 1.0);
}

}  // namespace
}  // namespace shoal
