// Normalisation over the last dimension. Statistics in float32 (float64 for float64 inputs).
#pragma once

#include <utility>

#include "core/parameter.h"

namespace shoal {

// x / sqrt(mean(x^2) + epsilon) * weight (Zhang and Sennrich 2019). x: (..., C), weight: (C).
// Rounds like Hugging Face's LlamaRMSNorm: the normalised value to x's dtype, then the product.
Tensor RmsNorm(const Tensor& x, const Parameter& weight, double epsilon);

// (x - mean) / sqrt(var + epsilon) * weight + bias (Ba et al. 2016). x: (..., C), weight, bias:
// (C).
Tensor LayerNorm(const Tensor& x, const Parameter& weight, const Parameter& bias, double epsilon);

// sum = x + residual; returns {RmsNorm(sum), sum} in one pass over memory.
std::pair<Tensor, Tensor> AddRmsNorm(const Tensor& x, const Tensor& residual,
                                     const Parameter& weight, double epsilon);

}  // namespace shoal
