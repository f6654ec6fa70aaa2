// How a block declares its weights: by slot, named through the family's table.
#pragma once

#include <string>
#include <vector>

#include "core/parameter.h"
#include "core/status.h"
#include "models/model_config.h"
#include "parallel/tensor_parallel.h"

namespace shoal {

// Collects a block's parameters in order; the first slot that the family has no name for is its
// error.
class ParameterList {
 public:
  ParameterList(const ModelConfig& config, int64_t layer, const TensorPlace& place)
      : config_(config), layer_(layer), place_(place) {}

  // Each returns the place of the weight in the block's parameters. Shapes are of this rank's part.
  int Matrix(const std::string& slot, std::vector<int64_t> shape, double stddev,
             const TensorCut& cut = {});
  int Scale(const std::string& slot, int64_t size);  // Of a norm: starts at one
  int Bias(const std::string& slot, int64_t size, const TensorCut& cut = {});  // Starts at zero

  // A matrix that every tensor-parallel rank holds whole and multiplies all rows by, but whose
  // gradient each computes a part of.
  int SharedMatrix(const std::string& slot, std::vector<int64_t> shape, double stddev);
  // As Scale, of a norm that each tensor-parallel rank applies to heads of its own.
  int SharedScale(const std::string& slot, int64_t size);
  // Zeros that a rule of its own writes: see ParameterSpec::buffer.
  int Buffer(const std::string& slot, int64_t size);
  // Of expert number `expert`.
  int ExpertMatrix(const std::string& slot, int64_t expert, std::vector<int64_t> shape,
                   double stddev, const TensorCut& cut);

  // A weight that every family calls `name`.
  int Named(const std::string& name, std::vector<int64_t> shape, const Initializer& init);
  // Part "lora_A" or "lora_B" of the adapter of the matrix at `slot` (without its ".weight");
  // stddev 0: starts at zero. Where several tensor-parallel ranks hold a part whole, each computes
  // a part of its gradient.
  int Adapter(const std::string& slot, const char* part, std::vector<int64_t> shape, double stddev,
              const TensorCut& cut);
  // Null: the model has no adapters.
  const LoraOptions* lora() const { return config_.lora ? &*config_.lora : nullptr; }
  std::string ModuleOf(const std::string& slot) const;

  const TensorPlace& place() const { return place_; }

  const absl::Status& status() const { return status_; }
  std::vector<ParameterSpec> Take() { return std::move(specs_); }

 private:
  int Add(const std::string& slot, std::vector<int64_t> shape, Initializer init, bool decay,
          const TensorCut& cut, int64_t expert = 0);
  int AddSpec(ParameterSpec spec);

  const ModelConfig& config_;
  int64_t layer_;
  TensorPlace place_;
  std::vector<ParameterSpec> specs_;
  absl::Status status_;
};

}  // namespace shoal
