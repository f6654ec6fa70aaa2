// Legend: B sequences, T queries, S key places, N heads, K key heads, H head_dim.
#include "kernels/attention.h"

#include <cmath>
#include <limits>

#include <ATen/ATen.h>
#include <torch/csrc/autograd/custom_function.h>

#include "core/dtype.h"
#include "core/random.h"
#include "core/status.h"
#include "core/trace.h"
#include "kernels/attention_device.h"
#include "kernels/device_kernels.h"
#include "kernels/dropout.h"
#include "kernels/fused.h"
#include "kernels/reference.h"
#include "kernels/threads.h"

namespace shoal {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// Rows of one head may lie apart, elements of a row not.
Tensor WithDenseRows(const Tensor& x) {
  return x.stride(3) == 1 || x.size(3) == 1 ? x : x.contiguous();
}

// Head n of sequence b of a (B, T, N, H) tensor; its rows are x.stride(1) apart.
template <class T>
T* HeadAt(const Tensor& x, int64_t b, int64_t n) {
  const int64_t offset = b * x.stride(0) + n * x.stride(2);
  if constexpr (std::is_const_v<T>) {
    return Data<std::remove_const_t<T>>(x) + offset;
  } else {
    return MutableData<T>(x) + offset;
  }
}

using Operands = AttentionOperands;

const int32_t* Starts(const Operands& x, int64_t b) {
  const Tensor& starts = x.piece.starts_BT;
  return starts.defined() ? Data<int32_t>(starts) + b * starts.stride(0) : nullptr;
}

// Whether any query of sequence b sees any key: starts do not decrease.
bool Meet(const Operands& x, int64_t b) {
  const AttentionPiece& piece = x.piece;
  return x.q.size(1) > 0 && piece.query_place + x.q.size(1) > piece.key_place &&
         (!piece.starts_BT.defined() || *Starts(x, b) < piece.key_place + x.k.size(1));
}

template <class T>
simd::AttentionHead<T> Head(const Operands& x, int64_t b, int64_t n) {
  const int64_t key_head = n / x.group();
  const AttentionDropout& dropout = x.piece.dropout;
  return {.queries = x.q.size(1),
          .keys = x.k.size(1),
          .head_dim = x.q.size(3),
          .query_place = x.piece.query_place,
          .key_place = x.piece.key_place,
          .starts = Starts(x, b),
          .scale = x.scale(),
          .q = HeadAt<const T>(x.q, b, n),
          .k = HeadAt<const T>(x.k, b, key_head),
          .v = HeadAt<const T>(x.v, b, key_head),
          .q_stride = x.q.stride(1),
          .k_stride = x.k.stride(1),
          .v_stride = x.v.stride(1),
          .out = HeadAt<T>(x.out, b, n),
          .out_stride = x.out.stride(1),
          .lse = MutableData<float>(x.lse_BNT) + b * x.lse_BNT.stride(0) + n * x.lse_BNT.stride(1),
          .running = x.running.defined() ? HeadAt<float>(x.running, b, n) : nullptr,
          .running_stride = x.running.defined() ? x.running.stride(1) : 0,
          .dropout =
              dropout.rate > 0 ? MaskOf(dropout.rate, dropout.HeadKey(b, n)) : simd::DropoutMask()};
}

Tensor Scratch(int64_t bytes) { return at::empty({bytes}, at::kByte); }

template <class T>
void Forward(const Operands& x) {
  const int64_t heads = x.q.size(2);
  const auto& kernels = simd::KernelsFor<T>();
  ParallelFor(x.q.size(0) * heads, 1, [&](int64_t begin, int64_t end) {
    Tensor scratch =
        Scratch(kernels.attention_scratch_bytes(x.q.size(1), x.k.size(1), x.q.size(3), false));
    for (int64_t i = begin; i < end; ++i) {
      if (x.running.defined() && !Meet(x, i / heads)) continue;
      const bool keys_are_packed = i > begin && i % heads % x.group() != 0;
      kernels.attention(Head<T>(x, i / heads, i % heads), keys_are_packed,
                        scratch.mutable_data_ptr());
    }
  });
}

using Gradients = AttentionGradients;

template <class T>
simd::AttentionGradients<T> HeadGradients(const Gradients& grads, const Tensor& grad_out, int64_t b,
                                          int64_t n, int64_t key_head) {
  simd::AttentionGradients<T> head{.grad_out = HeadAt<const T>(grad_out, b, n),
                                   .grad_out_stride = grad_out.stride(1),
                                   .grad_q = nullptr,
                                   .grad_k = nullptr,
                                   .grad_v = nullptr,
                                   .grad_q_stride = grads.q.stride(1),
                                   .grad_k_stride = grads.k.stride(1),
                                   .grad_v_stride = grads.v.stride(1)};
  if (grads.sums) {
    head.sum_q = HeadAt<float>(grads.q, b, n);
    head.sum_k = HeadAt<float>(grads.k, b, key_head);
    head.sum_v = HeadAt<float>(grads.v, b, key_head);
  } else {
    head.grad_q = HeadAt<T>(grads.q, b, n);
    head.grad_k = HeadAt<T>(grads.k, b, key_head);
    head.grad_v = HeadAt<T>(grads.v, b, key_head);
  }
  return head;
}

template <class T>
void Backward(const Operands& x, const Tensor& grad_out, const Gradients& grads) {
  const int64_t key_heads = x.k.size(2), group = x.group();
  const auto& kernels = simd::KernelsFor<T>();
  // A key head's gradients sum over its group of query heads, in order, on one thread.
  ParallelFor(x.q.size(0) * key_heads, 1, [&](int64_t begin, int64_t end) {
    Tensor scratch =
        Scratch(kernels.attention_scratch_bytes(x.q.size(1), x.k.size(1), x.q.size(3), true));
    std::vector<simd::AttentionHead<T>> heads(group);
    std::vector<simd::AttentionGradients<T>> head_grads(group);
    for (int64_t i = begin; i < end; ++i) {
      const int64_t b = i / key_heads, key_head = i % key_heads;
      if (grads.sums && !Meet(x, b)) continue;
      for (int64_t g = 0; g < group; ++g) {
        const int64_t n = key_head * group + g;
        heads[g] = Head<T>(x, b, n);
        head_grads[g] = HeadGradients<T>(grads, grad_out, b, n, key_head);
      }
      kernels.attention_backward(heads.data(), head_grads.data(), group,
                                 scratch.mutable_data_ptr());
    }
  });
}

void RunForward(const Operands& x) {
  if (DeviceKernelsFor(x.q)) return AttendOnDevice(x);
  DispatchFused(x.q, [&]<class T>(T) { Forward<T>(x); });
}

void RunBackward(const Operands& x, const Tensor& grad_out, const Gradients& grads) {
  if (DeviceKernelsFor(x.q)) return AttendBackwardOnDevice(x, grad_out, grads);
  DispatchFused(x.q, [&]<class T>(T) { Backward<T>(x, grad_out, grads); });
}

bool HasAttentionKernel(const Tensor& q) {
  return DeviceKernelsFor(q) ? HasDeviceAttention(q) : IsFused(q);
}

struct CausalAttentionFunction : torch::autograd::Function<CausalAttentionFunction> {
  static Tensor forward(AutogradContext* ctx, const Tensor& q, const Tensor& k, const Tensor& v,
                        const AttentionOptions& options) {
    const Operands x{
        .q = WithDenseRows(q),
        .k = WithDenseRows(k),
        .v = WithDenseRows(v),
        .out = at::empty(q.sizes(), q.options()),
        .lse_BNT = at::empty({q.size(0), q.size(2), q.size(1)}, q.options().dtype(at::kFloat)),
        .piece = {.scale = options.scale,
                  .starts_BT = options.documents_BT.defined() ? DocumentStarts(options.documents_BT)
                                                              : Tensor(),
                  .dropout = options.dropout}};
    RunForward(x);
    ctx->save_for_backward({x.q, x.k, x.v, x.out});
    ctx->saved_data["lse"] = x.lse_BNT;
    SavePiece(*ctx, x.piece);
    return x.out;
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const TraceSpan span(TraceKind::kAttention, "attention backward");
    const variable_list saved = ctx->get_saved_variables();
    const Operands x{.q = saved[0],
                     .k = saved[1],
                     .v = saved[2],
                     .out = saved[3],
                     .lse_BNT = ctx->saved_data["lse"].toTensor(),
                     .piece = SavedPiece(*ctx)};
    const Tensor grad_out = WithDenseRows(grads[0]);
    const Gradients result{at::empty(x.q.sizes(), x.q.options()),
                           at::empty(x.k.sizes(), x.k.options()),
                           at::empty(x.v.sizes(), x.v.options())};
    RunBackward(x, grad_out, result);
    return {result.q, result.k, result.v, Tensor()};
  }
};

void CheckShapes(const char* what, const Tensor& q, const Tensor& k, const Tensor& v) {
  SHOAL_CHECK(q.dim() == 4 && k.dim() == 4 && v.sizes() == k.sizes() && q.size(0) == k.size(0) &&
              q.size(3) == k.size(3) && k.size(2) > 0 && q.size(2) % k.size(2) == 0 &&
              k.scalar_type() == q.scalar_type() && v.scalar_type() == q.scalar_type())
      << what << ": q " << q.sizes() << ", k " << k.sizes() << ", v " << v.sizes()
      << "; want (B, T, N, H) and twice (B, S, K, H) of one dtype, K dividing N";
}

}  // namespace

