#include "core/scalar_sum.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/stack.h>

namespace shoal {

void ScalarSum::Add(const at::Tensor& number) {
  const at::NoGradGuard no_grad;
  if (number.is_cpu())
    host_ += number.item<double>();
  else if (device_.defined())
    device_.add_(number.detach().to(at::kDouble));
  else
    device_ = number.detach().to(at::kDouble, /*non_blocking=*/false, /*copy=*/true);
}

double ScalarSum::Read() const { return ReadSums({this, 1})[0]; }

std::vector<double> ReadSums(std::span<const ScalarSum> sums) {
  std::vector<at::Tensor> numbers;
  for (const ScalarSum& sum : sums) {
    if (sum.device_.defined()) numbers.push_back(sum.device_);
  }
  const std::vector<double> read = ReadNumbers(numbers);
  std::vector<double> totals;
  size_t next = 0;
  for (const ScalarSum& sum : sums)
    totals.push_back(sum.host_ + (sum.device_.defined() ? read[next++] : 0.0));
  return totals;
}

std::vector<double> ReadNumbers(const std::vector<at::Tensor>& numbers) {
  if (numbers.empty()) return {};
  const at::Tensor host = at::stack(numbers).to(at::kCPU, at::kDouble).contiguous().view({-1});
  const double* values = host.const_data_ptr<double>();
  return {values, values + host.numel()};
}

}  // namespace shoal
