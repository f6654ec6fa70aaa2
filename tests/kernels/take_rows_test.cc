#include "kernels/take_rows.h"

#include <gtest/gtest.h>

#include "tests/kernels/gradients.h"

namespace shoal {
namespace {

// Rows taken never, once and several times; x whole and as columns of something wider.
TEST(TakeRowsTest, EqualsIndexSelect) {
  at::manual_seed(3);
  const Tensor index_R = at::tensor({4, 0, 4, 2, 4, 6, 0, 1}, at::kLong);
  const auto take = [&](auto&& rows) {
    return Operation([&, rows](const std::vector<Tensor>& x, const std::vector<Parameter>&) {
      return rows(x[0], index_R);
    });
  };
  const Operation taken = take(TakeRows);
  const Operation selected =
      take([](const Tensor& x, const Tensor& index) { return x.index_select(0, index); });
  const Tensor wide = at::randn({7, 3, 22}, at::kDouble);
  for (at::ScalarType dtype : {at::kDouble, at::kFloat, at::kBFloat16}) {
    ExpectMatches(taken, selected, {wide}, {}, dtype);
    ExpectMatches(taken, selected, {wide.select(1, 1).narrow(1, 4, 10)}, {}, dtype);
  }
}

}  // namespace
}  // namespace shoal
