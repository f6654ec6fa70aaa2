#include "inference/generator.h"

#include <fstream>

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "inference/loaded_model.h"
#include "inference/score.h"

namespace shoal {
namespace {

LoadedModel Load(const std::string& name, at::ScalarType dtype = at::kFloat) {
  PosixFileSystem files;
  auto loaded = LoadModelForInference(files, "tests/fixtures/models/" + name, dtype);
  SHOAL_CHECK(loaded.ok()) << loaded.status();
  return *std::move(loaded);
}

std::vector<Generation> Generate(const LoadedModel& loaded,
                                 const std::vector<GenerationRequest>& requests,
                                 int64_t max_batch_size = 32) {
  Generator generator(loaded.model, loaded.weights, {.max_batch_size = max_batch_size});
  auto results = generator.Generate(requests);
  SHOAL_CHECK(results.ok()) << results.status();
  return *std::move(results);
}

std::string Refusal(const LoadedModel& loaded, const GenerationRequest& request) {
  Generator generator(loaded.model, loaded.weights);
  return std::string(generator.Generate(std::span(&request, 1)).status().message());
}

// The next token by running the whole sequence without a cache.
int64_t UncachedNext(const LoadedModel& loaded, const std::vector<int64_t>& sequence) {
  at::NoGradGuard no_grad;
  const int64_t T = sequence.size();
  const Batch batch = {.tokens_BT = at::tensor(sequence, at::kLong).unsqueeze(0),
                       .positions_BT = at::arange(T).unsqueeze(0)};
  const Activations out =
      ForwardAll(loaded.model, loaded.weights, batch, {.head_mode = HeadMode::kLogits});
  return out.logits_BTV.select(1, T - 1).argmax(-1).item<int64_t>();
}

std::vector<GenerationRequest> RaggedRequests(const SamplingOptions& sampling) {
  std::vector<GenerationRequest> requests;
  for (int64_t i = 0; i < 7; ++i) {
    GenerationRequest request = {
        .max_new_tokens = 3 + i % 4, .sampling = sampling, .stream = static_cast<uint64_t>(i)};
    for (int64_t j = 0; j <= i * 5 % 7; ++j) request.prompt.push_back(4 + (i * 13 + j * 7) % 30);
    requests.push_back(request);
  }
  return requests;
}

// Tokens of Python transformers' generate() (tests/fixtures/make_generation_fixtures.py), all
// prompts of a model in one ragged batch.
TEST(Generator, GreedyEqualsTransformers) {
  std::ifstream file("tests/fixtures/generation.json");
  ASSERT_TRUE(file.is_open());
  const auto fixture = nlohmann::json::parse(file);
  for (const auto& [name, cases] : fixture.items()) {
    SCOPED_TRACE(name);
    const LoadedModel loaded = Load(name);
    std::vector<GenerationRequest> requests;
    for (const auto& entry : cases) {
      requests.push_back({.prompt = entry["prompt"],
                          .max_new_tokens = 10,
                          .eos_token_ids = loaded.model.config.eos_token_ids});
    }
    const std::vector<Generation> results = Generate(loaded, requests);
    for (size_t i = 0; i < requests.size(); ++i) {
      EXPECT_EQ(results[i].tokens, cases[i]["tokens"].get<std::vector<int64_t>>())
          << "prompt " << cases[i]["prompt"];
    }
  }
}

TEST(Generator, CachedEqualsUncached) {
  for (const char* name : {"llama", "llama_tied", "gpt2"}) {
    SCOPED_TRACE(name);
    const LoadedModel loaded = Load(name, at::kDouble);
    std::vector<int64_t> sequence = {9, 4, 31};
    const Generation result = Generate(loaded, {{.prompt = sequence, .max_new_tokens = 15}})[0];
    ASSERT_EQ(result.tokens.size(), 15u);
    for (int64_t token : result.tokens) {
      ASSERT_EQ(token, UncachedNext(loaded, sequence)) << "after " << sequence.size() << " tokens";
      sequence.push_back(token);
    }
  }
}

TEST(Generator, RaggedBatchEqualsOneByOne) {
  const LoadedModel loaded = Load("llama");
  for (double temperature : {0.0, 1.0}) {
    const auto requests = RaggedRequests({.temperature = temperature, .top_k = 20, .seed = 5});
    const std::vector<Generation> together = Generate(loaded, requests);
    const std::vector<Generation> in_threes = Generate(loaded, requests, 3);
    for (size_t i = 0; i < requests.size(); ++i) {
      SCOPED_TRACE(absl::StrCat("temperature ", temperature, ", request ", i));
      const Generation alone = Generate(loaded, {requests[i]})[0];
      EXPECT_EQ(together[i].tokens, alone.tokens);
      EXPECT_EQ(in_threes[i].tokens, alone.tokens);
      EXPECT_EQ(alone.tokens.size(), static_cast<size_t>(requests[i].max_new_tokens));
    }
  }
}

TEST(Generator, StreamsOfOnePromptDiffer) {
  const LoadedModel loaded = Load("llama");
  GenerationRequest request = {
      .prompt = {5, 6}, .max_new_tokens = 12, .sampling = {.temperature = 1.0, .seed = 1}};
  GenerationRequest other = request;
  other.stream = 1;
  const auto results = Generate(loaded, {request, other, request});
  EXPECT_EQ(results[0].tokens, results[2].tokens);
  EXPECT_NE(results[0].tokens, results[1].tokens);
}

TEST(Generator, EndsWhereItIsTold) {
  const LoadedModel loaded = Load("llama");
  const GenerationRequest free = {.prompt = {7, 42, 15}, .max_new_tokens = 10};
  const std::vector<int64_t> tokens = Generate(loaded, {free})[0].tokens;

  GenerationRequest eos = free;
  eos.eos_token_ids = {50, tokens[3]};
  const size_t first = std::find(tokens.begin(), tokens.end(), tokens[3]) - tokens.begin();
  Generation result = Generate(loaded, {eos, free})[0];
  EXPECT_EQ(result.tokens, std::vector<int64_t>(tokens.begin(), tokens.begin() + first + 1));
  EXPECT_EQ(result.finish_reason, FinishReason::kEos);

  GenerationRequest stopped = free;
  std::vector<int64_t> told;
  stopped.on_token = [&](int64_t token) {
    told.push_back(token);
    return told.size() < 4;
  };
  result = Generate(loaded, {stopped})[0];
  EXPECT_EQ(result.tokens, std::vector<int64_t>(tokens.begin(), tokens.begin() + 4));
  EXPECT_EQ(told, result.tokens);
  EXPECT_EQ(result.finish_reason, FinishReason::kStopped);

  // The model has 64 positions; a neighbour with more room does not stretch it.
  GenerationRequest long_one = free;
  long_one.max_new_tokens = 1000;
  long_one.prompt.assign(60, 8);
  const auto results = Generate(loaded, {long_one, free});
  EXPECT_EQ(results[0].tokens.size(), 4u);
  EXPECT_EQ(results[0].finish_reason, FinishReason::kPositions);
  EXPECT_EQ(results[1].tokens, tokens);
  EXPECT_EQ(results[1].finish_reason, FinishReason::kLength);
}

TEST(Generator, RefusesWhatCannotBe) {
  const LoadedModel loaded = Load("llama");
  EXPECT_THAT(Refusal(loaded, {}), testing::HasSubstr("the prompt holds no token"));
  EXPECT_THAT(Refusal(loaded, {.prompt = {1, 53}}),
              testing::HasSubstr("token 1 of the prompt is 53, the vocabulary has 53"));
  EXPECT_THAT(Refusal(loaded, {.prompt = {-1}}), testing::HasSubstr("is -1"));
  EXPECT_THAT(Refusal(loaded, {.prompt = std::vector<int64_t>(64, 5)}),
              testing::HasSubstr("has 64 tokens, the model has 64"));
  EXPECT_THAT(Refusal(loaded, {.prompt = {5}, .max_new_tokens = 0}),
              testing::HasSubstr("max_new_tokens is 0"));
  EXPECT_THAT(Refusal(loaded, {.prompt = {5}, .sampling = {.top_p = 2}}),
              testing::HasSubstr("top_p is 2"));
}

TEST(Generator, TellsOfWeightsThatAreNotFinite) {
  LoadedModel loaded = Load("llama");
  loaded.weights.back()[0].value.fill_(std::nan(""));
  EXPECT_THAT(Refusal(loaded, {.prompt = {5}}), testing::HasSubstr("not finite"));
}

TEST(Generator, RunsInBfloat16) {
  const LoadedModel loaded = Load("llama", at::kBFloat16);
  EXPECT_EQ(Generate(loaded, RaggedRequests({})).size(), 7u);
  EXPECT_EQ(loaded.weights[0][0].value.scalar_type(), at::kBFloat16);
}

TEST(ScoreTokens, EqualsLogSoftmaxOfLogits) {
  const LoadedModel loaded = Load("llama", at::kDouble);
  const std::vector<std::vector<int64_t>> rows = {{4, 5, 6, 7}, {44}, {9, 8, 7, 30}, {9, 8}};
  const auto scores = ScoreTokens(loaded.model, loaded.weights, rows);
  ASSERT_TRUE(scores.ok()) << scores.status();
  at::NoGradGuard no_grad;
  for (size_t i = 0; i < rows.size(); ++i) {
    ASSERT_EQ((*scores)[i].size(), rows[i].size() - 1);
    const Batch batch = {
        .tokens_BT = at::tensor(rows[i], at::kLong).unsqueeze(0),
        .positions_BT = at::arange(static_cast<int64_t>(rows[i].size())).unsqueeze(0)};
    const Tensor logprobs =
        ForwardAll(loaded.model, loaded.weights, batch, {.head_mode = HeadMode::kLogits})
            .logits_BTV.log_softmax(-1);
    for (size_t j = 0; j + 1 < rows[i].size(); ++j) {
      EXPECT_NEAR((*scores)[i][j], logprobs[0][j][rows[i][j + 1]].item<double>(), 1e-12)
          << "row " << i << ", token " << j + 1;
    }
  }
}

TEST(ScoreTokens, NamesTheRow) {
  const LoadedModel loaded = Load("llama");
  const auto refusal = [&](std::vector<std::vector<int64_t>> rows) {
    return std::string(ScoreTokens(loaded.model, loaded.weights, rows).status().message());
  };
  EXPECT_THAT(refusal({{1}, {}}), testing::HasSubstr("row 1 is empty"));
  EXPECT_THAT(refusal({{1, 99}}),
              testing::HasSubstr("row 0: token 1 is 99, the vocabulary has 53"));
  EXPECT_THAT(refusal({std::vector<int64_t>(66, 5)}),
              testing::HasSubstr("row 0 has 66 tokens, the model has 64"));
  EXPECT_EQ(refusal({std::vector<int64_t>(65, 5)}), "");
}

TEST(DefaultSampling, ReadsGenerationConfigAsTransformersDoes) {
  ModelConfig config;
  EXPECT_EQ(DefaultSampling(config)->temperature, 0);
  config.generation_json = Json{{"temperature", 0.6}, {"top_p", 0.9}};
  EXPECT_EQ(DefaultSampling(config)->temperature, 0) << "without do_sample";
  (*config.generation_json)["do_sample"] = true;
  const SamplingOptions sampling = *DefaultSampling(config);
  EXPECT_EQ(sampling.temperature, 0.6);
  EXPECT_EQ(sampling.top_k, 50);
  EXPECT_EQ(sampling.top_p, 0.9);
  (*config.generation_json)["top_p"] = "much";
  EXPECT_THAT(std::string(DefaultSampling(config).status().message()),
              testing::HasSubstr("top_p is \"much\""));
}

}  // namespace
}  // namespace shoal
