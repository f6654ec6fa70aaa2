// From a run's checkpoint to a Hugging Face folder.
#pragma once

#include <functional>
#include <optional>
#include <string>

#include "core/file_system.h"
#include "core/status.h"
#include "models/model_config.h"
#include "parallel/comm/communicator.h"

namespace shoal {

// What a training run records of its model in TrainerState::extra: config.json and (if the model
// began from a folder that had one) generation_config.json, as text.
inline constexpr char kConfigStateKey[] = "config_json";
inline constexpr char kAdapterConfigStateKey[] = "adapter_config_json";  // Of models with adapters
inline constexpr char kGenerationConfigStateKey[] = "generation_config_json";
// In the run's folder: the tokenizer's files, copied into the export.
inline constexpr char kTokenizerFolderName[] = "tokenizer";
// In the checkpoint: a weight's name is this and its Hugging Face name; its running mean's (of
// optimizer.ema) is the other and the same.
inline constexpr char kWeightStatePrefix[] = "weights/";
inline constexpr char kMeanStatePrefix[] = "ema/";
// TrainerState::extra holds it (with any value) if the export is to be of the means.
inline constexpr char kExportMeansKey[] = "export_means";

// The model that the two texts describe, as LoadModelConfig reads it from a folder's files.
// `generation_config_json` may be empty.
absl::StatusOr<ModelConfig> ModelConfigFromText(const std::string& config_json,
                                                const std::string& generation_config_json = "");

struct CheckpointExport {
  std::string
      source;  // A run's folder (its newest valid checkpoint is taken), or a step's folder in one
  std::string directory;  // What is written: beside it, then renamed into place
  // Of the weights; nullopt: the recipe's model.dtype.
  std::optional<at::ScalarType> dtype = std::nullopt;
  bool overwrite =
      false;  // Replace a folder at `directory`; otherwise it must be empty or not there
  // Told, on rank 0, what a user should know: which checkpoint was passed over, that there is no
  // tokenizer.
  std::function<void(const std::string&)> warn = nullptr;
};

// Writes config.json, generation_config.json, model.safetensors (or shards), the tokenizer's files
// and a README.md that states data, licences and the held-out loss. The ranks deal the weights out
// among themselves; each holds 64 MiB of them at a time. Special tokens that config.json leaves
// open are the tokenizer's. Returns the step folder that was exported. Collective: every rank calls
// it with equal options, and all return the same status. NotFound: no checkpoint there. DataLoss: a
// damaged one. AlreadyExists: `directory` is not empty.
absl::StatusOr<std::string> ExportCheckpoint(FileSystem& files, Communicator& comm,
                                             const CheckpointExport& options);

}  // namespace shoal
