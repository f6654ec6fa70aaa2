// Generation, beam search, scoring and rollouts on a device: the tokens and log-probabilities of
// the host. Runs on the fake device, where host code that touches device memory dies, and in
// build/cuda on a GPU.
#include <gtest/gtest.h>

#include "inference/loaded_model.h"
#include "inference/score.h"
#include "tests/fake_device/device_under_training.h"
#include "tests/inference/rollout_job.h"

namespace shoal {
namespace {

constexpr const char* kModels[] = {"llama", "llama_tied", "gpt2", "mixtral", "dots1", "qwen3"};

LoadedModel LoadTo(at::Device device, const std::string& name, at::ScalarType dtype) {
  PosixFileSystem files;
  auto loaded = LoadModelForInference(files, "tests/fixtures/models/" + name, dtype, {}, device);
  SHOAL_CHECK(loaded.ok()) << loaded.status();
  return *std::move(loaded);
}

// Prompts of many lengths, some of them shared, some long enough for attention of their own; rows
// join and leave.
std::vector<GenerationRequest> RaggedRequests(const SamplingOptions& sampling) {
  std::vector<GenerationRequest> requests;
  for (int64_t i = 0; i < 13; ++i) {
    GenerationRequest request{.max_new_tokens = 3 + i * 5 % 17,
                              .sampling = sampling,
                              .stream = static_cast<uint64_t>(i),
                              .want_logprobs = true};
    const int64_t length = i % 4 == 3 ? 18 : i == 12 ? 21 : 1 + i * 5 % 7;
    for (int64_t j = 0; j < length; ++j) request.prompt.push_back(4 + (length * 13 + j * 7) % 30);
    requests.push_back(request);
  }
  return requests;
}

std::vector<Generation> GenerateAll(const LoadedModel& loaded,
                                    const std::vector<GenerationRequest>& requests,
                                    int64_t max_batch_size) {
  Generator generator(loaded.model, loaded.weights, {.max_batch_size = max_batch_size});
  auto results = generator.Generate(requests);
  SHOAL_CHECK(results.ok()) << results.status();
  return *std::move(results);
}

void ExpectSameGenerations(const std::vector<Generation>& got, const std::vector<Generation>& want,
                           double tolerance) {
  ASSERT_EQ(got.size(), want.size());
  for (size_t i = 0; i < want.size(); ++i) {
    SCOPED_TRACE(testing::Message() << "request " << i);
    ASSERT_EQ(got[i].tokens, want[i].tokens);
    EXPECT_EQ(got[i].finish_reason, want[i].finish_reason);
    ASSERT_EQ(got[i].logprobs.size(), want[i].logprobs.size());
    for (size_t t = 0; t < want[i].logprobs.size(); ++t)
      EXPECT_NEAR(got[i].logprobs[t], want[i].logprobs[t], tolerance) << "token " << t;
  }
}

class DeviceGeneration : public testing::Test {
 protected:
  void SetUp() override {
    if (DeviceTypeUnderTest() == c10::kCPU) GTEST_SKIP() << "this machine has no GPU";
    calls_ = DeviceCalls();
  }
  void TearDown() override {
    if (!IsSkipped()) {
      EXPECT_GT(DeviceCalls() - calls_, 100);
    }
  }
  static at::Device device() { return at::Device(DeviceTypeUnderTest(), 0); }