uint64_t AttentionDropout::HeadKey(int64_t b, int64_t n) const {
  return SubStream(static_cast<uint64_t>(keys_B.const_data_ptr<int64_t>()[b]),
                   static_cast<uint64_t>(first_head + n));
}

Tensor CausalAttention(const Tensor& q_BTNH, const Tensor& k_BTKH, const Tensor& v_BTKH,
                       const AttentionOptions& options) {
  const TraceSpan span(TraceKind::kAttention, "attention");
  CheckShapes("CausalAttention", q_BTNH, k_BTKH, v_BTKH);
  SHOAL_CHECK(k_BTKH.size(1) == q_BTNH.size(1))
      << "CausalAttention: " << q_BTNH.size(1) << " queries, " << k_BTKH.size(1) << " keys";
  if (!HasAttentionKernel(q_BTNH))
    return reference::CausalAttention(q_BTNH, k_BTKH, v_BTKH, options);
  if (PrefersLibraryAttention(q_BTNH, options))
    return LibraryAttention(q_BTNH, k_BTKH, v_BTKH, options.scale);
  return CausalAttentionFunction::apply(q_BTNH, k_BTKH, v_BTKH, options);
}

void SavePiece(AutogradContext& ctx, const AttentionPiece& piece) {
  ctx.saved_data["starts"] = piece.starts_BT;
  ctx.saved_data["scale"] = piece.scale;
  ctx.saved_data["dropout_rate"] = piece.dropout.rate;
  ctx.saved_data["dropout_keys"] = piece.dropout.keys_B;
  ctx.saved_data["first_head"] = piece.dropout.first_head;
}

