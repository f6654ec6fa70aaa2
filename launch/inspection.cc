#include "launch/inspection.h"

#include <algorithm>
#include <map>

#include "absl/strings/match.h"

#include "core/dtype.h"
#include "models/json.h"
#include "models/safetensors.h"

namespace shoal {
namespace {

absl::StatusOr<Inspection> InspectCheckpoint(FileSystem& files, const std::string& path,
                                             bool verify) {
  SHOAL_ASSIGN_OR_RETURN(const Manifest manifest, ReadManifest(files, path));
  const VerifyLevel level = verify ? VerifyLevel::kChecksums : VerifyLevel::kSizes;
  SHOAL_RETURN_IF_ERROR(VerifyCheckpoint(files, path, level));
  Inspection inspection;
  inspection.kind = "checkpoint";
  inspection.path = path;
  inspection.state = manifest.state();
  for (const Manifest::File& file : manifest.files())
    inspection.files.push_back({file.name(), file.bytes()});
  for (const Manifest::Tensor& tensor : manifest.tensors()) {
    InspectedTensor inspected;
    inspected.name = tensor.name();
    inspected.dtype = tensor.dtype();
    inspected.shape.assign(tensor.shape().begin(), tensor.shape().end());
    for (const Manifest::Chunk& chunk : tensor.chunks()) {
      inspected.numel = chunk.end();
      const std::string& file = manifest.files(chunk.file()).name();
      if (inspected.files.empty() || inspected.files.back() != file)
        inspected.files.push_back(file);
    }
    inspected.bytes = inspected.numel * ElementBytes(*DtypeOfSafetensors(tensor.dtype()));
    inspection.tensors.push_back(std::move(inspected));
  }
  if (verify) inspection.notes.push_back("every byte matches its checksum");
  return inspection;
}

// Adds the tensors of one safetensors file.
absl::Status AddSafetensors(FileSystem& files, const std::string& path, Inspection* inspection) {
  SHOAL_ASSIGN_OR_RETURN(const auto reader, SafetensorsReader::Open(files, path));
  SHOAL_ASSIGN_OR_RETURN(const FileInfo info, files.Stat(path));
  inspection->files.push_back({BaseName(path), info.bytes});
  for (const SafetensorsEntry& entry : reader->tensors()) {
    InspectedTensor tensor;
    tensor.name = entry.name;
    tensor.dtype = entry.dtype;
    tensor.shape = entry.shape;
    tensor.numel = entry.numel();
    tensor.bytes = entry.end - entry.begin;
    tensor.files = {BaseName(path)};
    inspection->tensors.push_back(std::move(tensor));
  }
  for (const auto& [key, value] : reader->header().metadata)
    inspection->facts.emplace_back(key, value);
  return absl::OkStatus();
}

constexpr char kNoChecksums[] =
    "safetensors files hold no checksums: their headers and sizes were checked";

absl::StatusOr<Inspection> InspectSafetensors(FileSystem& files, const std::string& path,
                                              bool verify) {
  Inspection inspection;
  inspection.kind = "safetensors";
  inspection.path = path;
  SHOAL_RETURN_IF_ERROR(AddSafetensors(files, path, &inspection));
  if (verify) inspection.notes.push_back(kNoChecksums);
  return inspection;
}

// What config.json says of the model's kind and size.
absl::Status AddConfig(FileSystem& files, const std::string& path, Inspection* inspection) {
  SHOAL_ASSIGN_OR_RETURN(const Json config, ReadJsonFile(files, path));
  if (!config.is_object()) return absl::DataLossError(absl::StrCat(path, " is no JSON object"));
  for (const char* key : {"model_type", "vocab_size", "hidden_size", "n_embd", "num_hidden_layers",
                          "n_layer", "num_attention_heads", "n_head", "num_key_value_heads",
                          "tie_word_embeddings", "dtype", "torch_dtype"}) {
    const auto found = config.find(key);
    if (found != config.end() && found->is_primitive()) {
      inspection->facts.emplace_back(
          key, found->is_string() ? found->get<std::string>() : found->dump());
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<Inspection> InspectFolder(FileSystem& files, const std::string& path,
                                         const std::vector<std::string>& names, bool verify) {
  Inspection inspection;
  inspection.kind = "Hugging Face folder";
  inspection.path = path;
  for (const std::string& name : names) {
    if (name == "config.json")
      SHOAL_RETURN_IF_ERROR(AddConfig(files, JoinPath(path, name), &inspection));
  }
  std::vector<std::pair<std::string, std::string>> facts = std::move(inspection.facts);
  for (const std::string& name : names) {
    if (absl::EndsWith(name, ".safetensors")) {
      SHOAL_RETURN_IF_ERROR(AddSafetensors(files, JoinPath(path, name), &inspection));
    }
  }
  inspection.facts =
      std::move(facts);  // The files' own metadata ("format": "pt") says nothing here
  if (verify) inspection.notes.push_back(kNoChecksums);
  return inspection;
}

// The steps among `names`, ascending.
std::vector<std::string> StepNames(const std::vector<std::string>& names) {
  std::map<int64_t, std::string> steps;
  for (const std::string& name : names) {
    if (const auto step = StepOfName(name)) steps[*step] = name;
  }
  std::vector<std::string> sorted;
  for (const auto& [step, name] : steps) sorted.push_back(name);
  return sorted;
}

// A folder of steps: the newest valid one is described.
absl::StatusOr<Inspection> InspectSteps(FileSystem& files, const std::string& path,
                                        const std::vector<std::string>& steps, bool verify) {
  const VerifyLevel level = verify ? VerifyLevel::kChecksums : VerifyLevel::kSizes;
  std::vector<std::string> notes;
  SHOAL_ASSIGN_OR_RETURN(const auto newest, FindNewestValid(files, path, &notes, level));
  if (!newest) {
    return absl::DataLossError(absl::StrCat("none of the ", steps.size(), " checkpoints in ", path,
                                            " is whole: ", notes.empty() ? "" : notes[0]));
  }
  for (const std::string& step : steps) {
    const std::string folder = JoinPath(path, step);
    if (verify && folder != *newest) {
      const absl::Status status = VerifyCheckpoint(files, folder, level);
      notes.push_back(absl::StrCat(
          step, ": ", status.ok() ? "every byte matches its checksum" : status.message()));
    }
  }
  SHOAL_ASSIGN_OR_RETURN(Inspection inspection,
                         InspectCheckpoint(files, *newest, /*verify=*/false));
  inspection.checkpoints = steps;
  if (verify) notes.push_back(absl::StrCat(BaseName(*newest), ": every byte matches its checksum"));
  inspection.notes = std::move(notes);
  return inspection;
}

bool Contains(const std::vector<std::string>& names, const std::string& name) {
  return std::find(names.begin(), names.end(), name) != names.end();
}

}  // namespace

int64_t Inspection::total_numel() const {
  int64_t total = 0;
  for (const InspectedTensor& tensor : tensors) total += tensor.numel;
  return total;
}

int64_t Inspection::total_bytes() const {
  int64_t total = 0;
  for (const InspectedTensor& tensor : tensors) total += tensor.bytes;
  return total;
}

absl::StatusOr<Inspection> Inspect(FileSystem& files, const std::string& path, bool verify) {
  SHOAL_ASSIGN_OR_RETURN(const FileInfo info, files.Stat(path));
  absl::StatusOr<Inspection> inspection;
  if (!info.is_directory) {
    inspection = InspectSafetensors(files, path, verify);
  } else {
    SHOAL_ASSIGN_OR_RETURN(const std::vector<std::string> names, files.List(path));
    const bool has_weights = std::any_of(names.begin(), names.end(), [](const std::string& name) {
      return absl::EndsWith(name, ".safetensors");
    });
    std::vector<std::string> steps = StepNames(names);
    std::string step_folder = path;
    if (steps.empty() && Contains(names, "checkpoints")) {
      step_folder = JoinPath(path, "checkpoints");
      SHOAL_ASSIGN_OR_RETURN(const auto inner, files.List(step_folder));
      steps = StepNames(inner);
    }
    if (Contains(names, "MANIFEST")) {
      inspection = InspectCheckpoint(files, path, verify);
    } else if (!steps.empty()) {
      inspection = InspectSteps(files, step_folder, steps, verify);
    } else if (has_weights || Contains(names, "config.json")) {
      inspection = InspectFolder(files, path, names, verify);
    } else {
      return absl::NotFoundError(
          absl::StrCat(path,
                       " holds no checkpoint, no run with one, no safetensors file and "
                       "no config.json"));
    }
  }
  if (!inspection.ok()) return inspection;
  std::sort(inspection->tensors.begin(), inspection->tensors.end(),
            [](const InspectedTensor& a, const InspectedTensor& b) { return a.name < b.name; });
  return inspection;
}

}  // namespace shoal
