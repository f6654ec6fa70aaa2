#include "inference/logits.h"

#include <cmath>
#include <fstream>
#include <limits>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

namespace shoal {
namespace {

constexpr float kRuledOut = -std::numeric_limits<float>::infinity();

std::vector<double> Probabilities(const std::vector<float>& logits) {
  const double highest = *std::max_element(logits.begin(), logits.end());
  std::vector<double> result;
  double total = 0;
  for (float logit : logits) total += result.emplace_back(std::exp(logit - highest));
  for (double& p : result) p /= total;
  return result;
}

// Rows, options and results of Python transformers' processors
// (tests/fixtures/make_sampling_fixtures.py).
TEST(ProcessLogits, EqualsTransformersProcessors) {
  std::ifstream file("tests/fixtures/sampling.json");
  ASSERT_TRUE(file.is_open());
  const auto fixture = nlohmann::json::parse(file);
  const auto seen = fixture["seen"].get<std::vector<int64_t>>();
  for (const auto& entry : fixture["cases"]) {
    SCOPED_TRACE(entry["row"].dump() + " " + entry["options"].dump());
    std::vector<float> logits;
    for (const auto& value : fixture["rows"][entry["row"].get<std::string>()]) {
      logits.push_back(value.is_null() ? kRuledOut : value.get<float>());
    }
    SamplingOptions options;
    options.temperature = entry["options"]["temperature"];
    options.top_k = entry["options"]["top_k"];
    options.top_p = entry["options"]["top_p"];
    options.min_p = entry["options"].value("min_p", 0.0);
    options.repetition_penalty = entry["options"]["repetition_penalty"];
    ASSERT_TRUE(CheckSamplingOptions(options).ok());
    ProcessLogits(logits, seen, options);

    std::vector<int64_t> kept;
    for (size_t i = 0; i < logits.size(); ++i) {
      if (logits[i] != kRuledOut) kept.push_back(i);
    }
    auto want_kept = entry["kept"].get<std::vector<int64_t>>();
    auto want = entry["probabilities"].get<std::vector<double>>();
    std::vector<double> got;
    const auto probabilities = Probabilities(logits);
    for (int64_t id : kept) got.push_back(probabilities[id]);
    // Which of several equal tokens the nucleus ends with is the reference's unstable sort's
    // choice.
    if (options.top_p < 1 && (entry["row"] == "ties" || entry["row"] == "equal")) {
      std::sort(got.begin(), got.end());
      std::sort(want.begin(), want.end());
    } else {
      EXPECT_EQ(kept, want_kept);
    }
    ASSERT_EQ(got.size(), want.size());
    for (size_t i = 0; i < got.size(); ++i)
      EXPECT_NEAR(got[i], want[i], 1e-6 * want[i] + 1e-9) << "entry " << i;
  }
}

// A nucleus larger than the first sorted piece, against the definition by a full sort.
TEST(KeepTopP, WideNucleusEqualsFullSort) {
  std::vector<float> logits(5000);
  for (size_t i = 0; i < logits.size(); ++i) logits[i] = static_cast<float>(Philox(5).Uniform(i));
  const std::vector<double> p = Probabilities(logits);
  std::vector<double> sorted = p;
  std::sort(sorted.begin(), sorted.end(), std::greater<>());
  size_t want = 0;
  for (double mass = 0; want < sorted.size() && mass < 0.8; ++want) mass += sorted[want];
  KeepTopP(logits, 0.8);
  EXPECT_EQ(logits.size() - std::count(logits.begin(), logits.end(), kRuledOut), want);
  for (size_t i = 0; i < logits.size(); ++i)
    EXPECT_EQ(logits[i] != kRuledOut, p[i] >= sorted[want - 1]);
}

// Pearson's chi-square over 200,000 draws at fixed logits; the bound is the 1e-6 quantile's order
// for 15 degrees of freedom, and the draws are a function of the seed, so the test cannot flicker.
TEST(ChooseToken, DrawsFollowTheDistribution) {
  std::vector<float> row(16);
  for (size_t i = 0; i < row.size(); ++i) row[i] = static_cast<float>(std::sin(i * 1.7) * 2);
  const std::vector<double> p = Probabilities(row);
  constexpr int kDraws = 200000;
  std::vector<int> counts(row.size());
  SamplingOptions options{.temperature = 1.0, .seed = 11};
  const std::vector<int64_t> sequence(20);
  for (int draw = 0; draw < kDraws; ++draw) {
    std::vector<float> logits = row;
    // Half of the draws walk along streams, half along positions.
    const size_t length = draw % 2 ? 20 : draw / 2 % 20;
    const uint64_t stream = draw % 2 ? draw : draw / 40;
    ++counts[*ChooseToken(logits, std::span(sequence).first(length), options, stream)];
  }
  double chi_square = 0;
  for (size_t i = 0; i < p.size(); ++i)
    chi_square += std::pow(counts[i] - kDraws * p[i], 2) / (kDraws * p[i]);
  EXPECT_LT(chi_square, 56.5) << "15 degrees of freedom";
}

TEST(ChooseToken, GreedyTakesTheLowestIdAmongEquals) {
  std::vector<float> logits = {1, 3, 3, 2};
  EXPECT_EQ(*ChooseToken(logits, {}, {}, 0), 1);
  // The repetition penalty counts under greedy decoding too.
  const std::vector<int64_t> sequence = {1};
  EXPECT_EQ(*ChooseToken(logits, sequence, {.repetition_penalty = 2}, 0), 2);
}

TEST(ChooseToken, RefusesRowsThatAreNotFinite) {
  std::vector<float> logits = {1, std::nanf(""), 2};
  EXPECT_THAT(std::string(ChooseToken(logits, {}, {}, 0).status().message()),
              testing::HasSubstr("at token 1"));
  logits = {1, std::numeric_limits<float>::infinity()};
  EXPECT_FALSE(ChooseToken(logits, {}, {}, 0).ok());
  logits = {kRuledOut, kRuledOut};
  EXPECT_FALSE(ChooseToken(logits, {}, {}, 0).ok());
}

TEST(SampleAt, NeverReturnsWhatIsRuledOut) {
  const std::vector<float> logits = {kRuledOut, 0, kRuledOut, 0, kRuledOut};
  EXPECT_EQ(SampleAt(logits, 0.0), 1);
  EXPECT_EQ(SampleAt(logits, 0.4999), 1);
  EXPECT_EQ(SampleAt(logits, 0.5), 3);
  EXPECT_EQ(SampleAt(logits, std::nextafter(1.0, 0.0)), 3);
}

TEST(CheckSamplingOptions, NamesTheOption) {
  EXPECT_THAT(std::string(CheckSamplingOptions({.temperature = -1}).message()),
              testing::HasSubstr("temperature is -1"));
  EXPECT_THAT(std::string(CheckSamplingOptions({.temperature = 1e-9}).message()),
              testing::HasSubstr("temperature"));
  EXPECT_THAT(std::string(CheckSamplingOptions({.top_k = -1}).message()),
              testing::HasSubstr("top_k is -1"));
  EXPECT_THAT(std::string(CheckSamplingOptions({.top_p = 0}).message()),
              testing::HasSubstr("top_p is 0"));
  EXPECT_THAT(std::string(CheckSamplingOptions({.repetition_penalty = 0}).message()),
              testing::HasSubstr("repetition_penalty is 0"));
}

}  // namespace
}  // namespace shoal
