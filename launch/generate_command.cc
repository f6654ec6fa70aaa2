#include "launch/generate_command.h"

#include <cstdio>
#include <cstdlib>
#include <iostream>
#include <iterator>
#include <limits>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/strings/str_format.h"
#include "data/tokenizer.h"
#include "inference/loaded_model.h"
#include "inference/text_stream.h"
#include "launch/device_option.h"
#include "launch/launcher.h"
#include "launch/ranks.h"

namespace shoal {
namespace {

constexpr int64_t kMaxPromptBytes = int64_t{16} << 20;
constexpr int64_t kDefaultMaxNewTokens = 128;

struct GenerateOptions {
  std::string model;
  std::string dtype = "float32";
  std::optional<std::string> prompt, prompt_file;
  std::optional<int64_t> max_new_tokens;
  std::optional<double> temperature, top_p, min_p, repetition_penalty;
  std::optional<int64_t> top_k;
  std::vector<std::string> stop_strings;
  uint64_t seed = 0;
  int64_t num_samples = 1;
  int64_t num_beams = 1, num_return_sequences = 1;
  double length_penalty = 1.0;
  BeamOptions::EarlyStopping early_stopping = BeamOptions::EarlyStopping::kNo;
  int ranks = 0;
  DeviceRequest device = DeviceRequest::kAuto;
};

absl::StatusOr<std::string> ReadPrompt(FileSystem& files, const GenerateOptions& options) {
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
absl::StatusOr<SamplingOptions> ChooseSampling(const GenerateOptions& options,
                                               const ModelConfig& config) {
  SHOAL_ASSIGN_OR_RETURN(SamplingOptions sampling, DefaultSampling(config));
  if (options.temperature) sampling.temperature = *options.temperature;
  if (options.top_k) sampling.top_k = *options.top_k;
  if (options.top_p) sampling.top_p = *options.top_p;
  if (options.min_p) sampling.min_p = *options.min_p;
  if (options.repetition_penalty) sampling.repetition_penalty = *options.repetition_penalty;
  sampling.seed = options.seed;
  if (options.num_beams > 1) {
    if (options.temperature.value_or(0) != 0) {
      return absl::InvalidArgumentError(
          "--num-beams searches and --temperature samples: leave one of them out");
    }
    sampling.temperature = 0;
  }
  const char* ignored = options.top_k             ? "--top-k"
                        : options.top_p           ? "--top-p"
                        : options.min_p           ? "--min-p"
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
int64_t MaxNewTokens(const GenerateOptions& options, const ModelConfig& config) {
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

void PrintStatistics(const GenerateOptions& options, const GenerationStatistics& statistics,
                     int64_t samples) {
  const int64_t decoded = statistics.new_tokens - samples;  // The prefill gives each sample's first
  std::string rate;
  if (decoded > 0) rate = absl::StrFormat("%.1f tokens/s", decoded / statistics.decode_seconds);
  absl::FPrintF(stderr, "%d prompt tokens in %.3f s; %d new tokens%s%s; %s\n",
                statistics.prompt_tokens, statistics.prefill_seconds, statistics.new_tokens,
                rate.empty() ? "" : ", then ", rate, options.dtype);
}

// Text by text to where one is to be seen, on the rank that prints.
struct Output {
  bool prints;
  const Tokenizer& tokenizer;
  const GenerateOptions& options;
  const std::string& prompt;

  void Show(absl::string_view text) const {
    if (prints) Print(text);
  }
  TextStream Stream(bool live) const {
    return TextStream(tokenizer, options.stop_strings,
                      live && prints ? Print : std::function<void(absl::string_view)>());
  }
};

// One sample appears as it comes; several would mix, and appear when all are done.
absl::Status Sample(const Output& output, Generator& generator, const GenerationRequest& request) {
  const bool live = output.options.num_samples == 1;
  std::vector<TextStream> streams;
  std::vector<GenerationRequest> requests(output.options.num_samples, request);
  streams.reserve(requests.size());
  for (size_t i = 0; i < requests.size(); ++i) {
    streams.push_back(output.Stream(live));
    requests[i].stream = i;
    requests[i].on_token = [&stream = streams[i]](int64_t token) { return stream.Push(token); };
  }
  if (live) output.Show(output.prompt);
  absl::StatusOr<std::vector<Generation>> results = generator.Generate(requests);
  for (size_t i = 0; i < streams.size() && results.ok(); ++i) {
    streams[i].Finish();
    if (!live)
      output.Show(absl::StrCat("--- sample ", i, "\n", output.prompt, streams[i].text(), "\n"));
  }
  if (live) output.Show("\n");
  SHOAL_RETURN_IF_ERROR(results.status());
  if ((*results)[0].finish_reason == FinishReason::kPositions && output.prints)
    absl::FPrintF(stderr, "stopped: the model has no more positions\n");
  return absl::OkStatus();
}

absl::Status SearchBeams(const Output& output, Generator& generator,
                         const GenerationRequest& request) {
  const GenerateOptions& options = output.options;
  BeamOptions beams{.num_beams = options.num_beams,
                    .num_return_sequences = options.num_return_sequences,
                    .length_penalty = options.length_penalty,
                    .early_stopping = options.early_stopping};
  const auto read = [&](std::span<const int64_t> tokens, TextStream& stream) {
    bool open = true;
    for (int64_t token : tokens) open = stream.Push(token);
    return open;
  };
  if (!options.stop_strings.empty()) {
    beams.is_complete = [&](std::span<const int64_t> tokens) {
      TextStream stream = output.Stream(/*live=*/false);
      return !read(tokens, stream);
    };
  }
  SHOAL_ASSIGN_OR_RETURN(const std::vector<BeamResult> results,
                         generator.SearchBeams(request, beams));
  for (size_t i = 0; i < results.size(); ++i) {
    TextStream stream = output.Stream(/*live=*/false);
    read(results[i].generation.tokens, stream);
    stream.Finish();
    if (results.size() > 1)
      output.Show(absl::StrFormat("--- sequence %d, score %.4f\n", i, results[i].score));
    output.Show(absl::StrCat(output.prompt, stream.text(), "\n"));
  }
  return absl::OkStatus();
}

absl::Status CheckGenerateOptions(const GenerateOptions& options) {
  if (options.prompt.has_value() == options.prompt_file.has_value()) {
    return absl::InvalidArgumentError(
        "give the prompt as --prompt TEXT or as --prompt-file FILE (- for standard input)");
  }
  if (options.num_beams == 1 && options.num_return_sequences > 1) {
    return absl::InvalidArgumentError(
        "--num-return-sequences is of beams: give --num-beams, or --num-samples to sample");
  }
  SHOAL_RETURN_IF_ERROR(CheckDeviceOption(options.device));
  return ParseComputeDtype(options.dtype).status();
}

absl::Status Generate(const GenerateOptions& options, Communicator& ranks) {
  PosixFileSystem files;
  SHOAL_ASSIGN_OR_RETURN(const at::ScalarType dtype, ParseComputeDtype(options.dtype));
  std::string prompt;
  if (ranks.rank() == 0) {
    SHOAL_ASSIGN_OR_RETURN(prompt, ReadPrompt(files, options));
  }
  prompt = BroadcastString(ranks, prompt, 0);
  SHOAL_ASSIGN_OR_RETURN(const std::string directory, FindModelFolder(files, options.model));
  SHOAL_ASSIGN_OR_RETURN(const Tokenizer tokenizer, Tokenizer::Load(directory));
  const TensorParallel tensor(ranks, /*sequence_parallel=*/false);
  SHOAL_ASSIGN_OR_RETURN(
      const LoadedModel loaded,
      LoadModelForInference(files, directory, dtype, tensor.place(), ranks.device()));
  const ModelConfig& config = loaded.model.config;

  GenerationRequest request;
  request.max_new_tokens = MaxNewTokens(options, config);
  request.eos_token_ids = config.eos_token_ids;
  SHOAL_ASSIGN_OR_RETURN(request.sampling, ChooseSampling(options, config));
  SHOAL_ASSIGN_OR_RETURN(request.prompt, EncodePrompt(tokenizer, config, prompt));

  Generator generator(loaded.model, loaded.weights,
                      {.tensor = ranks.size() > 1 ? &tensor : nullptr});
  const Output output{ranks.rank() == 0, tokenizer, options, prompt};
  SHOAL_RETURN_IF_ERROR(options.num_beams > 1 ? SearchBeams(output, generator, request)
                                              : Sample(output, generator, request));
  if (output.prints) {
    PrintStatistics(options, generator.statistics(),
                    options.num_beams > 1 ? 0 : options.num_samples);
  }
  if (!std::cout) return absl::UnavailableError("standard output could not be written");
  return absl::OkStatus();
}

absl::Status GenerateOverRanks(const GenerateOptions& options, int argc, const char* const* argv) {
  SHOAL_ASSIGN_OR_RETURN(const RankEnvironment environment,
                         ReadRankEnvironment(std::getenv, options.ranks));
  SHOAL_RETURN_IF_ERROR(HeldBack(environment, CheckGenerateOptions(options)));
  if (MustLaunch(environment, options.ranks)) std::exit(LaunchRanks(argc, argv, options.ranks));
  SHOAL_ASSIGN_OR_RETURN(const std::unique_ptr<Communicator> ranks,
                         JoinRanks(environment, {}, options.device));
  absl::Status status;
  try {
    status = Generate(options, *ranks);
  } catch (const CommError& error) {
    status = absl::UnavailableError(error.what());
  }
  EndJobOnError(*ranks, status, StatusToExitCode(status));
  return status;
}

}  // namespace

void AddGenerateCommand(CommandLine& line, int argc, const char* const* argv) {
  auto options = std::make_shared<GenerateOptions>();
  CLI::App* command =
      line.Add("generate", "Continue a text with a model, printing it as it comes",
               "shoal generate runs/quickstart/export --prompt \"And the king said unto\"\n"
               "shoal generate FOLDER --prompt-file - --temperature 0.8 --top-p 0.95 --num-samples "
               "4 < prompt.txt\n"
               "shoal generate FOLDER -n 2 --prompt \"Once\" --num-beams 4 --length-penalty 0.8",
               [options, argc, argv] { return GenerateOverRanks(*options, argc, argv); });
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
  command->add_option("--min-p", options->min_p,
                      "Sample among tokens at least this share as likely as the likeliest");
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
  command->add_option("--num-beams", options->num_beams, "Above 1: beam search")
      ->capture_default_str()
      ->check(CLI::Range(1, 1024));
  command
      ->add_option("--num-return-sequences", options->num_return_sequences,
                   "Of beam search: so many of the best beams")
      ->capture_default_str()
      ->check(CLI::Range(1, 1024));
  command
      ->add_option("--length-penalty", options->length_penalty,
                   "Of beam search: scores are divided by the number of tokens to this power")
      ->capture_default_str();
  static const std::map<std::string, BeamOptions::EarlyStopping> kEarlyStopping = {
      {"no", BeamOptions::EarlyStopping::kNo},
      {"yes", BeamOptions::EarlyStopping::kYes},
      {"never", BeamOptions::EarlyStopping::kNever}};
  command
      ->add_option("--early-stopping", options->early_stopping,
                   "Of beam search. yes: end with as many finished sequences as beams; no: once no "
                   "beam seems able to improve on them; never: once none can")
      ->transform(CLI::CheckedTransformer(kEarlyStopping).description(""));
  command
      ->add_option("-n,--ranks", options->ranks,
                   "Ranks that share each matrix, started on this host (default: 1, or those that "
                   "mpirun or srun started)")
      ->check(CLI::PositiveNumber);
  command->add_option("--dtype", options->dtype, "float32, bfloat16, float16 or float64")
      ->capture_default_str();
  AddDeviceOption(command, options->device);
}

}  // namespace shoal
