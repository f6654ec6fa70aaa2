#include "launch/chat_command.h"

#include <unistd.h>

#include <cstdio>
#include <iostream>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/str_format.h"
#include "data/tokenizer.h"
#include "inference/chat_template.h"
#include "inference/loaded_model.h"
#include "inference/text_stream.h"
#include "launch/device_option.h"

namespace shoal {
namespace {

struct ChatOptions {
  std::string model;
  std::string dtype = "float32";
  std::string system;
  std::optional<std::string> turn_start, turn_end;
  std::optional<double> temperature;
  int64_t max_new_tokens = 512;
  uint64_t seed = 0;
  DeviceRequest device = DeviceRequest::kAuto;
};

constexpr char kHelp[] = "/reset begins anew, /quit or the end of input ends\n";

absl::StatusOr<ChatTemplate> ChooseTemplate(FileSystem& files, const ChatOptions& options,
                                            const std::string& directory) {
  if (options.turn_start || options.turn_end) {
    if (!options.turn_start) {
      return absl::InvalidArgumentError("--turn-end needs --turn-start, what a turn begins with");
    }
    return ChatTemplate::Plain(*options.turn_start, options.turn_end.value_or(""));
  }
  SHOAL_ASSIGN_OR_RETURN(std::optional<ChatTemplate> chat, LoadChatTemplate(files, directory));
  if (chat) return *std::move(chat);
  return absl::NotFoundError(absl::StrCat(
      directory,
      " has no chat template (chat_template.jinja, or chat_template in tokenizer_config.json): say "
      "how turns begin and end, as in --turn-start $'<|im_start|>{role}\\n' --turn-end "
      "$'<|im_end|>\\n'"));
}

// One conversation over standard input and output.
class Conversation {
 public:
  Conversation(const ChatOptions& options, const LoadedModel& loaded, const Tokenizer& tokenizer,
               const ChatTemplate& chat, const SamplingOptions& sampling)
      : options_(options),
        loaded_(loaded),
        tokenizer_(tokenizer),
        chat_(chat),
        sampling_(sampling),
        eos_token_ids_(loaded.model.config.eos_token_ids),
        generator_(loaded.model, loaded.weights) {
    Reset();
  }

  // A plain template's turns end with `text`, which may be a special token's.
  absl::Status EndTurnsAt(const std::string& text) {
    const std::string bare(absl::StripAsciiWhitespace(text));
    if (bare.empty()) {
      if (!text.empty()) stop_strings_.push_back(text);
      return absl::OkStatus();
    }
    SHOAL_ASSIGN_OR_RETURN(const std::vector<int32_t> ids,
                           tokenizer_.Encode(bare, {.add_special_tokens = false}));
    if (ids.size() == 1 && tokenizer_.IsSpecial(ids[0]))
      eos_token_ids_.push_back(ids[0]);
    else
      stop_strings_.push_back(bare);
    return absl::OkStatus();
  }

  absl::Status Run() {
    const bool terminal = isatty(STDIN_FILENO) == 1;
    if (terminal) std::cerr << kHelp;
    for (std::string line; Prompt(terminal), std::getline(std::cin, line);) {
      const absl::string_view text = absl::StripAsciiWhitespace(line);
      if (text.empty()) continue;
      if (text == "/quit") break;
      if (text == "/reset") {
        Reset();
        continue;
      }
      messages_.push_back({"user", std::string(text)});
      const absl::Status status = Answer();
      if (!absl::IsInvalidArgument(status)) {
        SHOAL_RETURN_IF_ERROR(status);
        continue;
      }
      std::cerr << "shoal: " << status.message() << " (the last line was left out)\n";
      messages_.pop_back();
    }
    if (!std::cout) return absl::UnavailableError("standard output could not be written");
    return absl::OkStatus();
  }

 private:
  void Reset() {
    messages_.clear();
    if (!options_.system.empty()) messages_.push_back({"system", options_.system});
  }

  static void Prompt(bool terminal) {
    if (terminal) std::cerr << "> ";
  }

