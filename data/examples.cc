#include "data/examples.h"

#include <algorithm>
#include <fstream>

#include <nlohmann/json.hpp>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/str_split.h"
#include "core/status.h"

namespace shoal {
namespace {

using Json = nlohmann::json;

constexpr int64_t kMaxExampleBytes = int64_t{256} << 20;

class LineParser {
 public:
  LineParser(const Json& line, const ChatSection& chat) : line_(line), chat_(chat) {}

  absl::StatusOr<ExampleSequence> Answer() {
    ExampleSequence sequence;
    if (line_.contains("messages")) {
      SHOAL_RETURN_IF_ERROR(AddMessages("messages", line_["messages"], Trains::kAnswers, sequence));
    } else {
      SHOAL_RETURN_IF_ERROR(Add("prompt", Trains::kNothing, sequence));
      SHOAL_RETURN_IF_ERROR(Add("completion", Trains::kAll, sequence));
    }
    return Checked(std::move(sequence));
  }

  absl::StatusOr<ExampleSequence> Choice(const char* key) {
    ExampleSequence sequence;
    turn_is_open_ = false;
    SHOAL_RETURN_IF_ERROR(Add("prompt", Trains::kNothing, sequence));
    SHOAL_RETURN_IF_ERROR(Add(key, Trains::kAll, sequence));
    return Checked(std::move(sequence));
  }

 private:
  enum class Trains { kNothing, kAnswers, kAll };

  absl::StatusOr<ExampleSequence> Checked(ExampleSequence sequence) const {
    const bool trains = std::any_of(sequence.begin(), sequence.end(),
                                    [](const ExampleSegment& each) { return each.trained; });
    if (!trains) return absl::InvalidArgumentError("there is no answer to learn from");
    return sequence;
  }

  absl::Status Add(const char* key, Trains trains, ExampleSequence& sequence) {
    const auto value = line_.find(key);
    if (value == line_.end())
      return absl::InvalidArgumentError(absl::StrCat("there is no field \"", key, "\""));
    if (value->is_array()) return AddMessages(key, *value, trains, sequence);
    if (!value->is_string()) {
      return absl::InvalidArgumentError(absl::StrCat(
          "\"", key, "\": expected a text or a list of messages, got ", value->type_name()));
    }
    if (turn_is_open_) sequence.push_back({TurnStart("assistant"), false});
    sequence.push_back(
        {absl::StrCat(value->get<std::string>(), turn_is_open_ ? chat_.turn_end() : ""),
         trains == Trains::kAll});
    return absl::OkStatus();
  }

  absl::Status AddMessages(const char* key, const Json& messages, Trains trains,
                           ExampleSequence& sequence) {
    if (!messages.is_array())
      return absl::InvalidArgumentError(
          absl::StrCat("\"", key, "\": expected a list of messages, got ", messages.type_name()));
    for (const Json& message : messages) {
      const auto text = [&](const char* name) {
        return message.is_object() && message.contains(name) && message[name].is_string()
                   ? message[name].get<std::string>()
                   : std::string();
      };
      const std::string role = text("role");
      if ((role != "system" && role != "user" && role != "assistant") ||
          !message.contains("content")) {
        return absl::InvalidArgumentError(absl::StrCat(
            "\"", key, "\": a message is {\"role\": \"system\", \"user\" or \"assistant\", ",
            "\"content\": text}"));
      }
      const bool trained = role == "assistant" && trains != Trains::kNothing;
      sequence.push_back({.text = TurnStart(role), .message = true});
      sequence.push_back({absl::StrCat(text("content"), chat_.turn_end()), trained});
    }
    // A text that answers messages is the assistant's turn.
    turn_is_open_ = trains == Trains::kNothing && !messages.empty();
    return absl::OkStatus();
  }

  std::string TurnStart(const std::string& role) const {
    return absl::StrReplaceAll(chat_.turn_start(), {{"{role}", role}});
  }

