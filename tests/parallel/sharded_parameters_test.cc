// ZeRO over made-up gradients: what a rank holds, what it sends, and that every stage has the same
// sums to the last bit. Training with real models under ZeRO is in tests/trainer.
#include "parallel/sharded_parameters.h"

#include <cmath>

#include <ATen/ops/equal.h>
#include <ATen/ops/zeros.h>
#include <gtest/gtest.h>

#include "parallel/comm/local_communicator.h"

namespace shoal {
namespace {

ParameterSpec Spec(const std::string& name, std::vector<int64_t> shape, bool trainable = true) {
  return {
      .name = name, .shape = std::move(shape), .init = {}, .decay = true, .trainable = trainable};
}

// Odd sizes, an empty and a frozen weight, and a head tied to the embedding.
std::vector<BlockParameters> Blocks() {
  return {{.specs = {Spec("embed", {7, 3})}, .ties = {std::nullopt}},
          {.specs = {Spec("w", {5}), Spec("empty", {0, 3}), Spec("frozen", {4}, false),
                     Spec("v", {2, 3})},
           .ties = {std::nullopt, std::nullopt, std::nullopt, std::nullopt}},
          {.specs = {Spec("embed", {7, 3}), Spec("norm", {3})},
           .ties = {BlockParameters::Tie{.block = 0, .parameter = 0}, std::nullopt}}};
}

// A gradient that differs by rank, micro-batch, block and place, with bits that additions round
// off.
Tensor FakeGradient(const Tensor& like, int rank, int micro_batch, int block, int parameter) {
  Tensor values = at::zeros(like.sizes(), at::kDouble);
  double* data = values.mutable_data_ptr<double>();
  for (int64_t i = 0; i < values.numel(); ++i) {
    data[i] =
        std::sin(1.0 + i + 10.0 * rank + 100.0 * micro_batch + 1000.0 * block + 1e4 * parameter);
  }
  return values.to(like.scalar_type());
}

void RunStep(ShardedParameters& parameters, int rank) {
  const int num_blocks = static_cast<int>(Blocks().size());
  for (int m = 0; m < parameters.options().micro_batches; ++m) {
    for (int b = 0; b < num_blocks; ++b) parameters.BeginForward(b);
    for (int b = num_blocks - 1; b >= 0; --b) {
      parameters.ZeroGradients(b, m);
      parameters.BeginBackward(b);
      const auto bound =
          parameters.BeginForward(b);  // Collective, and harmless here: the same weights again
      for (int i = 0; i < static_cast<int>(bound.size()); ++i) {
        if (bound[i].grad.defined()) bound[i].grad.add_(FakeGradient(bound[i].grad, rank, m, b, i));
      }
      parameters.EndBackward(b, m);
    }
  }
}

// All gradients of the trainable units in order, whole, in double.
std::vector<double> GatheredGradients(ShardedParameters& parameters, Communicator& comm) {
  std::vector<double> all;
  for (const OptimizerSlice& slice : parameters.optimizer_slices()) {
    Tensor whole = at::zeros({slice.layout->padded_numel()}, slice.gradients.options());
    if (slice.gradients.numel() == whole.numel()) {
      whole.copy_(slice.gradients);
    } else {
      comm.AllGather(whole, slice.gradients.contiguous());
    }
    whole = whole.to(at::kDouble);
    all.insert(all.end(), whole.const_data_ptr<double>(),
               whole.const_data_ptr<double>() + slice.layout->numel());
  }
  return all;
}

TEST(ShardedParameters, EveryStageSumsTheSameBits) {
  for (int ranks = 1; ranks <= 4; ++ranks) {
    for (int micro_batches : {1, 3}) {
      std::vector<std::vector<double>> by_stage(4);
      for (int stage = 0; stage <= 3; ++stage) {
        const absl::Status status = RunRanks(ranks, [&](Communicator& comm) {
          ShardedParameters parameters(
              Blocks(),
              {.stage = stage, .micro_batches = micro_batches, .reduce_every_micro_batch = true},
              {comm});
          RunStep(parameters, comm.rank());
          const auto all = GatheredGradients(parameters, comm);
          if (comm.rank() == 0) by_stage[stage] = all;
          return absl::OkStatus();
        });
        ASSERT_TRUE(status.ok()) << status;
        EXPECT_EQ(by_stage[stage], by_stage[0]) << "stage " << stage << ", " << ranks << " ranks";
      }
      // The tied embedding's gradient is the sum of both blocks' contributions over ranks and
      // micro-batches.
      double want = 0;
      for (int r = 0; r < ranks; ++r) {
        for (int m = 0; m < micro_batches; ++m) {
          want +=
              std::sin(1.0 + 10.0 * r + 100.0 * m) + std::sin(1.0 + 10.0 * r + 100.0 * m + 2000.0);
        }
      }
      EXPECT_NEAR(by_stage[0][0], want, 1e-5);
    }
  }
}

TEST(ShardedParameters, SendsTheBytesOfTheFormula) {
  for (int ranks = 1; ranks <= 4; ++ranks) {
    for (int m : {1, 2}) {
      for (int stage = 0; stage <= 3; ++stage) {
        for (bool every : {false, true}) {
          const absl::Status status = RunRanks(ranks, [&](Communicator& comm) {
            std::vector<BlockParameters> blocks = Blocks();
            blocks[1].specs[2].trainable = true;
            ShardedParameters parameters(
                blocks, {.stage = stage, .micro_batches = m, .reduce_every_micro_batch = every},
                {comm});
            const int64_t before = comm.counters().bytes_sent;
            for (int i = 0; i < m; ++i) {
              for (int b = 0; b < 3; ++b) parameters.BeginForward(b);
              for (int b = 2; b >= 0; --b) {
                parameters.ZeroGradients(b, i);
                parameters.BeginBackward(b);
                parameters.EndBackward(b, i);
              }
            }
            parameters.PublishWeights();
            const int64_t unit =
                parameters.num_padded() * 4 / ranks * (ranks - 1);  // P (N-1)/N, in bytes
            const int64_t passes = stage == 3 ? 3 * m : stage == 2 || every ? m + 1 : 2;
            EXPECT_EQ(comm.counters().bytes_sent - before, passes * unit)
                << "stage " << stage << ", " << ranks << " ranks, " << m << " micro-batches, every "
                << every;
            return absl::OkStatus();
          });
          ASSERT_TRUE(status.ok()) << status;
        }
      }
    }
  }
}

TEST(ShardedParameters, HoldsTheBytesOfTheFormula) {
  for (int ranks = 1; ranks <= 4; ++ranks) {
    for (int stage = 0; stage <= 3; ++stage) {
      const absl::Status status = RunRanks(ranks, [&](Communicator& comm) {
        std::vector<BlockParameters> blocks = Blocks();
        blocks[1].specs[2].trainable = true;
        ShardedParameters parameters(
            blocks,
            {.stage = stage, .compute_dtype = at::kBFloat16, .gradient_dtype = at::kBFloat16},
            {comm});
        const int64_t p = parameters.num_padded();
        const HeldBytes held = parameters.held_bytes();
        EXPECT_EQ(held.weights, stage == 3 ? 2 * p / ranks : 2 * p);
        EXPECT_EQ(held.gradients, stage >= 2 ? 2 * p / ranks : 2 * p);
        EXPECT_EQ(held.master_weights, stage >= 1 ? 4 * p / ranks : 4 * p);
        EXPECT_EQ(held.gathered > 0, stage >= 2);
        return absl::OkStatus();
      });
      ASSERT_TRUE(status.ok()) << status;
    }
  }
}

TEST(ShardedParameters, GathersWhatWasWrittenToTheMasterWeights) {
  for (int stage = 0; stage <= 3; ++stage) {
    const absl::Status status = RunRanks(3, [&](Communicator& comm) {
      ShardedParameters parameters(Blocks(), {.stage = stage, .compute_dtype = at::kBFloat16},
                                   {comm});
      for (const auto& unit : parameters.units()) {
        Tensor owned = unit->owned_weights();
        for (int64_t i = 0; i < owned.numel(); ++i)
          owned[i] = static_cast<double>(unit->owned_begin() + i);
      }
      parameters.SyncFromMaster();
      const auto first = parameters.BeginForward(0);
      EXPECT_EQ(first[0].value.flatten()[20].item<double>(), 20) << "stage " << stage;
      EXPECT_TRUE(first[0].value.requires_grad());
      const auto second = parameters.BeginForward(1);
      EXPECT_EQ(second[0].value[4].item<double>(), 4);
      EXPECT_EQ(second[3].value.flatten()[0].item<double>(), 5) << "follows w: no gap";
      EXPECT_EQ(second[2].value[3].item<double>(), 3);
      EXPECT_FALSE(second[2].value.requires_grad());
      EXPECT_FALSE(second[2].grad.defined());
      const auto third = parameters.BeginForward(2);
      EXPECT_EQ(third[0].value.flatten()[20].item<double>(), 20);
      return absl::OkStatus();
    });
    ASSERT_TRUE(status.ok()) << status;
  }
}

std::vector<BlockParameters> LargeBlocks() {
  return {{.specs = {Spec("embed", {70, 9}), Spec("frozen", {401}, false)},
           .ties = {std::nullopt, std::nullopt}},
          {.specs = {Spec("w", {1001})}, .ties = {std::nullopt}}};
}

// An owned weight, by its place in the unit.
double WeightAt(int64_t i) { return std::sin(0.1 * static_cast<double>(i)) * std::exp(i % 7); }

TEST(ShardedParameters, QuantizedWeightsAreTheSameOnEveryRankAndNearTheExactOnes) {
  for (at::ScalarType dtype : {at::kFloat, at::kDouble, at::kBFloat16}) {
    for (int ranks : {1, 3}) {
      for (bool overlap : {false, true}) {
        const absl::Status status = RunRanks(ranks, [&](Communicator& comm) {
          ShardedParameters parameters(
              LargeBlocks(),
              {.stage = 3, .compute_dtype = dtype, .overlap = overlap, .quantized_weights = true},
              {comm});
          for (const auto& unit : parameters.units()) {
            Tensor owned = unit->owned_weights_to_write();
            for (int64_t i = 0; i < owned.numel(); ++i)
              owned[i] = WeightAt(unit->owned_begin() + i);
          }
          parameters.SyncFromMaster();
          double most = 0;
          for (int b : {0, 1}) {
            for (const Parameter& weight : parameters.BeginForward(b)) {
              const Tensor mine = weight.value.detach().contiguous().view({-1});
              Tensor all = at::zeros({ranks * mine.numel()}, mine.scalar_type());
              comm.AllGather(all, mine);
              for (int r = 0; r < ranks; ++r)
                EXPECT_TRUE(at::equal(all.narrow(0, r * mine.numel(), mine.numel()), mine));
              for (int64_t i = 0; i < mine.numel(); ++i)
                most = std::max(most, std::abs(mine[i].item<double>() - WeightAt(i)));
            }
          }
          // A block's largest number is e^6 at most.
          const double rounding = dtype == at::kBFloat16 ? std::exp(6) / 256 : 1e-4;
          EXPECT_LE(most, (ranks > 1 ? std::exp(6) / 254 : 0) + rounding);
          if (ranks > 1) {
            EXPECT_GT(most, std::exp(6) / 600);
          }
          return absl::OkStatus();
        });
        ASSERT_TRUE(status.ok()) << status;
      }
    }
  }
}

// Each rank's part of a sum is off by what the header of quantized_blocks.h allows.
TEST(ShardedParameters, QuantizedGradientsAreNearTheExactOnesAndTheSameAgain) {
  for (int stage : {2, 3}) {
    for (int ranks : {1, 4}) {
      for (int micro_batches : {1, 3}) {
        std::vector<std::vector<double>> runs;
        for (bool quantized : {false, true, true}) {
          const absl::Status status = RunRanks(ranks, [&](Communicator& comm) {
            ShardedParameters parameters(
                Blocks(),
                {.stage = stage, .micro_batches = micro_batches, .quantized_gradients = quantized},
                {comm});
            RunStep(parameters, comm.rank());
            const auto all = GatheredGradients(parameters, comm);
            if (comm.rank() == 0) runs.push_back(all);
            return absl::OkStatus();
          });
          ASSERT_TRUE(status.ok()) << status;
        }
        EXPECT_EQ(runs[1], runs[2]);
        double most = 0;
        for (size_t i = 0; i < runs[0].size(); ++i)
          most = std::max(most, std::abs(runs[1][i] - runs[0][i]));
        // Made-up gradients are at most 1 from each of two blocks.
        EXPECT_LE(most, ranks == 1 ? 0 : ranks * micro_batches * 2.001 / 254);
        EXPECT_EQ(most > 0, ranks > 1);
      }
    }
  }
}

}  // namespace
}  // namespace shoal
