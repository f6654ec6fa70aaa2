// What there is to see in a checkpoint, a run's folder, a safetensors file or a Hugging Face
// folder.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "checkpoint/checkpoint.h"
#include "core/file_system.h"

namespace shoal {

struct InspectedTensor {
  std::string name;
  std::string dtype;  // As safetensors spells it
  std::vector<int64_t> shape;
  int64_t numel = 0;
  int64_t bytes = 0;
  std::vector<std::string> files;  // That hold parts of it
};

struct InspectedFile {
  std::string name;
  int64_t bytes = 0;
};

struct Inspection {
  std::string kind;  // "checkpoint", "safetensors", "Hugging Face folder"
  std::string path;  // Of what is described: for a run, its newest valid checkpoint
  std::vector<InspectedTensor> tensors;  // By name
  std::vector<InspectedFile> files;
  std::optional<TrainerState> state;  // Of a checkpoint
  std::vector<std::pair<std::string, std::string>>
      facts;                             // Of a folder's config.json: model_type, ...
  std::vector<std::string> checkpoints;  // Of a run: all its steps, ascending
  std::vector<std::string> notes;  // What a user should know: steps passed over, what was verified

  int64_t total_numel() const;
  int64_t total_bytes() const;
};

// NotFound: nothing at `path` that this can describe. DataLoss: damage, named. `verify`: every byte
// that has a checksum is read and checked; for a run, of all its checkpoints.
absl::StatusOr<Inspection> Inspect(FileSystem& files, const std::string& path, bool verify);

// For people: facts, a table of the tensors, totals.
std::string InspectionText(const Inspection& inspection);
// For programs: one JSON object with all of it, the recipe too.
std::string InspectionJson(const Inspection& inspection);

}  // namespace shoal
