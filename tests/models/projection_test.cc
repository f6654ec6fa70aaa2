#include "models/blocks/projection.h"

#include "tests/models/fixture.h"

namespace shoal {
namespace {

std::vector<Parameter> Neighbours(bool with_grad) {
  const Tensor values = at::arange(24, at::kFloat), grads = at::zeros({24});
  std::vector<Parameter> parameters;
  for (int64_t i = 0; i < 3; ++i) {
    Parameter p{.value = values.narrow(0, 8 * i, 8).view({2, 4}).detach(), .grad = Tensor()};
    if (with_grad) {
      p.value.set_requires_grad(true);
      p.grad = grads.narrow(0, 8 * i, 8).view({2, 4});
    }
    parameters.push_back(p);
  }
  return parameters;
}

TEST(JoinAdjacentTest, NeighboursAreOneMatrix) {
  for (bool with_grad : {false, true}) {
    const std::vector<Parameter> parameters = Neighbours(with_grad);
    const auto joined = JoinAdjacent(parameters);
    ASSERT_TRUE(joined);
    EXPECT_TRUE(at::equal(joined->value, at::arange(24, at::kFloat).view({6, 4})));
    EXPECT_EQ(joined->value.data_ptr(), parameters[0].value.data_ptr());
    EXPECT_EQ(joined->value.requires_grad(), with_grad);
    EXPECT_EQ(joined->grad.defined(), with_grad);
  }
}

TEST(JoinAdjacentTest, RefusesWhatIsNotOneMatrix) {
  std::vector<Parameter> parameters = Neighbours(true);
  parameters[1].grad = Tensor();  // Frozen
  EXPECT_FALSE(JoinAdjacent(parameters));
  parameters = Neighbours(true);
  parameters[1].grad = parameters[1].grad.clone();
  EXPECT_FALSE(JoinAdjacent(parameters));
  parameters = Neighbours(false);
  std::swap(parameters[1], parameters[2]);
  EXPECT_FALSE(JoinAdjacent(parameters));
  parameters = Neighbours(false);
  parameters[2].value = parameters[2].value.to(at::kDouble);
  EXPECT_FALSE(JoinAdjacent(parameters));
}

}  // namespace
}  // namespace shoal
