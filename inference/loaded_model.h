// A Hugging Face folder, ours or not, made ready for inference.
#pragma once

#include <string>

#include "core/file_system.h"
#include "core/status.h"
#include "inference/generator.h"
#include "models/forward.h"

namespace shoal {

struct LoadedModel {
  std::string directory;
  Model model;
  ModelWeights weights;
};

// The folder that holds config.json (or the adapter_config.json of a model's adapters): `path`
// itself, or the export of a run's folder. NotFound says what was looked for.
absl::StatusOr<std::string> FindModelFolder(FileSystem& files, const std::string& path);

// Configuration and weights in `dtype` of FindModelFolder(path): all of them or, on one of several
// tensor-parallel ranks, its part. Weights lie on `device`, where all that is done with them is
// computed; ResourceExhausted: it has no room for them.
absl::StatusOr<LoadedModel> LoadModelForInference(FileSystem& files, const std::string& path,
                                                  at::ScalarType dtype,
                                                  const TensorPlace& place = {},
                                                  at::Device device = at::kCPU);

// float32, bfloat16, float16, float64. InvalidArgument for other names.
absl::StatusOr<at::ScalarType> ParseComputeDtype(const std::string& name);

// What a folder's generation_config.json asks for, as transformers reads it: greedy unless
// do_sample, and then, where the file is silent, temperature 1, top_k 50, top_p 1. InvalidArgument
// names a value that is none.
absl::StatusOr<SamplingOptions> DefaultSampling(const ModelConfig& config);

}  // namespace shoal
