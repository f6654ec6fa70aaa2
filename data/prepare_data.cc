#include "data/prepare_data.h"

#include <sys/stat.h>

#include <algorithm>
#include <chrono>
#include <optional>
#include <span>

#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "core/file_system.h"
#include "core/random.h"
#include "core/status.h"
#include "data/bpe_trainer.h"
#include "data/document_reader.h"
#include "data/examples.h"
#include "data/token_dataset.h"
#include "data/tokenize_corpus.h"
#include "data/tokenizer.h"

namespace shoal {
namespace {

using OrderedJson = nlohmann::ordered_json;
constexpr int64_t kMaxManifestBytes = int64_t{64} << 20;

absl::StatusOr<std::vector<CorpusFile>> ListSources(
    const google::protobuf::RepeatedPtrField<DataSource>& sources) {
  std::vector<CorpusFile> out;
  for (const DataSource& source : sources) {
    SHOAL_ASSIGN_OR_RETURN(const std::vector<SourceFile> files, ListSourceFiles(source));
    for (const SourceFile& file : files) out.push_back({&source, file});
  }
  return out;
}

std::string DataFolder(const std::string& output_dir) { return JoinPath(output_dir, "data"); }
std::string ManifestPath(const std::string& output_dir) {
  return JoinPath(DataFolder(output_dir), "prepared.json");
}

OrderedJson ToJson(const PreparedData& data, const std::string& digest) {
  return OrderedJson{{"digest", digest},
                     {"tokenizer", data.tokenizer},
                     {"train", data.train},
                     {"eval", data.eval},
                     {"train_tokens", data.train_tokens},
                     {"eval_tokens", data.eval_tokens},
                     {"train_documents", data.train_documents},
                     {"vocab_size", data.vocab_size}};
}

// The manifest in output_dir with its digest.
absl::StatusOr<std::pair<PreparedData, std::string>> ReadManifest(const std::string& output_dir) {
  PosixFileSystem files;
  const std::string path = ManifestPath(output_dir);
  SHOAL_ASSIGN_OR_RETURN(const std::string text, ReadFile(files, path, kMaxManifestBytes));
  try {
    const OrderedJson json = OrderedJson::parse(text);
    PreparedData data;
    json.at("tokenizer").get_to(data.tokenizer);
    json.at("train").get_to(data.train);
    json.at("eval").get_to(data.eval);
    json.at("train_tokens").get_to(data.train_tokens);
    json.at("eval_tokens").get_to(data.eval_tokens);
    json.at("train_documents").get_to(data.train_documents);
    json.at("vocab_size").get_to(data.vocab_size);
    data.reused = true;
    return std::make_pair(std::move(data), json.at("digest").get<std::string>());
  } catch (const OrderedJson::exception& error) {
    return absl::DataLossError(absl::StrCat(path, ": ", error.what(), ": remove it and run again"));
  }
}

class Preparation {
 public:
  explicit Preparation(const PrepareOptions& options) : options_(options) {}

  absl::StatusOr<PreparedData> Run() {
    SHOAL_ASSIGN_OR_RETURN(train_, ListSources(options_.data.train()));
    SHOAL_ASSIGN_OR_RETURN(eval_, ListSources(options_.data.eval()));
    if (train_.empty())
      return absl::InvalidArgumentError("data.train is empty: name at least one source");
    SHOAL_ASSIGN_OR_RETURN(const std::string digest, Digest());
    if (auto last = Reusable(digest)) return *std::move(last);
    SHOAL_RETURN_IF_ERROR(CreateDirectories(files_, DataFolder(options_.output_dir)));
    PreparedData data;
    if (NeedsTokenizer()) SHOAL_RETURN_IF_ERROR(MakeTokenizer(data));
    SHOAL_ASSIGN_OR_RETURN(data.train, MakeShards(train_, "train"));
    SHOAL_ASSIGN_OR_RETURN(data.eval, MakeShards(eval_, "eval"));
    SHOAL_ASSIGN_OR_RETURN(const TokenDataset train, TokenDataset::Open(data.train));
    SHOAL_ASSIGN_OR_RETURN(const TokenDataset eval, TokenDataset::Open(data.eval));
    data.train_tokens = train.num_tokens();
    data.train_documents = train.num_documents();
    data.eval_tokens = eval.num_tokens();
    data.vocab_size = std::max(train.vocab_size(), eval.vocab_size());
    if (tokenizer_) data.vocab_size = std::max(data.vocab_size, tokenizer_->vocab_size());
    SHOAL_RETURN_IF_ERROR(WriteFileAtomically(files_, ManifestPath(options_.output_dir),
                                              ToJson(data, digest).dump(2) + "\n"));
    return data;
  }