  const Json& line_;
  const ChatSection& chat_;
  bool turn_is_open_ = false;
};

}  // namespace

absl::StatusOr<std::vector<ExampleSequence>> ParseExample(const std::string& line, ExampleKind kind,
                                                          const ChatSection& chat) {
  const Json json = Json::parse(line, nullptr, /*allow_exceptions=*/false);
  if (json.is_discarded()) return absl::InvalidArgumentError("not a line of JSON");
  if (!json.is_object())
    return absl::InvalidArgumentError(
        absl::StrCat("expected a JSON object, got ", json.type_name()));
  LineParser parser(json, chat);
  std::vector<ExampleSequence> sequences;
  if (kind == ExampleKind::kAnswers) {
    SHOAL_ASSIGN_OR_RETURN(ExampleSequence answer, parser.Answer());
    sequences.push_back(std::move(answer));
  } else {
    for (const char* key : {"chosen", "rejected"}) {
      SHOAL_ASSIGN_OR_RETURN(ExampleSequence choice, parser.Choice(key));
      sequences.push_back(std::move(choice));
    }
  }
  return sequences;
}

std::string ChatTemplateOf(const ChatSection& chat) {
  // A Jinja string of the text, with `role`, an expression, where {role} stands.
  const auto quoted = [](const std::string& text) {
    return absl::StrCat(
        "'", absl::StrReplaceAll(text, {{"\\", "\\\\"}, {"'", "\\'"}, {"\n", "\\n"}}), "'");
  };
  const auto turn_start = [&](const std::string& role) {
    std::vector<std::string> parts;
    for (const std::string& part :
         std::vector<std::string>(absl::StrSplit(chat.turn_start(), "{role}")))
      parts.push_back(quoted(part));
    return absl::StrJoin(parts, absl::StrCat(" + ", role, " + "));
  };
  return absl::StrCat("{%- for message in messages -%}\n{{- ", turn_start("message['role']"),
                      " + message['content'] + ", quoted(chat.turn_end()),
                      " -}}\n{%- endfor -%}\n{%- if add_generation_prompt -%}\n{{- ",
                      turn_start("'assistant'"), " -}}\n{%- endif -%}\n");
}

namespace {

class ExampleTokenizer {
 public:
  ExampleTokenizer(const Tokenizer& tokenizer, TokenDatasetWriter& writer)
      : tokenizer_(tokenizer), writer_(writer) {}

  absl::Status Add(const ExampleSequence& sequence) {
    std::vector<int32_t> tokens, flags;
    for (size_t i = 0; i < sequence.size(); ++i) {
      const ExampleSegment& segment = sequence[i];
      SHOAL_ASSIGN_OR_RETURN(
          const std::vector<int32_t> ids,
          tokenizer_.Encode(segment.text, {.add_special_tokens = false, .continues_text = i > 0}));
      tokens.insert(tokens.end(), ids.begin(), ids.end());
      flags.resize(tokens.size(), segment.trained);
      corpus_.size.bytes += static_cast<int64_t>(segment.text.size());
      corpus_.has_messages |= segment.message;
    }
    if (tokenizer_.eos_id() && sequence.back().trained) {
      tokens.push_back(*tokenizer_.eos_id());
      flags.push_back(1);
    }
    if (tokens.empty()) return absl::InvalidArgumentError("the example is empty");
    for (const auto& document : {tokens, flags}) {
      SHOAL_RETURN_IF_ERROR(writer_.Append(document));
      writer_.EndDocument();
    }
    corpus_.size.tokens += static_cast<int64_t>(tokens.size());
    return absl::OkStatus();
  }

  ExampleCorpus& corpus() { return corpus_; }

