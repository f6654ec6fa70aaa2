#include "inference/loaded_model.h"

#include "core/dtype.h"
#include "models/adapters/adapter_folder.h"
#include "models/weights.h"

namespace shoal {
namespace {

// `key` as a number, `otherwise` if it is absent or null.
absl::StatusOr<double> NumberOr(const Json& json, const char* key, double otherwise) {
  const auto entry = json.find(key);
  if (entry == json.end() || entry->is_null()) return otherwise;
  if (!entry->is_number()) {
    return absl::InvalidArgumentError(
        absl::StrCat("generation_config.json: ", key, " is ", entry->dump(), ", not a number"));
  }
  return entry->get<double>();
}

}  // namespace

absl::StatusOr<std::string> FindModelFolder(FileSystem& files, const std::string& path) {
  for (const std::string& directory : {path, JoinPath(path, "export")}) {
    for (const char* name : {"config.json", kAdapterConfigName}) {
      SHOAL_ASSIGN_OR_RETURN(const bool found, Exists(files, JoinPath(directory, name)));
      if (found) return directory;
    }
  }
  SHOAL_ASSIGN_OR_RETURN(const bool is_run, Exists(files, JoinPath(path, "checkpoints")));
  if (is_run) {
    return absl::NotFoundError(
        absl::StrCat(path, " is a run without an export: write one with shoal export ", path, " ",
                     JoinPath(path, "export")));
  }
  return absl::NotFoundError(absl::StrCat(
      "neither ", JoinPath(path, "config.json"), " nor ", JoinPath(path, "export/config.json"),
      " is there: give a Hugging Face folder, or a run's folder with its export"));
}

absl::StatusOr<LoadedModel> LoadModelForInference(FileSystem& files, const std::string& path,
                                                  at::ScalarType dtype, const TensorPlace& place,
                                                  at::Device device) {
  LoadedModel loaded;
  SHOAL_ASSIGN_OR_RETURN(loaded.directory, FindModelFolder(files, path));
  SHOAL_ASSIGN_OR_RETURN(const ModelConfig config, LoadModelConfig(files, loaded.directory));
  SHOAL_ASSIGN_OR_RETURN(loaded.model, BuildModel(config, place));
  try {
    SHOAL_ASSIGN_OR_RETURN(loaded.weights,
                           LoadAllWeights(files, loaded.model, loaded.directory, dtype, device));
  } catch (const c10::OutOfMemoryError&) {
    return absl::ResourceExhaustedError(absl::StrCat("no memory left on ", device.str(),
                                                     " for the weights of ", loaded.directory,
                                                     " in ", toString(dtype)));
  }
  return loaded;
}

absl::StatusOr<at::ScalarType> ParseComputeDtype(const std::string& name) {
  const std::optional<at::ScalarType> dtype = DtypeFromName(name);
  if (dtype && at::isFloatingType(*dtype)) return *dtype;
  return absl::InvalidArgumentError(
      absl::StrCat("dtype ", name, " is none of float32, bfloat16, float16, float64"));
}

absl::StatusOr<SamplingOptions> DefaultSampling(const ModelConfig& config) {
  SamplingOptions sampling;
  if (!config.generation_json || !config.generation_json->is_object()) return sampling;
  const Json& json = *config.generation_json;
  SHOAL_ASSIGN_OR_RETURN(sampling.repetition_penalty, NumberOr(json, "repetition_penalty", 1.0));
  const auto do_sample = json.find("do_sample");
  if (do_sample != json.end() && do_sample->is_boolean() && do_sample->get<bool>()) {
    SHOAL_ASSIGN_OR_RETURN(sampling.temperature, NumberOr(json, "temperature", 1.0));
    SHOAL_ASSIGN_OR_RETURN(const double top_k, NumberOr(json, "top_k", 50));
    if (!(top_k >= 0 && top_k < 1e9)) {
      return absl::InvalidArgumentError(
          absl::StrCat("generation_config.json: top_k is ", top_k, ", must be 0 or above"));
    }
    sampling.top_k = static_cast<int64_t>(top_k);
    SHOAL_ASSIGN_OR_RETURN(sampling.top_p, NumberOr(json, "top_p", 1.0));
    SHOAL_ASSIGN_OR_RETURN(sampling.min_p, NumberOr(json, "min_p", 0.0));
  }
  SHOAL_RETURN_IF_ERROR(Annotate(CheckSamplingOptions(sampling), "generation_config.json"));
  return sampling;
}

}  // namespace shoal
