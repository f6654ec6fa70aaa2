#include "launch/generate_command.h"

#include <cstdio>
#include <iostream>
#include <iterator>
#include <limits>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/strings/str_format.h"
#include "data/tokenizer.h"
#include "inference/loaded_model.h"
#include "inference/text_stream.h"

namespace shoal {
namespace {

constexpr int64_t kMaxPromptBytes = int64_t{16} << 20;
constexpr int64_t kDefaultMaxNewTokens = 128;

struct Options {
  std::string model;
  std::string dtype = "float32";
  std::optional<std::string> prompt, prompt_file;
  std::optional<int64_t> max_new_tokens;
  std::optional<double> temperature, top_p, repetition_penalty;
  std::optional<int64_t> top_k;
  std::vector<std::string> stop_strings;
  uint64_t seed = 0;
  int64_t num_samples = 1;
};

absl::StatusOr<std::string> ReadPrompt(FileSystem& files, const Options& options) {
  if (options.prompt) return *options.prompt;
  if (*options.prompt_file != "-") return ReadFile(files, *options.prompt_file, kMaxPromptBytes);
  std::string text;
  for (char buffer[65536]; std::cin.read(buffer, sizeof buffer), std::cin.gcount() > 0;) {
    text.append(buffer, std::cin.gcount());
    if (static_cast<int64_t>(text.size()) > kMaxPromptBytes) {
      return absl::InvalidArgumentError(
          absl::StrCat("the prompt on standard input is longer than ", kMaxPromptBytes, " bytes"));
    }
  }
  return text;
}

// generation_config.json's wishes, then the command line's. What greedy decoding would ignore is
// refused.
absl::StatusOr<SamplingOptions> ChooseSampling(const Options& options, const ModelConfig& config) {
  SHOAL_ASSIGN_OR_RETURN(SamplingOptions sampling, DefaultSampling(config));
  if (options.temperature) sampling.temperature = *options.temperature;
  if (options.top_k) sampling.top_k = *options.top_k;
  if (options.top_p) sampling.top_p = *options.top_p;
  if (options.repetition_penalty) sampling.repetition_penalty = *options.repetition_penalty;
  sampling.seed = options.seed;
  const char* ignored = options.top_k             ? "--top-k"
                        : options.top_p           ? "--top-p"
                        : options.num_samples > 1 ? "--num-samples"
                                                  : nullptr;
  if (sampling.temperature == 0 && ignored) {
    return absl::InvalidArgumentError(absl::StrCat(
        ignored,
        " changes nothing under greedy decoding (temperature 0): give a --temperature above 0"));
  }
  SHOAL_RETURN_IF_ERROR(CheckSamplingOptions(sampling));
  return sampling;
}

absl::StatusOr<std::vector<int64_t>> EncodePrompt(const Tokenizer& tokenizer,
                                                  const ModelConfig& config,
                                                  const std::string& text) {
  SHOAL_ASSIGN_OR_RETURN(const std::vector<int32_t> ids, tokenizer.Encode(text));
  if (!ids.empty()) return std::vector<int64_t>(ids.begin(), ids.end());
  if (config.bos_token_id) return std::vector<int64_t>{*config.bos_token_id};
  return absl::InvalidArgumentError(
      "the prompt is empty, and the model names no bos_token_id to begin with");
}

// generation_config.json's max_new_tokens, or kDefaultMaxNewTokens.
int64_t MaxNewTokens(const Options& options, const ModelConfig& config) {
  if (options.max_new_tokens) return *options.max_new_tokens;
  if (config.generation_json && config.generation_json->is_object()) {
    const auto entry = config.generation_json->find("max_new_tokens");
    if (entry != config.generation_json->end() && entry->is_number_unsigned() &&
        entry->get<uint64_t>() > 0 &&
        entry->get<uint64_t>() <= std::numeric_limits<int32_t>::max()) {
      return entry->get<int64_t>();
    }
  }
  return kDefaultMaxNewTokens;
}

void Print(absl::string_view text) { std::cout.write(text.data(), text.size()).flush(); }

void PrintStatistics(const Options& options, const GenerationStatistics& statistics,
                     int64_t samples) {
  const int64_t decoded = statistics.new_tokens - samples;  // The prefill gives each sample's first
  std::string rate;
  if (decoded > 0) rate = absl::StrFormat("%.1f tokens/s", decoded / statistics.decode_seconds);
  absl::FPrintF(stderr, "%d prompt tokens in %.3f s; %d new tokens%s%s; %s\n",
                statistics.prompt_tokens, statistics.prefill_seconds, statistics.new_tokens,
                rate.empty() ? "" : ", then ", rate, options.dtype);
}

absl::Status Generate(const Options& options) {
  if (options.prompt.has_value() == options.prompt_file.has_value()) {
    return absl::InvalidArgumentError(
        "give the prompt as --prompt TEXT or as --prompt-file FILE (- for standard input)");
  }
  PosixFileSystem files;
  SHOAL_ASSIGN_OR_RETURN(const at::ScalarType dtype, ParseComputeDtype(options.dtype));
  SHOAL_ASSIGN_OR_RETURN(const std::string prompt, ReadPrompt(files, options));
  SHOAL_ASSIGN_OR_RETURN(const std::string directory, FindModelFolder(files, options.model));
  SHOAL_ASSIGN_OR_RETURN(const Tokenizer tokenizer, Tokenizer::Load(directory));
  SHOAL_ASSIGN_OR_RETURN(const LoadedModel loaded, LoadModelForInference(files, directory, dtype));
  const ModelConfig& config = loaded.model.config;

  GenerationRequest request;
  request.max_new_tokens = MaxNewTokens(options, config);
  request.eos_token_ids = config.eos_token_ids;
  SHOAL_ASSIGN_OR_RETURN(request.sampling, ChooseSampling(options, config));
  SHOAL_ASSIGN_OR_RETURN(request.prompt, EncodePrompt(tokenizer, config, prompt));

  // One sample appears as it comes; several would mix, and appear when all are done.
  const bool live = options.num_samples == 1;
  std::vector<TextStream> streams;
  std::vector<GenerationRequest> requests(options.num_samples, request);
  streams.reserve(requests.size());
  for (size_t i = 0; i < requests.size(); ++i) {
    streams.emplace_back(tokenizer, options.stop_strings,
                         live ? Print : std::function<void(absl::string_view)>());
    requests[i].stream = i;
    requests[i].on_token = [&stream = streams[i]](int64_t token) { return stream.Push(token); };
  }

  Generator generator(loaded.model, loaded.weights);
  if (live) Print(prompt);
  absl::StatusOr<std::vector<Generation>> results = generator.Generate(requests);
  for (size_t i = 0; i < streams.size() && results.ok(); ++i) {
    streams[i].Finish();
    if (!live) Print(absl::StrCat("--- sample ", i, "\n", prompt, streams[i].text(), "\n"));
  }
  if (live) Print("\n");
  SHOAL_RETURN_IF_ERROR(results.status());
  if ((*results)[0].finish_reason == FinishReason::kPositions) {
    absl::FPrintF(stderr, "stopped: the model has %d positions\n", config.max_positions);
  }
  PrintStatistics(options, generator.statistics(), options.num_samples);
  if (!std::cout) return absl::UnavailableError("standard output could not be written");
  return absl::OkStatus();
}

}  // namespace

void AddGenerateCommand(CommandLine& line) {
  auto options = std::make_shared<Options>();
  CLI::App* command =
      line.Add("generate", "Continue a text with a model, printing it as it comes",
               "shoal generate runs/quickstart/export --prompt \"And the king said unto\"\n"
               "shoal generate FOLDER --prompt-file - --temperature 0.8 --top-p 0.95 --num-samples "
               "4 < prompt.txt",
               [options] { return Generate(*options); });
  command
      ->add_option("model", options->model,
                   "A Hugging Face folder, or a run's folder (its export is taken)")
      ->required();
  command->add_option("--prompt", options->prompt, "The text to continue");
  command->add_option("--prompt-file", options->prompt_file,
                      "A file that holds it; - for standard input");
  command->add_option("--max-new-tokens", options->max_new_tokens,
                      "Tokens at most. Default: generation_config.json's, else 128");
  command->add_option(
      "--temperature", options->temperature,
      "0: the most likely token each time. Above: sample. Default: as generation_config.json asks "
      "(do_sample, temperature, top_k, top_p), else 0");
  command->add_option("--top-k", options->top_k, "Sample among the k most likely tokens; 0: all");
  command->add_option("--top-p", options->top_p,
                      "Sample among the most likely tokens that hold this share");
  command->add_option("--repetition-penalty", options->repetition_penalty,
                      "Above 1: avoid tokens already there");
  command
      ->add_option("--stop", options->stop_strings,
                   "End before this text; may be given several times")
      ->allow_extra_args(false);
  command->add_option("--seed", options->seed, "Of the samples")->capture_default_str();
  command->add_option("--num-samples", options->num_samples, "Continuations of the prompt")
      ->capture_default_str()
      ->check(CLI::Range(1, 100'000));
  command->add_option("--dtype", options->dtype, "float32, bfloat16 or float64")
      ->capture_default_str();
}

}  // namespace shoal
