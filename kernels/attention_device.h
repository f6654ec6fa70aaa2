// Attention's operands between attention.cc and the kernels of a device.
#pragma once

#include "kernels/attention.h"

namespace shoal {

// Of one call. Rows of a head are dense.
struct AttentionOperands {
  Tensor q, k, v, out;
  Tensor lse_BNT;  // float32
  AttentionPiece piece;
  Tensor running = {};  // float32, or undefined: these are all keys

  int64_t group() const { return q.size(2) / k.size(2); }
  float scale() const;
};

// Of q, k and v. Written, or, where they are sums of several calls' (float32), added to.
struct AttentionGradients {
  Tensor q, k, v;
  bool sums = false;
};

// Whether q's device has a kernel for it: the forward and backward pass.
bool HasDeviceAttention(const Tensor& q_BTNH);
void AttendOnDevice(const AttentionOperands& x);
void AttendBackwardOnDevice(const AttentionOperands& x, const Tensor& grad_out,
                            const AttentionGradients& grads);

// libtorch's attention, for the calls of a GPU where it is the better choice; differentiable.
bool PrefersLibraryAttention(const Tensor& q_BTNH, const AttentionOptions& options);
Tensor LibraryAttention(const Tensor& q_BTNH, const Tensor& k_BTKH, const Tensor& v_BTKH,
                        double scale);

}  // namespace shoal