AttentionPiece SavedPiece(AutogradContext& ctx) {
  return {.scale = ctx.saved_data["scale"].toDouble(),
          .starts_BT = ctx.saved_data["starts"].toTensor(),
          .dropout = {.rate = ctx.saved_data["dropout_rate"].toDouble(),
                      .keys_B = ctx.saved_data["dropout_keys"].toTensor(),
                      .first_head = ctx.saved_data["first_head"].toInt()}};
}

AttentionSoFar::AttentionSoFar(const Tensor& q)
    : out_BTNH(at::zeros(q.sizes(), q.options())),
      running_BTNH(SumDtype(q.scalar_type()) == q.scalar_type()
                       ? out_BTNH
                       : at::zeros(q.sizes(), q.options().dtype(SumDtype(q.scalar_type())))),
      lse_BNT(at::full({q.size(0), q.size(2), q.size(1)}, -std::numeric_limits<double>::infinity(),
                       running_BTNH.options())) {}

AttentionSoFar AttentionSoFar::Narrow(int64_t first, int64_t count) const {
  AttentionSoFar part;
  part.out_BTNH = out_BTNH.narrow(1, first, count);
  if (running_BTNH.defined()) part.running_BTNH = running_BTNH.narrow(1, first, count);
  part.lse_BNT = lse_BNT.narrow(2, first, count);
  return part;
}

