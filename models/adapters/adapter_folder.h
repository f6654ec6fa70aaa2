// Adapters on disk, as Python's peft writes and opens them: adapter_config.json beside
// adapter_model.safetensors, whose names are the model's own with "base_model.model." before them.
// The base model lies elsewhere, in the folder that adapter_config.json names.
#pragma once

#include <optional>
#include <string>

#include "core/file_system.h"
#include "core/status.h"
#include "models/model.h"

namespace shoal {

inline constexpr char kAdapterConfigName[] = "adapter_config.json";
inline constexpr char kAdapterWeightsName[] = "adapter_model.safetensors";

struct AdapterFolder {
  LoraOptions lora;
  std::string base;    // base_model_name_or_path
  bool score = false;  // The folder holds a score head too
};

// Empty if `directory` holds no adapter_config.json. InvalidArgument names the key of a setting
// that Shoal's adapters do not have (DoRA, ranks that differ by layer, trained biases, ...).
absl::StatusOr<std::optional<AdapterFolder>> ReadAdapterFolder(FileSystem& files,
                                                               const std::string& directory);

// adapter_config.json of a model that has adapters, over the weights of folder `base`.
std::string PeftConfig(const Model& model, const std::string& base);

// Does the weight belong into adapter_model.safetensors?
bool IsSavedWithAdapter(const ParameterSpec& spec);
// Its name there, and back ("" for a name without the prefix).
std::string PeftName(const std::string& name);
std::string FromPeftName(const std::string& name);

}  // namespace shoal
