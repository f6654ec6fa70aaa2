// Greedy generation of one batch of token ids, timed: what bench/generate/run.py starts.
//
//   generate_bench FOLDER PROMPTS.json DTYPE NEW_TOKENS REPEATS THREADS
//
// PROMPTS.json: {"input_ids": [[...], ...]}, one batch. Prints a line of JSON: the median seconds
// of a whole run and of one with a single new token, tokens and weights read for each, the
// machine's bandwidth, and the ids.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>

#include "core/process_memory.h"
#include "inference/loaded_model.h"
#include "kernels/matmul.h"
#include "kernels/threads.h"
#include "models/json.h"

namespace shoal {
namespace {

struct Timing {
  double median, best;
};

Timing Time(int repeats, const std::function<void()>& work) {
  std::vector<double> seconds;
  for (int i = 0; i < repeats; ++i) {
    const auto start = std::chrono::steady_clock::now();
    work();
    seconds.push_back(
        std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
  }
  std::sort(seconds.begin(), seconds.end());
  return {seconds[seconds.size() / 2], seconds[0]};
}

// Bytes of the weights that a decoding step multiplies with: all but the table of embeddings, of
// which it reads a row a sequence, unless the head shares that.
int64_t BytesReadAStep(const LoadedModel& loaded) {
  int64_t bytes = 0;
  for (size_t b = 1; b < loaded.weights.size(); ++b) {
    for (const Parameter& parameter : loaded.weights[b]) bytes += parameter.value.nbytes();
  }
  return bytes;
}

absl::Status Run(char** argv) {
  PosixFileSystem files;
  const int new_tokens = std::atoi(argv[4]), repeats = std::atoi(argv[5]);
  SetNumThreads(std::atoi(argv[6]));
  SHOAL_ASSIGN_OR_RETURN(const at::ScalarType dtype, ParseComputeDtype(argv[3]));
  SHOAL_ASSIGN_OR_RETURN(const LoadedModel loaded, LoadModelForInference(files, argv[1], dtype));
  SHOAL_ASSIGN_OR_RETURN(const Json json, ReadJsonFile(files, argv[2], int64_t{1} << 30));
  std::vector<GenerationRequest> requests;
  for (const Json& row : json["input_ids"]) {
    requests.push_back({.prompt = row.get<std::vector<int64_t>>(), .max_new_tokens = new_tokens});
  }
  Generator generator(loaded.model, loaded.weights);
  absl::Status status;
  std::vector<Generation> results;
  const auto generate = [&](int64_t count) {
    for (GenerationRequest& request : requests) request.max_new_tokens = count;
    auto made = generator.Generate(requests);
    if (made.ok())
      results = *std::move(made);
    else
      status = made.status();
  };
  generate(8);
  const Timing first = Time(repeats, [&] { generate(1); });
  const Timing whole = Time(repeats, [&] { generate(new_tokens); });
  SHOAL_RETURN_IF_ERROR(status);
  Json tokens = Json::array();
  for (const Generation& result : results) tokens.push_back(result.tokens);
  const Json out = {
      {"median_s", whole.median},
      {"best_s", whole.best},
      {"first_token_s", first.median},
      {"weight_bytes", BytesReadAStep(loaded)},
      {"read_bytes_per_s", MeasureMemoryBandwidth(GetNumThreads()).read_bytes_per_second},
      {"cache_bytes", generator.cache_bytes()},
      {"peak_rss_bytes", PeakRssBytes()},
      {"tokens", tokens}};
  std::printf("%s\n", out.dump().c_str());
  return absl::OkStatus();
}

}  // namespace
}  // namespace shoal

int main(int argc, char** argv) {
  if (argc != 7) {
    std::fprintf(stderr,
                 "usage: generate_bench FOLDER PROMPTS.json DTYPE NEW_TOKENS REPEATS THREADS\n");
    return 64;
  }
  const absl::Status status = shoal::Run(argv);
  if (!status.ok()) std::fprintf(stderr, "%s\n", std::string(status.message()).c_str());
  return status.ok() ? 0 : 1;
}