void AttendPiece(const Tensor& q_BTNH, const Tensor& k_BSKH, const Tensor& v_BSKH,
                 const AttentionPiece& piece, AttentionSoFar& so_far) {
  const TraceSpan span(TraceKind::kAttention, "attention");
  CheckShapes("AttendPiece", q_BTNH, k_BSKH, v_BSKH);
  if (!HasAttentionKernel(q_BTNH))
    return reference::AttendPiece(q_BTNH, k_BSKH, v_BSKH, piece, so_far);
  const Operands x{.q = WithDenseRows(q_BTNH),
                   .k = WithDenseRows(k_BSKH),
                   .v = WithDenseRows(v_BSKH),
                   .out = so_far.out_BTNH,
                   .lse_BNT = so_far.lse_BNT,
                   .piece = piece,
                   .running = so_far.running_BTNH};
  RunForward(x);
}

void AttendPieceBackward(const Tensor& q_BTNH, const Tensor& k_BSKH, const Tensor& v_BSKH,
                         const AttentionPiece& piece, const AttentionSoFar& all,
                         const Tensor& grad_out_BTNH, const AttentionSums& sums) {
  const TraceSpan span(TraceKind::kAttention, "attention backward");
  CheckShapes("AttendPieceBackward", q_BTNH, k_BSKH, v_BSKH);
  if (!HasAttentionKernel(q_BTNH)) {
    return reference::AttendPieceBackward(q_BTNH, k_BSKH, v_BSKH, piece, all, grad_out_BTNH, sums);
  }
  const Operands x{.q = WithDenseRows(q_BTNH),
                   .k = WithDenseRows(k_BSKH),
                   .v = WithDenseRows(v_BSKH),
                   .out = all.out_BTNH,
                   .lse_BNT = all.lse_BNT,
                   .piece = piece};
  const Tensor grad_out = WithDenseRows(grad_out_BTNH);
  const Gradients grads{sums.q_BTNH, sums.k_BSKH, sums.v_BSKH, /*sums=*/true};
  RunBackward(x, grad_out, grads);
}

namespace {

// The last place so far that differs from the one before it.
Tensor StartsByOperators(const Tensor& documents) {
  const int64_t length = documents.size(1);
  if (length == 0) return at::empty_like(documents);
  const Tensor places = at::arange(length, documents.options()).expand_as(documents);
  const Tensor same = documents.narrow(1, 1, length - 1).eq(documents.narrow(1, 0, length - 1));
  const Tensor starts = places.clone();
  starts.narrow(1, 1, length - 1).masked_fill_(same, 0);
  return std::get<0>(starts.cummax(1));
}

}  // namespace

Tensor DocumentStarts(const Tensor& documents_BT) {
  const Tensor documents = documents_BT.to(at::kInt).contiguous();
  if (!documents.device().is_cpu()) return StartsByOperators(documents);
  Tensor starts = at::empty_like(documents);
  const int64_t length = documents.size(1);
  for (int64_t b = 0; b < documents.size(0); ++b) {
    const int32_t* row = Data<int32_t>(documents) + b * length;
    int32_t* out = MutableData<int32_t>(starts) + b * length;
    for (int64_t t = 0; t < length; ++t) {
      out[t] = t > 0 && row[t] == row[t - 1] ? out[t - 1] : static_cast<int32_t>(t);
    }
  }
  return starts;
}

}  // namespace shoal