 private:
  void Say(const std::string& line) const {
    if (options_.progress) options_.progress(line);
  }

  bool NeedsTokenizer() const {
    const auto is_text = [](const CorpusFile& s) { return s.file.format != DataSource::tokens; };
    return options_.tokenizer.has_train() || options_.tokenizer.has_name_or_path() ||
           std::any_of(train_.begin(), train_.end(), is_text) ||
           std::any_of(eval_.begin(), eval_.end(), is_text);
  }

  std::string TokenizerSource() const {
    return options_.tokenizer.has_name_or_path() ? options_.tokenizer.name_or_path()
                                                 : options_.model_path;
  }

  // Everything that the result depends on: options, and path, size and modification time of every
  // input.
  absl::StatusOr<std::string> Digest() const {
    std::string all = options_.shard_per_file ? "1 by file" : "1";
    if (options_.kind != DataKind::kDocuments) {
      absl::StrAppend(&all, "#", static_cast<int>(options_.kind), "|",
                      options_.data.chat().turn_start(), "|", options_.data.chat().turn_end());
    }
    const auto add_file = [&](const std::string& path) {
      struct stat info {};
      if (stat(path.c_str(), &info) != 0) return;
      absl::StrAppend(&all, "|", path, "|", info.st_size, "|", info.st_mtim.tv_sec, ".",
                      info.st_mtim.tv_nsec);
    };
    for (const auto* sources : {&train_, &eval_}) {
      absl::StrAppend(&all, "#");
      for (const CorpusFile& s : *sources) {
        add_file(s.file.path);
        absl::StrAppend(&all, "|", s.file.format, "|", s.source->field(), "|",
                        s.source->document_separator());
      }
    }
    std::string tokenizer;
    options_.tokenizer.SerializeToString(&tokenizer);
    absl::StrAppend(&all, "#", tokenizer);
    if (!options_.tokenizer.has_train() && NeedsTokenizer()) {
      add_file(TokenizerSource());
      add_file(JoinPath(TokenizerSource(), "tokenizer.json"));
      add_file(JoinPath(TokenizerSource(), "tokenizer_config.json"));
    }
    return absl::StrCat(absl::Hex(StreamId(all), absl::kZeroPad16));
  }

  // What the last run left, if it is of the same inputs and still there.
  std::optional<PreparedData> Reusable(const std::string& digest) const {
    auto last = ReadManifest(options_.output_dir);
    if (!last.ok() || last->second != digest) return std::nullopt;
    for (const auto* paths : {&last->first.train, &last->first.eval}) {
      if (!TokenDataset::Open(*paths).ok()) return std::nullopt;
    }
    if (!last->first.tokenizer.empty() && !Tokenizer::Load(last->first.tokenizer).ok())
      return std::nullopt;
    return std::move(last->first);
  }

  absl::Status MakeTokenizer(PreparedData& data) {
    data.tokenizer = JoinPath(options_.output_dir, "tokenizer");
    if (options_.tokenizer.has_train()) {
      SHOAL_RETURN_IF_ERROR(TrainTokenizer());
    } else {
      if (TokenizerSource().empty()) {
        return absl::InvalidArgumentError(
            "data.train is text and there is no tokenizer: set tokenizer.name_or_path, or "
            "tokenizer.train");
      }
      SHOAL_ASSIGN_OR_RETURN(tokenizer_, Tokenizer::Load(TokenizerSource()));
    }
    return tokenizer_->SaveFiles(files_, data.tokenizer);
  }

  absl::Status TrainTokenizer() {
    const TokenizerTraining& training = options_.tokenizer.train();
    BpeTrainerOptions trainer_options;
    trainer_options.vocab_size = training.vocab_size();
    trainer_options.min_frequency = training.min_frequency();
    trainer_options.special_tokens.assign(training.special_tokens().begin(),
                                          training.special_tokens().end());
    if (trainer_options.special_tokens.empty()) trainer_options.special_tokens = {"<|endoftext|>"};
    BpeTrainer trainer(std::move(trainer_options));
    const auto started = std::chrono::steady_clock::now();
    int64_t bytes = 0;
    for (const CorpusFile& source : train_) {
      if (source.file.format == DataSource::tokens) continue;
      SHOAL_ASSIGN_OR_RETURN(DocumentReader reader,
                             DocumentReader::Open(*source.source, source.file));
      for (DocumentPart part; training.max_bytes() == 0 || bytes < training.max_bytes();) {
        SHOAL_ASSIGN_OR_RETURN(const bool found, reader.Next(part));
        if (!found) break;
        absl::string_view text = part.text;
        if (training.max_bytes() > 0) text = text.substr(0, training.max_bytes() - bytes);
        trainer.AddText(text);
        bytes += static_cast<int64_t>(text.size());
      }
    }
    if (bytes == 0)
      return absl::InvalidArgumentError("tokenizer.train: data.train holds no text to train on");
    SHOAL_ASSIGN_OR_RETURN(tokenizer_, trainer.Train());
    const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - started;
    Say(absl::StrCat("tokenizer: ", tokenizer_->vocab_size(), " tokens from ", bytes / 1000000,
                     " MB in ", absl::SixDigits(seconds.count()), " s"));
    return absl::OkStatus();
  }

