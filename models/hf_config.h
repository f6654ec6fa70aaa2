// The small files of an exported folder.
#pragma once

#include <string>

#include "models/hf_writer.h"

namespace shoal {

// config.json: what the model was made from, with every key of its family's table present, rotary
// settings in the dialects of transformers 4 and 5, and the class that opens it.
std::string HuggingFaceConfig(const ModelConfig& config, at::ScalarType dtype);

// generation_config.json: what was read, else the special tokens.
std::string HuggingFaceGenerationConfig(const ModelConfig& config);

// README.md: YAML metadata between --- lines, then Markdown.
std::string HuggingFaceModelCard(const Model& model, const ModelCard& card);

}  // namespace shoal