 private:
  size_t calls_ = 0;
};

TEST_F(DeviceGeneration, TokensOfTheHostInFloat64) {
  for (const char* name : kModels) {
    const LoadedModel host = LoadTo(at::kCPU, name, at::kDouble),
                      there = LoadTo(device(), name, at::kDouble);
    for (const SamplingOptions& sampling : {SamplingOptions{}, SamplingOptions{.temperature = 0.8,
                                                               .top_k = 20,
                                                               .top_p = 0.9,
                                                               .repetition_penalty = 1.2,
                                                               .seed = 5}}) {
      const auto requests = RaggedRequests(sampling);
      const std::vector<Generation> want = GenerateAll(host, requests, 32);
      for (const int64_t max_batch_size : {4, 32}) {
        SCOPED_TRACE(testing::Message() << name << ", temperature " << sampling.temperature
                                        << ", batches of " << max_batch_size);
        ExpectSameGenerations(GenerateAll(there, requests, max_batch_size), want, 1e-10);
      }
    }
  }
}

// With the CUDA kernels that the emulator runs and with plain operators.
TEST_F(DeviceGeneration, TokensOfTheHostInFloat32) {
  for (const bool kernels : {false, true}) {
    const KernelsOfDevice use(kernels);
    for (const char* name : {"llama", "gpt2", "dots1"}) {
      SCOPED_TRACE(testing::Message() << name << (kernels ? ", our kernels" : ", plain operators"));
      const auto requests = RaggedRequests({.temperature = 0.7, .seed = 3});
      ExpectSameGenerations(GenerateAll(LoadTo(device(), name, at::kFloat), requests, 5),
                            GenerateAll(LoadTo(at::kCPU, name, at::kFloat), requests, 5), 1e-4);
    }
  }
}

// Whatever tokens rounding leads to, their log-probabilities are what float64 gives them.
TEST_F(DeviceGeneration, HalfPrecision) {
  const KernelsOfDevice use(true);
  for (const auto& [dtype, tolerance] : {std::pair(at::kBFloat16, 0.15), {at::kHalf, 0.02}}) {
    const auto requests = RaggedRequests({});
    const std::vector<Generation> got = GenerateAll(LoadTo(device(), "llama", dtype), requests, 32);
    const LoadedModel exact = LoadTo(at::kCPU, "llama", at::kDouble);
    for (size_t i = 0; i < requests.size(); ++i) {
      std::vector<int64_t> row = requests[i].prompt;
      row.insert(row.end(), got[i].tokens.begin(), got[i].tokens.end());
      const auto want = (*ScoreTokens(exact.model, exact.weights, std::span(&row, 1)))[0];
      for (size_t t = 0; t < got[i].tokens.size(); ++t)
        EXPECT_NEAR(got[i].logprobs[t], want[requests[i].prompt.size() - 1 + t], tolerance);
    }
  }
}

TEST_F(DeviceGeneration, BeamsOfTheHost) {
  for (const bool kernels : {false, true}) {
    const KernelsOfDevice use(kernels);
    const at::ScalarType dtype = kernels ? at::kFloat : at::kDouble;
    for (const char* name : {"llama", "gpt2"}) {
      const LoadedModel host = LoadTo(at::kCPU, name, dtype), there = LoadTo(device(), name, dtype);
      for (const int64_t num_beams : {2, 5}) {
        const GenerationRequest request{.prompt = {5, 9, 30, 4, 18, 7, 6},
                                        .max_new_tokens = 12,
                                        .sampling = {.repetition_penalty = 1.1},
                                        .eos_token_ids = {30}};
        const BeamOptions options{
            .num_beams = num_beams, .num_return_sequences = 2, .length_penalty = 0.8};
        Generator on_host(host.model, host.weights), on_device(there.model, there.weights);
        const auto want = on_host.SearchBeams(request, options),
                   got = on_device.SearchBeams(request, options);
        ASSERT_TRUE(want.ok() && got.ok()) << got.status();
        ASSERT_EQ(got->size(), want->size());
        for (size_t i = 0; i < want->size(); ++i) {
          EXPECT_EQ((*got)[i].generation.tokens, (*want)[i].generation.tokens) << name;
          EXPECT_NEAR((*got)[i].score, (*want)[i].score, 1e-4);
        }
      }
    }
  }
}

TEST_F(DeviceGeneration, ScoresOfTheHost) {
  std::vector<std::vector<int64_t>> rows;
  for (const GenerationRequest& request : RaggedRequests({})) rows.push_back(request.prompt);
  for (const auto& [dtype, kernels, tolerance] : {std::tuple(at::kDouble, false, 1e-10),
                                                  {at::kFloat, false, 1e-5},
                                                  {at::kFloat, true, 1e-5}}) {
    const KernelsOfDevice use(kernels);
    for (const char* name : kModels) {
      const LoadedModel host = LoadTo(at::kCPU, name, dtype), there = LoadTo(device(), name, dtype);
      const auto want = ScoreTokens(host.model, host.weights, rows),
                 got = ScoreTokens(there.model, there.weights, rows, {.max_batch_tokens = 40});
      ASSERT_TRUE(want.ok() && got.ok()) << got.status();
      for (size_t i = 0; i < rows.size(); ++i) {
        ASSERT_EQ((*got)[i].size(), (*want)[i].size());
        for (size_t t = 0; t < (*want)[i].size(); ++t)
          EXPECT_NEAR((*got)[i][t], (*want)[i][t], tolerance) << name << ", row " << i;
      }
    }
  }
}

// Blocks are copied to be written where prompts are shared, and are used again.
TEST_F(DeviceGeneration, FreesItsCache) {
  const LoadedModel there = LoadTo(device(), "llama", at::kFloat);
  std::vector<GenerationRequest> requests;
  for (uint64_t i = 0; i < 12; ++i) {
    requests.push_back({.prompt = {4, 5, 6, 7, 8, 9, 10},
                        .max_new_tokens = 20,
                        .sampling = {.temperature = 1.0, .seed = 3},
                        .stream = i});
  }
  Generator generator(there.model, there.weights, {.max_batch_size = 5});
  const auto results = *generator.Generate(requests);
  EXPECT_EQ(generator.statistics().prompt_tokens, 7);
  for (size_t i = 0; i < requests.size(); ++i)
    EXPECT_EQ(results[i].tokens, GenerateAll(there, {requests[i]}, 1)[0].tokens) << i;
  const int64_t bytes = generator.cache_bytes();
  ASSERT_TRUE(generator.Generate(requests).ok());
  EXPECT_EQ(generator.cache_bytes(), bytes);
}

TEST_F(DeviceGeneration, RolloutsOfTheHost) {
  using Layout = GatheredWeights::Layout;
  for (const char* model : {"llama", "llama-tied", "gpt2", "dots1"}) {
    const RolloutOutcome want = RunRollout({.model = model}, Layout::kWhole);
    const bool tensor = std::string(model) != "gpt2";  // Three heads
    std::vector<TrainingJob> jobs = {{.ranks = 1}, {.ranks = 2, .stage = 3}};
    if (tensor) jobs.push_back({.ranks = 4, .tensor = 2, .stage = 3});
    if (tensor) jobs.push_back({.ranks = 2, .tensor = 2, .stage = 1});
    jobs.push_back({.ranks = 4, .pipeline = 2, .stage = 2, .micro_batches = 2});
    for (TrainingJob& job : jobs) {
      job.model = model;
      job.device = DeviceTypeUnderTest();
      for (const Layout layout : {Layout::kWhole, Layout::kTensor}) {
        if (layout == Layout::kTensor && job.tensor == 1) continue;
        ExpectSameRollout(
            RunRollout(job, layout), want,
            absl::StrCat(Describe(job), layout == Layout::kWhole ? ", whole" : ", tensor"));
      }
    }
  }
}

TEST_F(DeviceGeneration, HashesOfTheHost) {
  for (const at::ScalarType dtype : {at::kDouble, at::kFloat, at::kBFloat16, at::kHalf}) {
    const Tensor x = at::randn({1000}).to(dtype);
    const Tensor there = x.to(device());
    EXPECT_EQ(HashElements("w", 77, there), HashElements("w", 77, x)) << dtype;
    WeightHash parts;
    parts.Add("w", 0, there.narrow(0, 0, 333));
    parts.Add("w", 333, x.narrow(0, 333, 667));
    EXPECT_EQ(parts.Total(), HashElements("w", 0, x)) << dtype;
  }
}

}  // namespace
}  // namespace shoal
