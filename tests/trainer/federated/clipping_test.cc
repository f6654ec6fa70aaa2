#include "trainer/federated/clipping.h"

#include <cmath>
#include <limits>
#include <vector>

#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "kernels/threads.h"

namespace shoal {
namespace {

TEST(Clipping, NormIsOverAllTensors) {
  EXPECT_EQ(GlobalNorm({at::tensor({3.0, 0.0}), at::tensor({4.0})}), 5);
  EXPECT_EQ(GlobalNorm({at::full({16}, 0.25, at::kFloat)}), 1);
  EXPECT_EQ(GlobalNorm({}), 0);
}

TEST(Clipping, FactorBringsTheNormToTheClip) {
  EXPECT_EQ(*ClipFactor(5, 2), 0.4);
  EXPECT_EQ(*ClipFactor(2, 2), 1);
  EXPECT_EQ(*ClipFactor(0, 2), 1);
  EXPECT_EQ(ClipFactor(std::nan(""), 2).status().code(), absl::StatusCode::kOutOfRange);
  EXPECT_EQ(ClipFactor(std::numeric_limits<double>::infinity(), 2).status().code(),
            absl::StatusCode::kOutOfRange);
  EXPECT_EQ(ClipFactor(1, 0).status().code(), absl::StatusCode::kInvalidArgument);
}

TEST(Clipping, NoiseIsAFunctionOfThePlaceAndHasItsVariance) {
  constexpr int64_t kSize = 200'001;
  const Philox noise(3, 9);
  for (at::ScalarType dtype : {at::kFloat, at::kDouble}) {
    Tensor whole = at::ones({kSize}, dtype);
    AddGaussianNoise(whole, noise, 1000, 2.5);
    const Tensor drawn = (whole - 1).to(at::kDouble);
    EXPECT_NEAR(drawn.mean().item<double>(), 0, 5 * 2.5 / std::sqrt(kSize));
    EXPECT_NEAR(drawn.square().mean().item<double>() / 6.25, 1, 5 * std::sqrt(2.0 / kSize));
    // In slices, on more threads: the same bits.
    const int threads = GetNumThreads();
    SetNumThreads(3);
    Tensor sliced = at::ones({kSize}, dtype);
    for (int64_t at : {int64_t{0}, int64_t{4097}, int64_t{100'000}}) {
      const int64_t end = at == 0 ? 4097 : at == 4097 ? 100'000 : kSize;
      Tensor slice = sliced.narrow(0, at, end - at);
      AddGaussianNoise(slice, noise, 1000 + at, 2.5);
    }
    SetNumThreads(threads);
    EXPECT_TRUE(at::equal(sliced, whole));
  }
  Tensor none = at::ones({10});
  AddGaussianNoise(none, noise, 0, 0);
  EXPECT_TRUE(at::equal(none, at::ones({10})));
}

TEST(Clipping, NoiseIsSplitBetweenUpdatesAndBits) {
  EXPECT_NEAR(*UpdateNoiseMultiplier(1, 50.0 / 20), 1.02062, 5e-6);  // Andrew et al. 2021, m = 50
  EXPECT_EQ(*UpdateNoiseMultiplier(0, 3), 0);
  EXPECT_EQ(UpdateNoiseMultiplier(1, 0.5).status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(UpdateNoiseMultiplier(1, 0).status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(UpdateNoiseMultiplier(-1, 3).status().code(), absl::StatusCode::kInvalidArgument);
}

TEST(AdaptiveClip, OneUpdate) {
  const Philox noise(1);
  const auto after = [&](int64_t unclipped, int64_t clients, double divisor) {
    AdaptiveClip clip = *AdaptiveClip::Create({.initial_clip = 2});
    clip.Update(unclipped, clients, divisor, noise, 0);
    return clip.clip();
  };
  EXPECT_NEAR(after(0, 50, 50), 2 * std::exp(0.1), 1e-12);    // All clipped: the norm rises
  EXPECT_NEAR(after(50, 50, 50), 2 * std::exp(-0.1), 1e-12);  // None: it falls
  EXPECT_NEAR(after(25, 50, 50), 2, 1e-12);
  EXPECT_NEAR(after(30, 30, 50), 2 * std::exp(-0.2 * (0.5 + 15.0 / 50 - 0.5)), 1e-12);
  EXPECT_NEAR(after(0, 0, 50), 2, 1e-12);  // An empty cohort says nothing
}

TEST(AdaptiveClip, FindsTheQuantileWithAndWithoutNoise) {
  for (double quantile : {0.3, 0.5, 0.9}) {
    for (double count_stddev : {0.0, 10.0}) {
      AdaptiveClip clip = *AdaptiveClip::Create(
          {.initial_clip = 0.01, .quantile = quantile, .count_stddev = count_stddev});
      double mean = 0;
      for (int round = 0; round < 400; ++round) {
        int unclipped = 0;
        for (int client = 0; client < 200; ++client) unclipped += client / 100.0 <= clip.clip();
        clip.Update(unclipped, 200, 200, Philox(5), round);
        if (round >= 300) mean += clip.clip() / 100;
      }
      EXPECT_NEAR(mean, 2 * quantile, 0.05) << quantile << " " << count_stddev;
    }
  }
}

TEST(AdaptiveClip, NoiseIsOfTheRoundAndRestoreGoesOn) {
  const AdaptiveClipOptions options{.initial_clip = 1, .count_stddev = 5};
  AdaptiveClip whole = *AdaptiveClip::Create(options), resumed = *AdaptiveClip::Create(options);
  for (int round = 0; round < 5; ++round) whole.Update(10, 50, 50, Philox(2), round);
  resumed.Restore(whole.clip());
  const double before = whole.clip();
  whole.Update(25, 50, 50, Philox(2), 5);
  resumed.Update(25, 50, 50, Philox(2), 5);
  EXPECT_EQ(resumed.clip(), whole.clip());
  EXPECT_NE(whole.clip(), before);  // Half unclipped: what moved it is the noise
  resumed.Restore(before);
  resumed.Update(25, 50, 50, Philox(2), 6);
  EXPECT_NE(resumed.clip(), whole.clip());
}

TEST(AdaptiveClip, RefusesOptionsOutOfRange) {
  for (const AdaptiveClipOptions& wrong : std::vector<AdaptiveClipOptions>{
           {.initial_clip = 0}, {.quantile = 1.1}, {.learning_rate = 0}, {.count_stddev = -1}}) {
    EXPECT_EQ(AdaptiveClip::Create(wrong).status().code(), absl::StatusCode::kInvalidArgument);
  }
}

}  // namespace
}  // namespace shoal
