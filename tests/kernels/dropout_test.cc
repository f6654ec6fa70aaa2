#include "kernels/dropout.h"

#include <limits>

#include <gtest/gtest.h>

#include "core/random.h"
#include "kernels/reference.h"
#include "tests/kernels/gradients.h"
#include "tests/kernels/isa.h"

namespace shoal {
namespace {

// The first word of "threefry2x32 13" in Random123's table of known answers.
TEST(ThreefryTest, KnownAnswer) {
  EXPECT_EQ(ThreefryWord(0, 0, 0), 0x9d1c5ec6u);
  EXPECT_EQ(ThreefryWord(~uint64_t{0}, ~0u, ~0u), 0xfd36d048u);
}

struct Places {
  Tensor keys_R, places_R;
};

Places PlacesOf(int64_t rows) {
  Tensor keys_R = at::empty({rows}, at::kLong), places_R = at::empty({rows}, at::kLong);
  for (int64_t r = 0; r < rows; ++r) {
    keys_R[r] = static_cast<int64_t>(SubStream(9, static_cast<uint64_t>(r / 3)));
    places_R[r] = r % 3;
  }
  return {keys_R, places_R};
}

TEST(DropoutTest, EqualsReference) {
  at::manual_seed(1);
  const Places at_rows = PlacesOf(11);
  const auto apply = [&](auto&& dropout) {
    return Operation([&, dropout](const std::vector<Tensor>& x, const std::vector<Parameter>&) {
      return dropout(x[0], 0.25, at_rows.keys_R, at_rows.places_R);
    });
  };
  ForEachIsa([&] {
    for (at::ScalarType dtype : {at::kFloat, at::kBFloat16, at::kHalf}) {
      ExpectMatches(apply(&Dropout), apply(&reference::Dropout), {at::randn({11, 37}, at::kDouble)},
                    {}, dtype);
    }
  });
}

TEST(DropoutTest, KeepsTheShareAndTheMean) {
  const Places at_rows = PlacesOf(600);
  const Tensor y = Dropout(at::ones({600, 1000}), 0.1, at_rows.keys_R, at_rows.places_R);
  // 600,000 elements: the standard deviation of the share is 0.0004.
  EXPECT_NEAR(y.eq(0).to(at::kDouble).mean().item<double>(), 0.1, 0.002);
  EXPECT_NEAR(y.to(at::kDouble).mean().item<double>(), 1.0, 0.002);
  EXPECT_FALSE(y[0].equal(y[1])) << "places share a mask";
  EXPECT_FALSE(y[0].equal(y[3])) << "streams share a mask";
}

TEST(DropoutTest, ARowHasItsMaskWhereverItIs) {
  const Tensor x = at::randn({9, 50});
  const Places at_rows = PlacesOf(9);
  const Tensor all = Dropout(x, 0.5, at_rows.keys_R, at_rows.places_R);
  const Tensor some = Dropout(x.narrow(0, 4, 3), 0.5, at_rows.keys_R.narrow(0, 4, 3),
                              at_rows.places_R.narrow(0, 4, 3));
  EXPECT_TRUE(some.equal(all.narrow(0, 4, 3)));
}

TEST(DropoutTest, DropsWhatIsNotFinite) {
  const Places at_rows = PlacesOf(1);
  const Tensor x = at::full({1, 1000}, std::numeric_limits<float>::infinity());
  EXPECT_FALSE(Dropout(x, 0.5, at_rows.keys_R, at_rows.places_R).isnan().any().item<bool>());
}

}  // namespace
}  // namespace shoal