  // Shards of ids stay where they are; each run of text files between them becomes one shard of its
  // own.
  absl::StatusOr<std::vector<std::string>> MakeShards(const std::vector<CorpusFile>& sources,
                                                      const std::string& name) {
    std::vector<std::string> shards;
    for (size_t i = 0; i < sources.size();) {
      if (sources[i].file.format == DataSource::tokens) {
        if (options_.kind != DataKind::kDocuments) {
          return absl::InvalidArgumentError(absl::StrCat(
              sources[i].file.path, ": examples are JSON lines, expected a .jsonl file"));
        }
        SHOAL_ASSIGN_OR_RETURN(const TokenShard shard,
                               TokenShard::Open(sources[i].file.path, TokenShard::Check::kVerify));
        SHOAL_RETURN_IF_ERROR(CheckTokenizer(shard));
        shards.push_back(sources[i++].file.path);
        continue;
      }
      size_t end = i + 1;
      while (!options_.shard_per_file && end < sources.size() &&
             sources[end].file.format != DataSource::tokens)
        ++end;
      shards.push_back(JoinPath(DataFolder(options_.output_dir),
                                absl::StrCat(name, "-", shards.size(), ".bin")));
      SHOAL_RETURN_IF_ERROR(Tokenize(std::span(sources).subspan(i, end - i), shards.back()));
      i = end;
    }
    return shards;
  }

  absl::Status CheckTokenizer(const TokenShard& shard) const {
    const uint64_t made_by = shard.header().tokenizer_fingerprint;
    if (!tokenizer_ || made_by == 0 || made_by == tokenizer_->fingerprint())
      return absl::OkStatus();
    return absl::InvalidArgumentError(
        absl::StrCat(shard.path(), ": its ids were made by another tokenizer than the recipe's: ",
                     "tokenize the text again, or name that tokenizer"));
  }

  absl::Status Tokenize(std::span<const CorpusFile> corpus, const std::string& path) {
    const auto started = std::chrono::steady_clock::now();
    CorpusSize size;
    if (options_.kind == DataKind::kDocuments) {
      SHOAL_ASSIGN_OR_RETURN(
          size, TokenizeCorpus(*tokenizer_, corpus, files_, path, options_.num_threads));
    } else {
      const ExampleKind kind =
          options_.kind == DataKind::kAnswers ? ExampleKind::kAnswers : ExampleKind::kPreferences;
      SHOAL_ASSIGN_OR_RETURN(
          const ExampleCorpus examples,
          TokenizeExamples(*tokenizer_, corpus, kind, options_.data.chat(), files_, path));
      size = examples.size;
      if (examples.has_messages) SHOAL_RETURN_IF_ERROR(SaveChatTemplate());
    }
    const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - started;
    Say(absl::StrCat(path, ": ", size.tokens, " tokens of ", size.documents,
                     options_.kind == DataKind::kDocuments ? " documents from " : " examples from ",
                     size.bytes / 1000000, " MB in ", absl::SixDigits(seconds.count()), " s"));
    return absl::OkStatus();
  }

  // Beside the tokenizer, so that who talks to the model puts messages as it learnt them.
  absl::Status SaveChatTemplate() {
    return WriteFileAtomically(
        files_, JoinPath(JoinPath(options_.output_dir, "tokenizer"), "chat_template.jinja"),
        ChatTemplateOf(options_.data.chat()));
  }

  const PrepareOptions& options_;
  mutable PosixFileSystem files_;
  std::vector<CorpusFile> train_, eval_;
  std::optional<Tokenizer> tokenizer_;
};

}  // namespace

absl::StatusOr<PreparedData> PrepareData(const PrepareOptions& options) {
  return Preparation(options).Run();
}

absl::StatusOr<PreparedData> LoadPreparedData(const std::string& output_dir) {
  SHOAL_ASSIGN_OR_RETURN(auto manifest, ReadManifest(output_dir));
  return std::move(manifest.first);
}

}  // namespace shoal
