#include "checkpoint/adapters.h"

#include <ATen/ATen.h>

#include "checkpoint/export.h"
#include "core/memory_file_system.h"
#include "core/status.h"
#include "models/adapters/adapter_folder.h"
#include "models/adapters/lora.h"
#include "models/family.h"
#include "models/safetensors.h"

namespace shoal {

absl::StatusOr<std::map<std::string, Tensor>> LoadAdapters(FileSystem& files, Communicator& comm,
                                                           const std::string& step_directory,
                                                           const Model& adapted,
                                                           at::ScalarType stored,
                                                           const std::set<std::string>& means) {
  std::vector<ParameterSpec> specs;
  std::vector<StatePiece> pieces;
  for (const ParameterSpec& spec : adapted.unique_parameters()) {
    if (!IsSavedWithAdapter(spec)) continue;
    specs.push_back(spec);
    const bool mean = means.contains(spec.name);
    pieces.push_back({.name = absl::StrCat(mean ? kMeanStatePrefix : kWeightStatePrefix, spec.name),
                      .shape = spec.memory_shape(),
                      .begin = 0,
                      .data = at::empty({spec.numel()}, stored)});
  }
  SHOAL_RETURN_IF_ERROR(
      LoadCheckpoint(files, comm, step_directory, pieces, UnreadTensors::kAllow).status());
  std::map<std::string, Tensor> adapters;
  for (size_t i = 0; i < specs.size(); ++i) {
    const Tensor whole = pieces[i].data.view(specs[i].memory_shape());
    adapters[specs[i].name] = specs[i].transposed() ? whole.t().contiguous() : whole;
  }
  return adapters;
}

void MergeAdapter(const std::map<std::string, Tensor>& adapters, const Model& adapted,
                  const ParameterSpec& spec, int64_t begin, Tensor& data) {
  if (spec.shape.size() != 2) return;
  const auto a = adapters.find(LoraWeightName(spec.name, "lora_A"));
  if (a == adapters.end()) return;
  const Tensor& b = adapters.at(LoraWeightName(spec.name, "lora_B"));
  const bool in_out = adapted.config.family->stack.linear == StackOptions::Linear::kInOut;
  const Tensor delta = LoraDelta(a->second, b, adapted.config.lora->scale(), in_out);
  data.add_(delta.view({-1}).narrow(0, begin, data.numel()));
}

absl::StatusOr<std::map<std::string, std::string>> AdapterFiles(
    const std::map<std::string, Tensor>& adapters, const std::string& config,
    at::ScalarType dtype) {
  std::map<std::string, Tensor> named;
  for (const auto& [name, tensor] : adapters) named[PeftName(name)] = tensor.to(dtype);
  MemoryFileSystem memory;
  const std::string path = absl::StrCat("/", kAdapterWeightsName);
  SHOAL_RETURN_IF_ERROR(WriteSafetensors(memory, path, named, {{"format", "pt"}}));
  SHOAL_ASSIGN_OR_RETURN(const FileInfo info, memory.Stat(path));
  std::map<std::string, std::string> files = {{kAdapterConfigName, config}};
  SHOAL_ASSIGN_OR_RETURN(files[kAdapterWeightsName], ReadFile(memory, path, info.bytes));
  return files;
}

}  // namespace shoal
