#include "kernels/weight_gradients.h"

#include <utility>

namespace shoal {
namespace {

thread_local WeightGradientWork* later_of_this_thread = nullptr;

}  // namespace

DeferWeightGradients::DeferWeightGradients(WeightGradientWork& later)
    : before_(std::exchange(later_of_this_thread, &later)) {}

DeferWeightGradients::~DeferWeightGradients() { later_of_this_thread = before_; }

void DoWeightGradient(std::function<void()> product) {
  if (later_of_this_thread)
    later_of_this_thread->push_back(std::move(product));
  else
    product();
}

}  // namespace shoal
