// Adapters of a checkpoint: merged into the weights that are exported, and as a folder for peft.
#pragma once

#include <map>
#include <set>
#include <string>

#include "checkpoint/checkpoint.h"
#include "models/model.h"
#include "parallel/comm/communicator.h"

namespace shoal {

// What a checkpoint holds beside the base model's weights: by name, each (shape as on disk), in the
// checkpoint's dtype `stored`; of those in `means` the running mean. On every rank, for adapters
// are small. Collective.
absl::StatusOr<std::map<std::string, Tensor>> LoadAdapters(FileSystem& files, Communicator& comm,
                                                           const std::string& step_directory,
                                                           const Model& adapted,
                                                           at::ScalarType stored,
                                                           const std::set<std::string>& means);

// Adds to `data`, elements [begin, begin + data.numel()) of a weight as it lies on disk, what its
// adapter does, if it has one: W + alpha / rank B A. In place.
void MergeAdapter(const std::map<std::string, Tensor>& adapters, const Model& adapted,
                  const ParameterSpec& spec, int64_t begin, Tensor& data);

// The two files of models/adapters/adapter_folder.h, by name.
absl::StatusOr<std::map<std::string, std::string>> AdapterFiles(
    const std::map<std::string, Tensor>& adapters, const std::string& config, at::ScalarType dtype);

}  // namespace shoal