  absl::Status Answer() {
    SHOAL_ASSIGN_OR_RETURN(const std::string text, chat_.Render(messages_));
    // The template says where special tokens stand.
    SHOAL_ASSIGN_OR_RETURN(const std::vector<int32_t> ids,
                           tokenizer_.Encode(text, {.add_special_tokens = false}));
    TextStream stream(tokenizer_, stop_strings_, [](absl::string_view piece) {
      std::cout.write(piece.data(), piece.size()).flush();
    });
    const GenerationRequest request{.prompt = {ids.begin(), ids.end()},
                                    .max_new_tokens = options_.max_new_tokens,
                                    .sampling = sampling_,
                                    .stream = static_cast<uint64_t>(messages_.size()),
                                    .eos_token_ids = eos_token_ids_,
                                    .on_token = [&](int64_t token) { return stream.Push(token); }};
    SHOAL_ASSIGN_OR_RETURN(const std::vector<Generation> results,
                           generator_.Generate(std::span(&request, 1)));
    stream.Finish();
    std::cout << std::endl;
    messages_.push_back({"assistant", stream.text()});
    if (results[0].finish_reason == FinishReason::kPositions) {
      absl::FPrintF(stderr, "the conversation fills the model's %d positions: /reset begins anew\n",
                    loaded_.model.config.max_positions);
    }
    return absl::OkStatus();
  }

  const ChatOptions& options_;
  const LoadedModel& loaded_;
  const Tokenizer& tokenizer_;
  const ChatTemplate& chat_;
  const SamplingOptions sampling_;
  std::vector<int64_t> eos_token_ids_;
  std::vector<std::string> stop_strings_;
  Generator generator_;
  std::vector<ChatMessage> messages_;
};

absl::Status Chat(const ChatOptions& options) {
  PosixFileSystem files;
  SHOAL_ASSIGN_OR_RETURN(const at::ScalarType dtype, ParseComputeDtype(options.dtype));
  SHOAL_ASSIGN_OR_RETURN(const std::string directory, FindModelFolder(files, options.model));
  SHOAL_ASSIGN_OR_RETURN(const ChatTemplate chat, ChooseTemplate(files, options, directory));
  SHOAL_ASSIGN_OR_RETURN(const Tokenizer tokenizer, Tokenizer::Load(directory));
  SHOAL_ASSIGN_OR_RETURN(const at::Device device, DeviceOfOption(options.device));
  SHOAL_ASSIGN_OR_RETURN(const LoadedModel loaded,
                         LoadModelForInference(files, directory, dtype, {}, device));
  SHOAL_ASSIGN_OR_RETURN(SamplingOptions sampling, DefaultSampling(loaded.model.config));
  if (options.temperature) sampling.temperature = *options.temperature;
  sampling.seed = options.seed;
  SHOAL_RETURN_IF_ERROR(CheckSamplingOptions(sampling));
  Conversation conversation(options, loaded, tokenizer, chat, sampling);
  if (options.turn_end) SHOAL_RETURN_IF_ERROR(conversation.EndTurnsAt(*options.turn_end));
  return conversation.Run();
}

}  // namespace

void AddChatCommand(CommandLine& line) {
  auto options = std::make_shared<ChatOptions>();
  CLI::App* command = line.Add(
      "chat", "Talk with a model: a line a turn, answers printed as they come",
      "shoal chat FOLDER --system \"Be brief.\"\n"
      "shoal chat FOLDER --turn-start $'<|im_start|>{role}\\n' --turn-end $'<|im_end|>\\n'",
      [options] { return Chat(*options); });
  command
      ->add_option("model", options->model,
                   "A Hugging Face folder, or a run's folder (its export is taken). Its chat "
                   "template makes the prompts")
      ->required();
  command->add_option("--system", options->system, "What the system says first");
  command->add_option("--turn-start", options->turn_start,
                      "In place of the folder's template: what a turn begins with; {role} stands "
                      "for who speaks");
  command->add_option("--turn-end", options->turn_end,
                      "What it ends with; the model's answer ends there too");
  command->add_option(
      "--temperature", options->temperature,
      "0: the most likely token each time. Default: as generation_config.json asks");
  command->add_option("--max-new-tokens", options->max_new_tokens, "Of an answer, at most")
      ->capture_default_str();
  command->add_option("--seed", options->seed, "Of the samples")->capture_default_str();
  command->add_option("--dtype", options->dtype, "float32, bfloat16, float16 or float64")
      ->capture_default_str();
  AddDeviceOption(command, options->device);
}

}  // namespace shoal
