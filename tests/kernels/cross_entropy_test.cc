#include "kernels/cross_entropy.h"

#include <gtest/gtest.h>

#include "kernels/reference.h"
#include "kernels/threads.h"
#include "tests/kernels/gradients.h"
#include "tests/kernels/isa.h"

namespace shoal {
namespace {

struct Shape {
  int64_t rows, channels, vocabulary, chunk_rows;
};
constexpr Shape kShapes[] = {{7, 5, 3, 2}, {33, 16, 65, 0}, {20, 64, 257, 8}, {1, 3, 17, 0}};

Tensor RandomTargets(const Shape& s) {
  Tensor targets = at::randint(s.vocabulary, {s.rows}, at::kLong);
  if (s.rows > 2) targets[1] = -100;
  return targets;
}

TEST(LinearCrossEntropyTest, EqualsReference) {
  at::manual_seed(1);
  ForEachIsa([&] {
    for (at::ScalarType dtype : {at::kDouble, at::kFloat, at::kBFloat16, at::kHalf}) {
      for (const Shape& s : kShapes) {
        const Tensor targets = RandomTargets(s);
        const CrossEntropyOptions options{.denominator = 3.5,
                                          .ignore_index = -100,
                                          .chunk_rows = s.chunk_rows,
                                          .label_smoothing = s.rows == 20 ? 0.1 : 0.0};
        const Operation fused = [&](const Tensors& x, const Parameters& w) {
          return LinearCrossEntropy(x[0], w[0], targets, options);
        };
        const Operation exact = [&](const Tensors& x, const Parameters& w) {
          return reference::LinearCrossEntropy(x[0], WeightOf(w[0]), targets, options);
        };
        ExpectMatches(fused, exact, {at::randn({s.rows, s.channels}, at::kDouble)},
                      {at::randn({s.vocabulary, s.channels}, at::kDouble)}, dtype, 2);
      }
    }
  });
}

TEST(LinearCrossEntropyTest, UnitGradientGoesStraightToTheBuffer) {
  at::manual_seed(2);
  for (at::ScalarType dtype : {at::kFloat, at::kBFloat16, at::kHalf}) {
    Tensor targets = at::randint(50, {40}, at::kLong), hidden = at::randn({40, 16}).to(dtype);
    Tensor value = at::randn({50, 16}).to(dtype);
    Tensor grads[2];
    for (bool unit : {false, true}) {
      Parameter weight{value.clone().requires_grad_(true), at::ones({50, 16})};
      LinearCrossEntropy(
          hidden, weight, targets,
          {.denominator = 40, .ignore_index = -100, .chunk_rows = 16, .unit_gradient = unit})
          .backward();
      grads[unit] = weight.grad;
    }
    EXPECT_TRUE(Near(grads[1], grads[0], at::kFloat));
  }
  Parameter weight{at::randn({5, 4}).requires_grad_(true), at::zeros({5, 4})};
  Tensor loss = LinearCrossEntropy(
      at::randn({3, 4}), weight, at::zeros({3}, at::kLong),
      {.denominator = 1, .ignore_index = -100, .chunk_rows = 0, .unit_gradient = true});
  EXPECT_THROW((loss * 2).backward(), c10::Error);
}

TEST(LinearCrossEntropyTest, WithoutGradientsAndWithoutRows) {
  Parameter weight{at::randn({9, 4}), {}};
  Tensor hidden = at::randn({6, 4}), targets = at::randint(9, {6}, at::kLong);
  const Tensor loss = LinearCrossEntropy(hidden, weight, targets, {});
  EXPECT_FALSE(loss.requires_grad());
  EXPECT_TRUE(
      Near(loss, reference::LinearCrossEntropy(hidden, weight.value, targets, {}), at::kFloat));
  EXPECT_EQ(
      LinearCrossEntropy(at::empty({0, 4}), weight, at::empty({0}, at::kLong), {}).item<float>(),
      0);
  EXPECT_EQ(LinearCrossEntropy(hidden, weight, at::full({6}, -100, at::kLong), {}).item<float>(),
            0);
  Parameter trained{at::randn({9, 4}).requires_grad_(true), at::ones({9, 4})};
  LinearCrossEntropy(at::empty({0, 4}), trained, at::empty({0}, at::kLong), {}).backward();
  EXPECT_TRUE(trained.grad.equal(at::ones({9, 4})));
}

TEST(LinearCrossEntropyTest, NonFiniteLogitsReachTheLoss) {
  ForEachIsa([&] {
    for (float bad : {NAN, INFINITY}) {
      Tensor hidden = at::randn({3, 4});
      hidden[1][2] = bad;
      Parameter weight{at::rand({9, 4}), {}};
      EXPECT_FALSE(std::isfinite(
          LinearCrossEntropy(hidden, weight, at::zeros({3}, at::kLong), {}).item<float>()));
    }
  });
}

TEST(LinearLogprobsTest, EqualsReference) {
  at::manual_seed(3);
  ForEachIsa([&] {
    for (at::ScalarType dtype : {at::kDouble, at::kFloat, at::kBFloat16, at::kHalf}) {
      for (const Shape& s : kShapes) {
        const Tensor targets = RandomTargets(s);
        const CrossEntropyOptions options{
            .denominator = 1, .ignore_index = -100, .chunk_rows = s.chunk_rows};
        const Operation fused = [&](const Tensors& x, const Parameters& w) {
          return LinearLogprobs(x[0], w[0], targets, options);
        };
        const Operation exact = [&](const Tensors& x, const Parameters& w) {
          return reference::LinearLogprobs(x[0], WeightOf(w[0]), targets, options);
        };
        ExpectMatches(fused, exact, {at::randn({s.rows, s.channels}, at::kDouble)},
                      {at::randn({s.vocabulary, s.channels}, at::kDouble)}, dtype, 2);
      }
    }
  });
}

TEST(LinearLogprobsTest, FiniteDifferences) {
  const Tensor targets = at::tensor({int64_t{1}, int64_t{-100}, int64_t{0}}, at::kLong);
  const Operation operation = [&](const Tensors& x, const Parameters& w) {
    return LinearLogprobs(x[0], w[0], targets, {});
  };
  ExpectFiniteDifferences(operation, {at::randn({3, 2})}, {at::randn({4, 2})});
}

}  // namespace
}  // namespace shoal
