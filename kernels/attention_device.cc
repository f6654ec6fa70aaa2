// Legend: B sequences, T queries, S key places, N heads, K key heads, H head_dim.
#include "kernels/attention_device.h"

#include <cmath>
#include <optional>

#include <ATen/ATen.h>

#include "kernels/device_kernels.h"
#include "kernels/dropout.h"
#include "kernels/fused.h"

namespace shoal {
namespace {

DeviceHeadStrides HeadStrides(const Tensor& x) { return {x.stride(0), x.stride(1), x.stride(2)}; }

// A call's arguments, and what they point to beside the call's own tensors.
struct DeviceOperands {
  explicit DeviceOperands(const AttentionOperands& x) {
    const AttentionPiece& piece = x.piece;
    call = {.batch = x.q.size(0),
            .queries = x.q.size(1),
            .keys = x.k.size(1),
            .heads = x.q.size(2),
            .key_heads = x.k.size(2),
            .head_dim = x.q.size(3),
            .query_place = piece.query_place,
            .key_place = piece.key_place,
            .scale = x.scale(),
            .q = x.q.const_data_ptr(),
            .k = x.k.const_data_ptr(),
            .v = x.v.const_data_ptr(),
            .q_strides = HeadStrides(x.q),
            .k_strides = HeadStrides(x.k),
            .v_strides = HeadStrides(x.v),
            .out = x.out.mutable_data_ptr(),
            .out_strides = HeadStrides(x.out),
            .lse = MutableData<float>(x.lse_BNT),
            .lse_batch_stride = x.lse_BNT.stride(0),
            .lse_head_stride = x.lse_BNT.stride(1)};
    if (piece.starts_BT.defined()) {
      starts =
          piece.starts_BT.to(x.q.device(), piece.starts_BT.scalar_type(), /*non_blocking=*/true);
      call.starts = Data<int32_t>(starts);
      call.starts_stride = starts.stride(0);
    }
    if (x.running.defined()) {
      call.running = MutableData<float>(x.running);
      call.running_strides = HeadStrides(x.running);
    }
    if (piece.dropout.rate > 0) {
      const simd::DropoutMask mask = MaskOf(piece.dropout.rate, 0);
      keys = piece.dropout.keys_B.to(x.q.device(), at::kLong, /*non_blocking=*/true).contiguous();
      call.dropout_keys = Data<int64_t>(keys);
      call.first_head = piece.dropout.first_head;
      call.threshold = mask.threshold;
      call.dropout_scale = mask.scale;
    }
  }

  DeviceAttention call;
  Tensor starts, keys;
};

}  // namespace

float AttentionOperands::scale() const {
  return static_cast<float>(piece.scale != 0 ? piece.scale
                                             : 1.0 / std::sqrt(static_cast<double>(q.size(3))));
}

bool HasDeviceAttention(const Tensor& q) {
  return DeviceKernelsFor(q) != nullptr && q.size(3) <= kDeviceMaxHeadDim;
}

void AttendOnDevice(const AttentionOperands& x) {
  const DeviceOperands operands(x);
  DeviceKernelsFor(x.q)->attention(CallOn(x.q), operands.call);
}

void AttendBackwardOnDevice(const AttentionOperands& x, const Tensor& grad_out,
                            const AttentionGradients& grads) {
  const DeviceOperands operands(x);
  const Tensor deltas_BNT =
      at::empty({x.q.size(0), x.q.size(2), x.q.size(1)}, x.q.options().dtype(at::kFloat));
  DeviceKernelsFor(x.q)->attention_backward(CallOn(x.q), operands.call,
                                            {.grad_out = grad_out.const_data_ptr(),
                                             .grad_out_strides = HeadStrides(grad_out),
                                             .grad_q = grads.q.mutable_data_ptr(),
                                             .grad_k = grads.k.mutable_data_ptr(),
                                             .grad_v = grads.v.mutable_data_ptr(),
                                             .grad_q_strides = HeadStrides(grads.q),
                                             .grad_k_strides = HeadStrides(grads.k),
                                             .grad_v_strides = HeadStrides(grads.v),
                                             .sums = grads.sums,
                                             .deltas = MutableData<float>(deltas_BNT)});
}

// Our own kernel computes in float32 outside the tensor cores; FlashAttention and cuDNN, which
// libtorch chooses among, use them. They know neither documents nor our dropout's masks, and other
// head sizes would take libtorch's path that holds the scores.
bool PrefersLibraryAttention(const Tensor& q, const AttentionOptions& options) {
  const bool half = q.scalar_type() == at::kBFloat16 || q.scalar_type() == at::kHalf;
  return q.is_cuda() && half && !options.documents_BT.defined() && options.dropout.rate == 0 &&
         q.size(3) % 8 == 0 && q.size(3) <= 256;
}

Tensor LibraryAttention(const Tensor& q, const Tensor& k, const Tensor& v, double scale) {
  const std::optional<double> given = scale != 0 ? std::optional<double>(scale) : std::nullopt;
  return at::scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2),
                                          /*attn_mask=*/{}, /*dropout_p=*/0, /*is_causal=*/true,
                                          given, /*enable_gqa=*/q.size(2) != k.size(2))
      .transpose(1, 2)
      .contiguous();  // As it comes from FlashAttention, not from every other
}

}  // namespace shoal
