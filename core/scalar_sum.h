// Numbers that a device computes, added up there: reading one waits for all that the device was
// given before it, so sums are read together and once.
#pragma once

#include <span>
#include <vector>

#include <ATen/core/Tensor.h>

namespace shoal {

// Adds in float64, in the order of the calls: the same bits wherever the numbers lie.
class ScalarSum {
 public:
  // () of any floating dtype. In host memory it is read at once.
  void Add(const at::Tensor& number);
  void Add(double number) { host_ += number; }

  double Read() const;

 private:
  friend std::vector<double> ReadSums(std::span<const ScalarSum> sums);

  double host_ = 0;
  at::Tensor device_;  // () float64: what was added as a device's tensors; undefined: nothing
};

// All of them for one wait.
std::vector<double> ReadSums(std::span<const ScalarSum> sums);
// The numbers themselves: () or one-element tensors of one dtype, all on one device.
std::vector<double> ReadNumbers(const std::vector<at::Tensor>& numbers);

}  // namespace shoal
