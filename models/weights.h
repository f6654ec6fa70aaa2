// Weights of a model from a Hugging Face folder, or from a seed.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "models/forward.h"
#include "models/safetensors.h"

namespace shoal {

// model.safetensors, or the shards that model.safetensors.index.json names, beside a config.json.
// Reads the bytes that are asked for and no others, so each rank of a job reads its own part. Const
// methods are thread-safe.
class WeightReader {
 public:
  // Reads the headers and checks them against the model: missing, unknown and wrongly shaped
  // tensors are one error that lists them by name. Names may lack the family's prefix ("wte.weight"
  // for "transformer.wte.weight"), or carry it in excess. A tied weight may be stored twice if its
  // bytes are equal; buffers of old checkpoints that the family lists are ignored. A folder of
  // adapters is read with the folder of its base model.
  static absl::StatusOr<WeightReader> Open(FileSystem& files, const std::string& directory,
                                           const Model& model);

  // Fills contiguous `out`, of any floating dtype, shape and device, with elements [begin, begin +
  // out.numel()) of the flattened weight, converted from the file's dtype.
  absl::Status Read(const ParameterSpec& spec, int64_t begin, Tensor& out) const;

  // The same of elements counted in the order of memory (see TensorCut), `out` of one dimension. Of
  // a matrix that lies transposed, the columns that hold them are read.
  absl::Status ReadInMemoryOrder(const ParameterSpec& spec, int64_t begin, Tensor& out) const;

  // False of weights that a folder need not hold, because training starts them: adapters, and the
  // score head on the weights of a language model.
  bool Holds(const ParameterSpec& spec) const { return places_.contains(spec.name); }

  // Bytes of tensors (headers aside) read since Open.
  int64_t bytes_read() const;

 private:
  struct Place {
    int file;
    int tensor;
  };
  absl::Status OpenFile(FileSystem& files, const std::string& path, bool of_adapter);
  absl::Status Bind(const Model& model, const std::string& directory);
  const Place* FindStored(const std::string& name, const std::string& prefix) const;
  const SafetensorsEntry& EntryAt(const Place& place) const {
    return files_[place.file]->tensors()[place.tensor];
  }
  absl::Status CheckTiedCopies(const Model& model) const;

  std::vector<std::unique_ptr<SafetensorsReader>> files_;
  std::map<std::string, Place> stored_;  // By the name in the file
  std::map<std::string, Place> places_;  // By ParameterSpec::name
};

// All weights of a folder in `dtype` (buffers: in at least float32), without gradients.
// InvalidArgument: it does not hold them all.
absl::StatusOr<ModelWeights> LoadAllWeights(FileSystem& files, const Model& model,
                                            const std::string& directory, at::ScalarType dtype,
                                            at::Device device = at::kCPU);

// Contiguous `out` becomes elements [begin, begin + out.numel()), in the order of memory, of the
// whole weight's initial value: a function of `seed`, the weight's name and the element, the same
// on any number of ranks.
void InitializeSlice(const ParameterSpec& spec, uint64_t seed, int64_t begin, Tensor& out);

// All weights at their initial values, without gradients.
ModelWeights InitializeAllWeights(const Model& model, uint64_t seed, at::ScalarType dtype);

}  // namespace shoal
