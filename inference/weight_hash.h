// A number that tells whether two sets of weights are the same to the last bit, however they are
// cut.
#pragma once

#include <cstdint>
#include <string>

#include "core/parameter.h"

namespace shoal {

// Of every element of a model's weights, a sum modulo 2^64 over (name, place in the whole weight,
// bits): ranks that hold parts add up theirs, whatever the parts.
//
//   WeightHash hash;
//   hash.Add("model.norm.weight", 0, value);
//   hash.Total();
class WeightHash {
 public:
  // `elements`: contiguous, places [begin, begin + numel) of the weight in the order of memory. On
  // a device they are added up there, all on one device.
  void Add(const std::string& name, int64_t begin, const Tensor& elements);
  // Waits for the device, if there is one.
  uint64_t Total() const;

 private:
  uint64_t on_host_ = 0;
  Tensor on_device_;  // () int64; undefined: nothing
};

uint64_t HashElements(const std::string& name, int64_t begin, const Tensor& elements);

}  // namespace shoal
