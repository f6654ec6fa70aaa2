#define SHOAL_ISA avx512bf16
#include "kernels/simd/vector.h"

// Each builds on those before it.
// clang-format off
#include "kernels/simd/elementwise.inc"
#include "kernels/simd/dropout.inc"
#include "kernels/simd/gemm.inc"
#include "kernels/simd/attention.inc"
#include "kernels/simd/table.inc"
// clang-format on
