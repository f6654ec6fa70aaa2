#include "launch/tokenize_command.h"

#include <algorithm>
#include <cstdio>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "core/file_system.h"
#include "core/status.h"
#include "data/document_reader.h"
#include "data/tokenize_corpus.h"
#include "data/tokenizer.h"

namespace shoal {
namespace {

struct TokenizeOptions {
  std::string tokenizer;
  std::string file;
  std::string output;
  std::string field = "text";
  std::string document_separator;
  bool no_special_tokens = false;
};

constexpr int64_t kMaxPrintedBytes = int64_t{1} << 30;

absl::Status Print(const Tokenizer& tokenizer, const TokenizeOptions& options) {
  PosixFileSystem files;
  SHOAL_ASSIGN_OR_RETURN(const std::string text, ReadFile(files, options.file, kMaxPrintedBytes));
  SHOAL_ASSIGN_OR_RETURN(
      const std::vector<int32_t> ids,
      tokenizer.Encode(text, {.add_special_tokens = !options.no_special_tokens}));
  std::puts(absl::StrCat("[", absl::StrJoin(ids, ", "), "]").c_str());
  return absl::OkStatus();
}

absl::Status WriteShard(const Tokenizer& tokenizer, const TokenizeOptions& options) {
  DataSource source;
  source.set_path(options.file);
  source.set_field(options.field);
  if (!options.document_separator.empty())
    source.set_document_separator(options.document_separator);
  SHOAL_ASSIGN_OR_RETURN(const std::vector<SourceFile> found, ListSourceFiles(source));
  std::vector<CorpusFile> corpus;
  for (const SourceFile& file : found) {
    if (file.format == DataSource::tokens) {
      return absl::InvalidArgumentError(absl::StrCat(file.path, " holds token ids already"));
    }
    corpus.push_back({&source, file});
  }
  PosixFileSystem files;
  const int threads = static_cast<int>(std::max(1u, std::thread::hardware_concurrency()));
  SHOAL_ASSIGN_OR_RETURN(const CorpusSize size,
                         TokenizeCorpus(tokenizer, corpus, files, options.output, threads));
  std::fprintf(stderr, "%s: %lld tokens of %lld documents from %lld bytes of text\n",
               options.output.c_str(), static_cast<long long>(size.tokens),
               static_cast<long long>(size.documents), static_cast<long long>(size.bytes));
  return absl::OkStatus();
}

absl::Status RunTokenize(const TokenizeOptions& options) {
  SHOAL_ASSIGN_OR_RETURN(const Tokenizer tokenizer, Tokenizer::Load(options.tokenizer));
  return options.output.empty() ? Print(tokenizer, options) : WriteShard(tokenizer, options);
}

}  // namespace

void AddTokenizeCommand(CommandLine& line) {
  auto options = std::make_shared<TokenizeOptions>();
  CLI::App* command = line.Add(
      "tokenize", "Turn text into token ids, printed as a JSON list or written as a token shard",
      "shoal tokenize runs/quickstart/export --file README.md\n"
      "shoal tokenize tokenizer.json --file corpus/ --output corpus.bin",
      [options] { return RunTokenize(*options); });
  command
      ->add_option("tokenizer", options->tokenizer, "A tokenizer.json, or a folder that holds one")
      ->required();
  command
      ->add_option("--file", options->file,
                   "The text. With --output also JSON lines, a folder or a pattern")
      ->required();
  auto* output = command->add_option(
      "--output", options->output,
      "Write a token shard (data.train's format tokens), documents ended by eos");
  command->add_option("--field", options->field, "Of JSON lines: the document")->needs(output);
  command
      ->add_option("--document-separator", options->document_separator,
                   "Of text: the line between documents")
      ->needs(output);
  command
      ->add_flag("--no-special-tokens", options->no_special_tokens, "Print the text's own ids only")
      ->excludes(output);
}

}  // namespace shoal
