// The examples of a federated run, numbered: sequences of text, or labelled images. Which of them
// are whose is partition.h's business.
#pragma once

#include <memory>
#include <span>
#include <string>
#include <vector>

#include "core/batch.h"
#include "core/file_system.h"
#include "core/recipe.pb.h"
#include "core/status.h"
#include "data/sequence_sampler.h"

namespace shoal {

class ExampleSet {
 public:
  virtual ~ExampleSet() = default;
  virtual int64_t size() const = 0;
  // Of each example: the class of an image, the number of the file of a sequence.
  virtual std::vector<int64_t> Labels() const = 0;
  // Of each example: the client that the data itself names, for partition natural.
  virtual absl::StatusOr<std::vector<std::string>> Owners() const = 0;
  // The examples as rows of a batch; -1 is a row without targets.
  virtual absl::StatusOr<Batch> Read(std::span<const int64_t> examples) const = 0;
};

struct ExampleSets {
  std::unique_ptr<ExampleSet> train;
  std::unique_ptr<ExampleSet> eval;  // Null: no held-out data
  std::string fingerprint;           // Of what was read
};

// Sequences of token shards, one shard a file (PrepareOptions::shard_per_file), never across
// files. Without `eval` shards, data.holdout of every file is held out.
struct TextFiles {
  std::vector<std::string> train, eval;  // Shards
  std::vector<std::string> names;        // Of the training shards' files
  DataSection data;
};
absl::StatusOr<ExampleSets> OpenTextExamples(const TextFiles& text);

// Rows of CSV files: pixels, then the class, whole numbers from 0 to 255 with a line of names
// before them; `client_column` is neither (empty: there is none, and the file names the owner).
// Without data.eval, every so many'th row is held out, data.holdout of all. InvalidArgument names
// path:line.
absl::StatusOr<ExampleSets> ReadCsvExamples(FileSystem& files, const DataSection& data,
                                            const std::string& client_column);

}  // namespace shoal
