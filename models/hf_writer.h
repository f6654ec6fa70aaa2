// Writes a model as a Hugging Face folder that transformers opens: config.json,
// generation_config.json, model.safetensors (or shards and their index), README.md, and whatever
// else the caller adds.
//
// Any rank writes any slice of any weight into its place in the files; nothing is gathered. The
// ranks keep this order themselves, with a barrier between the lines:
//
//   rank 0:      Create()              the folder beside its final place, files at full size
//   all ranks:   Write(...)* Flush()   disjoint slices that cover every weight
//   rank 0:      Finish()              synced and renamed into place
//
// If any rank fails, rank 0 calls Abandon() instead, and nothing is left.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "models/model.h"
#include "models/safetensors.h"

namespace shoal {

// What the model card says besides what the configuration tells. Empty fields are left out.
struct ModelCard {
  std::string name = {};
  std::string language = {};  // "en"
  std::string license =
      {};  // A Hugging Face licence id; others are written as `other` with license_name
  std::string base_model = {};
  std::vector<std::string> datasets = {};
  std::string body = {};  // Markdown after the title
};

struct ExportOptions {
  at::ScalarType dtype = at::kFloat;
  int64_t max_shard_bytes = 5'000'000'000;
  ModelCard card = {};
  std::map<std::string, std::string> extra_files = {};  // Name to content: tokenizer.json, ...
  bool overwrite = false;  // Replace what is at the folder's place, in one step; else it must not
                           // exist or be empty
};

class HuggingFaceWriter {
 public:
  // Lays out the files; the same on every rank. Touches no disk. `files` must outlive the writer.
  static absl::StatusOr<HuggingFaceWriter> Plan(FileSystem& files, const Model& model,
                                                const std::string& directory,
                                                ExportOptions options);

  absl::Status Create();
  // slice: contiguous elements [begin, begin + slice.numel()) of the flattened weight, converted to
  // the export's dtype. Weights tied to another are not written: their owner is.
  absl::Status Write(const ParameterSpec& spec, int64_t begin, const Tensor& slice);
  // Makes this rank's writes durable and closes its files.
  absl::Status Flush();
  absl::Status Finish();
  absl::Status Abandon();

  // Sum of the tensors' bytes.
  int64_t total_bytes() const { return total_bytes_; }

 private:
  struct Shard {
    std::string name;
    SafetensorsLayout layout;
    std::unique_ptr<WritableFile> file;
  };
  struct Place {
    size_t shard;
    size_t tensor;
  };

  FileSystem* files_ = nullptr;
  std::string directory_;  // Final
  std::string partial_;    // While it is written
  bool overwrite_ = false;
  std::vector<Shard> shards_;
  std::map<std::string, Place> places_;
  std::map<std::string, std::string> small_files_;
  int64_t total_bytes_ = 0;
};

}  // namespace shoal
