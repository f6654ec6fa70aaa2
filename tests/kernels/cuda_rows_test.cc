// Kernels of kernels/cuda that work a row at a time against their plain counterparts in float64:
// over lengths that fill no vector, one, and many.
#include <gtest/gtest.h>

#include "core/random.h"
#include "kernels/dropout.h"
#include "kernels/reference.h"
#include "kernels/rotary.h"
#include "tests/kernels/device_under_test.h"
#include "tests/kernels/row_operations.h"

namespace shoal {
namespace {

using CudaNormTest = DeviceTest;
using CudaActivationTest = DeviceTest;
using CudaRotaryTest = DeviceTest;
using CudaDropoutTest = DeviceTest;
using CudaSoftmaxTest = DeviceTest;

constexpr int64_t kRows[] = {1, 129}, kColumns[] = {1, 7, 130, 1024};

// Calls check(dtype, rows, columns).
template <class F>
void ForShapes(F&& check) {
  for (at::ScalarType dtype : kDeviceDtypes) {
    for (int64_t rows : kRows) {
      for (int64_t columns : kColumns) {
        SCOPED_TRACE(testing::Message() << dtype << " (" << rows << ", " << columns << ")");
        check(dtype, rows, columns);
      }
    }
  }
}

TEST_F(CudaNormTest, RmsNorm) {
  ForShapes([&](at::ScalarType dtype, int64_t rows, int64_t columns) {
    Check(kRmsNorm.fused, kRmsNorm.exact, {Random({rows, columns})}, {Random({columns})}, dtype, 4);
  });
}

TEST_F(CudaNormTest, AddRmsNormGivesTheSumAndPassesItsGradient) {
  ForShapes([&](at::ScalarType dtype, int64_t rows, int64_t columns) {
    Check(kAddRmsNorm.fused, kAddRmsNorm.exact, {Random({rows, columns}), Random({rows, columns})},
          {Random({columns})}, dtype, 4);
  });
}

TEST_F(CudaNormTest, LayerNorm) {
  ForShapes([&](at::ScalarType dtype, int64_t rows, int64_t columns) {
    if (columns == 1) return;  // Zeros, magnified by 1 / sqrt(epsilon)
    Check(kLayerNorm.fused, kLayerNorm.exact, {Random({rows, columns}) + 3},
          {Random({columns}), Random({columns})}, dtype, 4);
  });
}

TEST_F(CudaNormTest, EmptyAndNonFinite) {
  Parameter weight{Placed(at::ones({4})), {}};
  EXPECT_EQ(RmsNorm(Placed(at::empty({0, 4})), weight, 1e-5).numel(), 0);
  Tensor x = at::ones({2, 4});
  x[0][1] = std::numeric_limits<float>::quiet_NaN();
  const Tensor y = RmsNorm(Placed(x), weight, 0).cpu();
  EXPECT_TRUE(y[0].isnan().all().item<bool>());
  EXPECT_TRUE(Near(y[1], at::ones({4}), at::kFloat));
}

TEST_F(CudaActivationTest, SwiGlu) {
  ForShapes([&](at::ScalarType dtype, int64_t rows, int64_t columns) {
    const Tensor gate = Random({rows, columns}) * 4, up = Random({rows, columns});
    Check(kSwiGlu.fused, kSwiGlu.exact, {gate, up}, {}, dtype);
    Check(kSwiGlu.fused, kSwiGlu.exact, {Strided(gate), up}, {}, dtype);
    Check(kSwiGluPacked.fused, kSwiGluPacked.exact, {at::cat({gate, up}, -1)}, {}, dtype);
  });
}

TEST_F(CudaActivationTest, Gelu) {
  for (GeluKind kind : {GeluKind::kTanh, GeluKind::kErf}) {
    const RowOperation gelu = GeluOperation(kind);
    ForShapes([&](at::ScalarType dtype, int64_t rows, int64_t columns) {
      Check(gelu.fused, gelu.exact, {Random({rows, columns}) * 3}, {}, dtype);
    });
  }
}

TEST_F(CudaActivationTest, Extremes) {
  Tensor x = at::tensor({-1e4, -100.0, 0.0, 100.0, 1e4}).to(at::kFloat), up = at::ones({5});
  EXPECT_TRUE(Near(SwiGlu(Placed(x), Placed(up)).cpu(), reference::SwiGlu(x, up), at::kFloat));
  for (GeluKind kind : {GeluKind::kTanh, GeluKind::kErf})
    EXPECT_TRUE(Near(Gelu(Placed(x), kind).cpu(), reference::Gelu(x, kind), at::kFloat));
}

TEST_F(CudaRotaryTest, EqualsReference) {
  for (at::ScalarType dtype : kDeviceDtypes) {
    for (int64_t half : {1, 17, 64}) {
      const RotaryTable exact_table =
          MakeRotaryTable(at::rand({half}, at::kDouble), 50, 1.25, at::kDouble);
      const RotaryTable table{Placed(exact_table.cos_PH.to(at::kFloat)),
                              Placed(exact_table.sin_PH.to(at::kFloat))};
      const Tensor positions = at::randint(50, {2, 7}, at::kLong);
      const Operation fused = [&](const Tensors& x, const Parameters&) {
        return ApplyRotary(x[0], Placed(positions), table);
      };
      const Operation exact = [&](const Tensors& x, const Parameters&) {
        return reference::ApplyRotary(x[0], positions, exact_table);
      };
      Check(fused, exact, {Random({2, 7, 3, 2 * half})}, {}, dtype, 2);
      Check(fused, exact, {Strided(Random({2, 7, 3, 2 * half}))}, {}, dtype, 2);
    }
  }
}

TEST_F(CudaRotaryTest, APositionOutsideTheTableShows) {
  const Tensor x = Placed(at::randn({1, 2, 1, 4})), y = at::zeros_like(x);
  const Tensor positions = Placed(at::tensor({int64_t{3}, int64_t{-1}}));
  const Tensor angles = Placed(at::rand({3, 2}));
  DeviceKernelsFor(x)->rotary(CallOn(x), {.x = x.const_data_ptr(),
                                          .batch_stride = 8,
                                          .token_stride = 4,
                                          .head_stride = 4,
                                          .y = y.mutable_data_ptr(),
                                          .batch = 1,
                                          .length = 2,
                                          .heads = 1,
                                          .half = 2,
                                          .positions = positions.const_data_ptr<int64_t>(),
                                          .num_positions = 3,
                                          .cos = angles.const_data_ptr<float>(),
                                          .sin = angles.const_data_ptr<float>(),
                                          .direction = 1});
  EXPECT_TRUE(y.isnan().all().item<bool>());
}

TEST_F(CudaDropoutTest, DropsWhatTheReferenceDrops) {
  ForShapes([&](at::ScalarType dtype, int64_t rows, int64_t columns) {
    Tensor keys = at::empty({rows}, at::kLong), places = at::empty({rows}, at::kLong);
    for (int64_t r = 0; r < rows; ++r) {
      keys[r] = static_cast<int64_t>(SubStream(9, static_cast<uint64_t>(r / 3)));
      places[r] = r % 3;
    }
    const Operation fused = [&](const Tensors& x, const Parameters&) {
      return Dropout(x[0], 0.25, keys, places);
    };
    const Operation exact = [&](const Tensors& x, const Parameters&) {
      return reference::Dropout(x[0], 0.25, keys, places);
    };
    Check(fused, exact, {Random({rows, columns})}, {}, dtype);
  });
}

TEST_F(CudaDropoutTest, DropsWhatIsNotFinite) {
  const Tensor x = at::full({1, 1000}, std::numeric_limits<float>::infinity());
  const Tensor keys = at::full({1}, 5, at::kLong);
  EXPECT_FALSE(Dropout(Placed(x), 0.5, keys, keys).isnan().any().item<bool>());
}

struct SoftmaxResult {
  Tensor logprobs, gradient;
};

SoftmaxResult SoftmaxOnDevice(const Tensor& logits_in, const Tensor& targets_in,
                              const Tensor& scales_in, at::ScalarType dtype) {
  const c10::Device device = *DeviceUnderTest();
  const Tensor logits = logits_in.clone().to(device), targets = targets_in.to(device),
               scales = scales_in.to(device);
  const Tensor logprobs = at::empty({logits.size(0)}, logits.options());
  const Tensor gradient =
      dtype == at::kFloat ? logits : at::empty(logits.sizes(), logits.options().dtype(dtype));
  DeviceKernelsFor(gradient)->softmax_gradient(CallOn(gradient),
                                               {.logits = logits.const_data_ptr<float>(),
                                                .targets = targets.const_data_ptr<int64_t>(),
                                                .ignore_index = -100,
                                                .shape = {logits.size(0), logits.size(1)},
                                                .logprobs = logprobs.mutable_data_ptr<float>(),
                                                .gradient = gradient.mutable_data_ptr(),
                                                .scales = scales.const_data_ptr<float>()});
  return {logprobs.cpu(), gradient.cpu()};
}

TEST_F(CudaSoftmaxTest, GradientAndLogProbabilities) {
  ForShapes([&](at::ScalarType dtype, int64_t rows, int64_t columns) {
    const Tensor logits = at::randn({rows, columns}) * 5, scales = at::randn({rows});
    const Tensor targets = at::randint(columns, {rows}, at::kLong);
    if (rows > 2) targets[2] = -100;
    const Tensor valid = targets.ne(-100), index = targets.clamp_min(0).unsqueeze(1);
    const Tensor exact = at::log_softmax(logits.to(at::kDouble), -1);
    const auto [logprobs, gradient] = SoftmaxOnDevice(logits, targets, scales, dtype);
    EXPECT_TRUE(Near(logprobs, exact.gather(1, index).squeeze(1) * valid, at::kFloat));
    Tensor slope = exact.exp();
    slope.scatter_add_(1, index, at::full({rows, 1}, -1.0, at::kDouble));
    slope.mul_((scales * valid).unsqueeze(1));
    EXPECT_TRUE(Near(gradient, slope, dtype));
  });
}

TEST_F(CudaSoftmaxTest, WhatIsNoTargetOrNoNumberSpoilsItsRowAlone) {
  Tensor logits = at::randn({4, 300});
  logits[1][7] = NAN;
  logits[2][0] = -INFINITY;
  const Tensor targets = at::tensor({int64_t{300}, int64_t{0}, int64_t{5}, int64_t{5}});
  const auto [logprobs, gradient] = SoftmaxOnDevice(logits, targets, at::ones({4}), at::kBFloat16);
  for (int64_t row : {0, 1}) {
    EXPECT_TRUE(logprobs[row].isnan().item<bool>());
    EXPECT_TRUE(gradient[row].isnan().all().item<bool>());
  }
  EXPECT_FALSE(gradient.narrow(0, 2, 2).isnan().any().item<bool>());
  EXPECT_EQ(gradient[2][0].item<float>(), 0);
}

}  // namespace
}  // namespace shoal
