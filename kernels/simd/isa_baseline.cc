#define SHOAL_ISA baseline
#include "kernels/simd/vector.h"

#include "kernels/simd/elementwise.inc"
#include "kernels/simd/gemm.inc"
#include "kernels/simd/attention.inc"
#include "kernels/simd/table.inc"
