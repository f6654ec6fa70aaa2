// From a recipe's data and tokenizer sections to token shards in run.output_dir, once: reads the
// sources, trains a tokenizer if the recipe wants one, tokenizes on several threads.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "core/recipe.pb.h"

namespace shoal {

// What the sources hold: documents to learn from whole, or examples (data/examples.h).
enum class DataKind { kDocuments, kAnswers, kPreferences };

struct PrepareOptions {
  DataSection data;
  DataKind kind = DataKind::kDocuments;
  TokenizerSection tokenizer;
  std::string model_path;  // model.name_or_path: where the tokenizer is if the recipe names none
  std::string output_dir;
  int num_threads = 1;
  // Each text file becomes a shard of its own, in their order; else neighbours share one.
  bool shard_per_file = false;
  // Told what takes time, as whole lines. May be empty.
  std::function<void(const std::string&)> progress;
};

struct PreparedData {
  std::string tokenizer;  // Folder with tokenizer.json; "" if the sources are token ids already
  std::vector<std::string> train;  // Shards, for TokenDataset::Open
  std::vector<std::string> eval;   // Empty if data.eval is
  int64_t train_tokens = 0;
  int64_t eval_tokens = 0;
  int64_t train_documents = 0;
  int32_t vocab_size = 0;  // The tokenizer's, or the largest that a shard of ids states
  bool reused = false;     // Nothing had to be done: inputs and options are those of the last time
};

// Writes output_dir/tokenizer/ (if there is one), output_dir/data/*.bin and
// output_dir/data/prepared.json. Does nothing if those are there and made from the same inputs:
// paths, sizes, modification times, options, the tokenizer. Call on one rank, then LoadPreparedData
// on the others. Shards that the sources name are used where they are, after their checksums have
// been verified. Errors name the file and line.
absl::StatusOr<PreparedData> PrepareData(const PrepareOptions& options);

// What PrepareData left in `output_dir`. NotFound if it has not been there.
absl::StatusOr<PreparedData> LoadPreparedData(const std::string& output_dir);

}  // namespace shoal