 private:
  const Tokenizer& tokenizer_;
  TokenDatasetWriter& writer_;
  ExampleCorpus corpus_;
};

absl::Status TokenizeFile(const CorpusFile& entry, ExampleKind kind, const ChatSection& chat,
                          ExampleTokenizer& work) {
  const std::string& path = entry.file.path;
  if (entry.file.format != DataSource::jsonl)
    return absl::InvalidArgumentError(
        absl::StrCat(path, ": examples are JSON lines, expected a .jsonl file"));
  std::ifstream in(path, std::ios::binary);
  if (!in) return absl::NotFoundError(absl::StrCat(path, ": cannot be opened"));
  std::string line;
  for (int64_t number = 1; std::getline(in, line); ++number) {
    if (absl::StripAsciiWhitespace(line).empty()) continue;
    const std::string place = absl::StrCat(path, ":", number);
    if (static_cast<int64_t>(line.size()) > kMaxExampleBytes)
      return absl::ResourceExhaustedError(absl::StrCat(place, ": a line above 256 MiB"));
    auto sequences = ParseExample(line, kind, chat);
    SHOAL_RETURN_IF_ERROR(Annotate(sequences.status(), place));
    for (const ExampleSequence& sequence : *sequences)
      SHOAL_RETURN_IF_ERROR(Annotate(work.Add(sequence), place));
    ++work.corpus().size.documents;
  }
  return in.bad() ? absl::UnavailableError(absl::StrCat(path, ": reading failed"))
                  : absl::OkStatus();
}

}  // namespace

absl::StatusOr<ExampleCorpus> TokenizeExamples(const Tokenizer& tokenizer,
                                               std::span<const CorpusFile> corpus, ExampleKind kind,
                                               const ChatSection& chat, FileSystem& files,
                                               const std::string& path) {
  SHOAL_ASSIGN_OR_RETURN(
      auto writer, TokenDatasetWriter::Create(files, path,
                                              {.vocab_size = tokenizer.vocab_size(),
                                               .tokenizer_fingerprint = tokenizer.fingerprint()}));
  ExampleTokenizer work(tokenizer, *writer);
  for (const CorpusFile& entry : corpus)
    SHOAL_RETURN_IF_ERROR(TokenizeFile(entry, kind, chat, work));
  SHOAL_RETURN_IF_ERROR(writer->Finish());
  return work.corpus();
}

absl::StatusOr<ExampleDataset> ExampleDataset::Open(const std::vector<std::string>& paths,
                                                    ExampleKind kind, int64_t max_tokens) {
  ExampleDataset dataset;
  SHOAL_ASSIGN_OR_RETURN(TokenDataset tokens, TokenDataset::Open(paths));
  dataset.tokens_ = std::make_shared<const TokenDataset>(std::move(tokens));
  dataset.sequences_ = SequencesOf(kind);
  dataset.max_tokens_ = max_tokens;
  const int64_t documents = dataset.tokens_->num_documents();
  if (documents % (2 * dataset.sequences_) != 0)
    return absl::DataLossError(
        absl::StrCat(paths.empty() ? "" : paths[0], ": not a shard of examples of this kind"));
  for (int64_t first = 0; first < documents / 2; first += dataset.sequences_) {
    bool whole = true;
    for (int64_t i = first; i < first + dataset.sequences_; ++i) {
      SHOAL_ASSIGN_OR_RETURN(const Sequence sequence, dataset.ReadSequence(i));
      // The first token is never predicted.
      whole &= std::any_of(sequence.trained.begin() + 1, sequence.trained.end(),
                           [](int64_t flag) { return flag != 0; });
    }
    if (whole)
      dataset.examples_.push_back(first);
    else
      ++dataset.num_dropped_;
  }
  return dataset;
}

absl::StatusOr<ExampleDataset::Sequence> ExampleDataset::ReadSequence(int64_t sequence) const {
  const int64_t begin = tokens_->document_start(2 * sequence),
                middle = tokens_->document_start(2 * sequence + 1),
                end = tokens_->document_start(2 * sequence + 2);
  if (middle - begin != end - middle)
    return absl::DataLossError("a shard of examples lacks flags: remove it and run again");
  const int64_t count = std::min(middle - begin, max_tokens_);
  Sequence read{.tokens = std::vector<int64_t>(count), .trained = std::vector<int64_t>(count)};
  SHOAL_RETURN_IF_ERROR(tokens_->Read(begin, read.tokens));
  SHOAL_RETURN_IF_ERROR(tokens_->Read(middle, read.trained));
  return read;
}

absl::StatusOr<std::vector<ExampleDataset::Sequence>> ExampleDataset::Read(int64_t example) const {
  std::vector<Sequence> sequences;
  for (int i = 0; i < sequences_; ++i) {
    SHOAL_ASSIGN_OR_RETURN(Sequence sequence, ReadSequence(examples_[example] + i));
    sequences.push_back(std::move(sequence));
  }
  return sequences;
}

}  // namespace shoal
