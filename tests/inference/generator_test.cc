#include "inference/generator.h"

#include <fstream>

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "inference/loaded_model.h"
#include "inference/score.h"
#include "kernels/threads.h"

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
  for (int64_t i = 0; i < 11; ++i) {
    GenerationRequest request = {.max_new_tokens = 3 + i * 5 % 17,
                                 .sampling = sampling,
                                 .stream = static_cast<uint64_t>(i),
                                 .want_logprobs = true};
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

// To the last bit, which log-probabilities show: continuous batches of any size, rows that join and
// leave, prompts that are shared, threads.
TEST(Generator, ARequestYieldsTheSameInAnyCompany) {
  for (const char* name : {"llama", "gpt2"}) {
    for (at::ScalarType dtype : {at::kFloat, at::kBFloat16}) {
      const LoadedModel loaded = Load(name, dtype);
      for (double temperature : {0.0, 1.0}) {
        const auto requests = RaggedRequests({.temperature = temperature, .top_k = 20, .seed = 5});
        const std::vector<Generation> together = Generate(loaded, requests);
        const std::vector<Generation> in_threes = Generate(loaded, requests, 3);
        SetNumThreads(2);
        const std::vector<Generation> in_fives = Generate(loaded, requests, 5);
        SetNumThreads(1);
        for (size_t i = 0; i < requests.size(); ++i) {
          SCOPED_TRACE(absl::StrCat(name, ", temperature ", temperature, ", request ", i));
          const Generation alone = Generate(loaded, {requests[i]})[0];
          for (const auto* results : {&together, &in_threes, &in_fives}) {
            EXPECT_EQ((*results)[i].tokens, alone.tokens);
            EXPECT_EQ((*results)[i].logprobs, alone.logprobs);
          }
          EXPECT_EQ(alone.tokens.size(), static_cast<size_t>(requests[i].max_new_tokens));
        }
      }
    }
  }
}

TEST(Generator, ReadsSharedPromptsOnceAndFreesItsCache) {
  const LoadedModel loaded = Load("llama");
  std::vector<GenerationRequest> requests;
  for (uint64_t i = 0; i < 12; ++i) {
    requests.push_back({.prompt = i % 4 == 3 ? std::vector<int64_t>{8, 9}
                                             : std::vector<int64_t>{4, 5, 6, 7, 8, 9, 10},
                        .max_new_tokens = 20,
                        .sampling = {.temperature = 1.0, .seed = 3},
                        .stream = i});
  }
  Generator generator(loaded.model, loaded.weights, {.max_batch_size = 5});
  const auto results = *generator.Generate(requests);
  EXPECT_EQ(generator.statistics().prompt_tokens, 7 + 2);
  EXPECT_EQ(generator.statistics().new_tokens, 12 * 20);
  for (size_t i = 0; i < requests.size(); ++i)
    EXPECT_EQ(results[i].tokens, Generate(loaded, {requests[i]})[0].tokens) << i;
  const int64_t bytes = generator.cache_bytes();
  ASSERT_TRUE(generator.Generate(requests).ok());
  EXPECT_EQ(generator.cache_bytes(), bytes) << "blocks of the first call were not used again";
}

TEST(Generator, LogprobsAreThoseOfScore) {
  for (at::ScalarType dtype : {at::kFloat, at::kDouble}) {
    const LoadedModel loaded = Load("llama", dtype);
    auto requests = RaggedRequests({.temperature = 0.7, .top_p = 0.9, .repetition_penalty = 1.2});
    const std::vector<Generation> results = Generate(loaded, requests);
    for (size_t i = 0; i < requests.size(); ++i) {
      std::vector<int64_t> row = requests[i].prompt;
      row.insert(row.end(), results[i].tokens.begin(), results[i].tokens.end());
      const auto scores = (*ScoreTokens(loaded.model, loaded.weights, std::span(&row, 1)))[0];
      ASSERT_EQ(results[i].logprobs.size(), results[i].tokens.size());
      for (size_t t = 0; t < results[i].tokens.size(); ++t) {
        EXPECT_NEAR(results[i].logprobs[t], scores[requests[i].prompt.size() - 1 + t],
                    dtype == at::kDouble ? 1e-12 : 1e-5);
      }
    }
  }
}

// Tokens and scores of Python transformers' generate() (tests/fixtures/make_beam_fixtures.py).
TEST(Generator, BeamSearchEqualsTransformers) {
  std::ifstream file("tests/fixtures/beams.json");
  ASSERT_TRUE(file.is_open());
  const auto fixture = nlohmann::json::parse(file);
  using EarlyStopping = BeamOptions::EarlyStopping;
  for (const auto& [name, cases] : fixture.items()) {
    const LoadedModel loaded = Load(name);
    Generator generator(loaded.model, loaded.weights);
    for (const auto& entry : cases) {
      SCOPED_TRACE(absl::StrCat(name, " ", entry.dump()));
      const auto& early = entry["early_stopping"];
      const GenerationRequest request{
          .prompt = entry["prompt"],
          .max_new_tokens = 12,
          .sampling = {.repetition_penalty = entry["repetition_penalty"]},
          .eos_token_ids = entry["eos"]};
      const auto results = generator.SearchBeams(
          request, {.num_beams = entry["num_beams"],
                    .num_return_sequences = entry["num_return_sequences"],
                    .length_penalty = entry["length_penalty"],
                    .early_stopping = early.is_string()   ? EarlyStopping::kNever
                                      : early.get<bool>() ? EarlyStopping::kYes
                                                          : EarlyStopping::kNo});
      ASSERT_TRUE(results.ok()) << results.status();
      ASSERT_EQ(results->size(), entry["tokens"].size());
      for (size_t i = 0; i < results->size(); ++i) {
        EXPECT_EQ((*results)[i].generation.tokens, entry["tokens"][i].get<std::vector<int64_t>>())
            << "sequence " << i;
        EXPECT_NEAR((*results)[i].score, entry["scores"][i].get<double>(), 2e-4);
      }
    }
  }
}

TEST(Generator, BeamsRefuseWhatCannotBe) {
  const LoadedModel loaded = Load("llama");
  Generator generator(loaded.model, loaded.weights);
  const auto refusal = [&](const GenerationRequest& request, const BeamOptions& options) {
    return std::string(generator.SearchBeams(request, options).status().message());
  };
  EXPECT_THAT(refusal({.prompt = {5}}, {.num_beams = 0}), testing::HasSubstr("num_beams is 0"));
  EXPECT_THAT(
      refusal({.prompt = {5}}, {.num_beams = 2, .num_return_sequences = 3}),
      testing::HasSubstr("num_return_sequences is 3, must be in [1, num_beams], which is 2"));
  EXPECT_THAT(refusal({.prompt = {5}, .sampling = {.temperature = 1}}, {.num_beams = 2}),
              testing::HasSubstr("temperature is 1"));
  EXPECT_THAT(refusal({}, {.num_beams = 2}), testing::HasSubstr("the prompt holds no token"));
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
  EXPECT_EQ(Generate(loaded, RaggedRequests({})).size(), 11u);
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
