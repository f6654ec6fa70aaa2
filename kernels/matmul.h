// Dense products of 2-D views: c = a b (+ bias), or c += a b. oneDNN's JIT kernels serve float32
// and bfloat16 on every x86 vendor (MKL, behind at::matmul, takes a slow path on AMD); float16 is
// widened to float32, multiplied there and rounded once; ATen serves the rest.
#pragma once

#include "core/parameter.h"

namespace shoal {

struct MatMulOptions {
  bool accumulate = false;  // c += a b, in c's dtype, inside the product; otherwise c = a b
  Tensor bias;              // (N), added to each row; undefined: none. Not together with accumulate
};

// a: (M, K), b: (K, N), c: (M, N), c written in place. Any strides; dense matrices and their
// transposes are used where they lie, other views are copied first. a and b share a dtype; c may be
// float32 where they are bfloat16 or float16 (sums are float32 in any case). Safe to call from many
// threads.
//
// On the CPU up to kMaxRowsOfEqualBits rows of these three types take loops of our own that read b
// once where it lies, and with which a row of c has the same bits whatever the other rows and their
// number are: what a sequence generates does not depend on what shares its batch.
void MatMul(const Tensor& a_MK, const Tensor& b_KN, Tensor& c_MN,
            const MatMulOptions& options = {});

inline constexpr int64_t kMaxRowsOfEqualBits = 64;

enum class MatMulBackend { kOneDnn, kAten };

// Which library serves products of this dtype (float32 or bfloat16), for the whole process. oneDNN
// unless set. Ranks that must agree to the last bit must set the same.
void SetMatMulBackend(at::ScalarType dtype, MatMulBackend backend);
MatMulBackend GetMatMulBackend(at::ScalarType dtype);

// Times both libraries on one medium product (a few milliseconds). ATen if it is a fifth faster,
// else oneDNN: runs on one kind of machine must not differ by chance. Sets nothing.
MatMulBackend MeasureMatMulBackend(at::ScalarType dtype);

// FLOP/s of the best of a few large products on `num_threads` threads, with the library in use.
// Takes under half a second. What MFU is reported against.
double MeasureMatMulPeak(at::ScalarType dtype, int num_threads);

// The same of a device other than the CPU: of square products of 512 rows and up, until one takes
// long enough to fill it.
double MeasureMatMulPeak(at::ScalarType dtype, at::Device device);

struct MemoryBandwidth {
  double read_bytes_per_second = 0;
  double copy_bytes_per_second = 0;  // Bytes copied; each is read and written
};

// Best of a few passes over buffers larger than the last-level cache, on `num_threads` threads.
MemoryBandwidth MeasureMemoryBandwidth(int num_threads);

}  // namespace shoal
