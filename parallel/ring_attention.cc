// Legend: as context_parallel.h.
#include <ATen/ATen.h>
#include <torch/csrc/autograd/custom_function.h>

#include "core/dtype.h"
#include "parallel/context_parallel.h"

namespace shoal {
namespace {

// One call's way round the ring.
class Ring {
 public:
  Ring(const ContextParallel& context, int64_t own, AttentionPiece piece)
      : context_(context), own_(own), piece_(std::move(piece)) {}

  int size() const { return context_.size(); }
  // The rank whose keys are here at a step.
  int OwnerAt(int step) const { return (context_.rank() + size() - step) % size(); }

  void Send(const Tensor& x) const { context_.comm().Send(x, (context_.rank() + 1) % size()); }
  Tensor Receive(at::IntArrayRef sizes, at::ScalarType dtype) const {
    Tensor x = at::empty(sizes, at::TensorOptions(dtype).device(context_.comm().device()));
    context_.comm().Recv(x, OwnerAt(1));
    return x;
  }

  // visit(query half, key half, piece) of this rank's queries and the owner's keys, where the
  // causal mask leaves something.
  template <class Visit>
  void ForPieces(int owner, Visit visit) const {
    for (int query = 0; query < 2; ++query) {
      for (int key = 0; key < 2; ++key) {
        AttentionPiece piece = piece_;
        piece.query_place = context_.PieceBegin(context_.rank(), query, own_);
        piece.key_place = context_.PieceBegin(owner, key, own_);
        if (piece.key_place > piece.query_place) continue;
        if (piece.starts_BT.defined()) piece.starts_BT = Half(piece.starts_BT, query);
        visit(query, key, piece);
      }
    }
  }

  Tensor Half(const Tensor& x_BtNH, int half) const {
    return x_BtNH.narrow(1, half * own_ / 2, own_ / 2);
  }
  AttentionSoFar Half(const AttentionSoFar& so_far, int half) const {
    return so_far.Narrow(half * own_ / 2, own_ / 2);
  }

 private:
  const ContextParallel& context_;
  const int64_t own_;
  const AttentionPiece piece_;
};

AttentionSoFar RingForward(const Ring& ring, const Tensor& q, const Tensor& k, const Tensor& v) {
  AttentionSoFar all(q);
  Tensor keys = at::stack({k, v});
  for (int step = 0; step < ring.size(); ++step) {
    const bool last = step + 1 == ring.size();
    if (!last) ring.Send(keys);
    ring.ForPieces(ring.OwnerAt(step), [&](int query, int key, const AttentionPiece& piece) {
      AttentionSoFar part = ring.Half(all, query);
      AttendPiece(ring.Half(q, query), ring.Half(keys[0], key), ring.Half(keys[1], key), piece,
                  part);
    });
    if (!last) keys = ring.Receive(keys.sizes(), keys.scalar_type());
  }
  return all;
}

// Keys go round as in the forward pass. Their gradients follow one step behind from the first rank
// that is not their owner, which gets them from the last one.
AttentionSums RingBackward(const Ring& ring, const Tensor& q, const Tensor& k, const Tensor& v,
                           const AttentionSoFar& all, const Tensor& grad_out) {
  const at::ScalarType sum = SumDtype(q.scalar_type());
  const Tensor grad_q = at::zeros(q.sizes(), q.options().dtype(sum));
  Tensor keys = at::stack({k, v});
  const Tensor own_grads = at::zeros(keys.sizes(), keys.options().dtype(sum));
  for (int step = 0; step < ring.size(); ++step) {
    const bool last = step + 1 == ring.size();
    if (!last) ring.Send(keys);
    Tensor grads = own_grads;
    if (step == 1) grads = at::zeros_like(own_grads);
    if (step > 1) grads = ring.Receive(own_grads.sizes(), sum);
    ring.ForPieces(ring.OwnerAt(step), [&](int query, int key, const AttentionPiece& piece) {
      AttendPieceBackward(ring.Half(q, query), ring.Half(keys[0], key), ring.Half(keys[1], key),
                          piece, ring.Half(all, query), ring.Half(grad_out, query),
                          {.q_BTNH = ring.Half(grad_q, query),
                           .k_BSKH = ring.Half(grads[0], key),
                           .v_BSKH = ring.Half(grads[1], key)});
    });
    if (!last) keys = ring.Receive(keys.sizes(), keys.scalar_type());
    if (step > 0) ring.Send(grads);
  }
  if (ring.size() > 1) own_grads.add_(ring.Receive(own_grads.sizes(), sum));
  return {.q_BTNH = grad_q, .k_BSKH = own_grads[0], .v_BSKH = own_grads[1]};
}

struct RingAttentionFunction : torch::autograd::Function<RingAttentionFunction> {
  static Tensor forward(torch::autograd::AutogradContext* ctx, const Tensor& q, const Tensor& k,
                        const Tensor& v, const ContextParallel* context,
                        const AttentionOptions& options) {
    const AttentionPiece piece{
        .scale = options.scale, .starts_BT = options.documents_BT, .dropout = options.dropout};
    SavePiece(*ctx, piece);
    const Ring ring(*context, q.size(1), piece);
    const AttentionSoFar all = RingForward(ring, q, k, v);
    ctx->save_for_backward({q, k, v, all.out_BTNH});
    ctx->saved_data["lse"] = all.lse_BNT;
    ctx->saved_data["context"] = reinterpret_cast<int64_t>(context);
    return all.out_BTNH;
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* ctx,
                                                 torch::autograd::variable_list grads) {
    const torch::autograd::variable_list saved = ctx->get_saved_variables();
    const Tensor &q = saved[0], &k = saved[1], &v = saved[2];
    const auto* context =
        reinterpret_cast<const ContextParallel*>(ctx->saved_data["context"].toInt());
    const Ring ring(*context, q.size(1), SavedPiece(*ctx));
    const AttentionSoFar all(saved[3], ctx->saved_data["lse"].toTensor());
    const AttentionSums sums = RingBackward(ring, q, k, v, all, grads[0]);
    return {sums.q_BTNH.to(q.scalar_type()), sums.k_BSKH.to(k.scalar_type()),
            sums.v_BSKH.to(v.scalar_type()), Tensor(), Tensor()};
  }
};

}  // namespace

Tensor RingAttention(const ContextParallel& context, const Tensor& q_BtNH, const Tensor& k_BtKH,
                     const Tensor& v_BtKH, const AttentionOptions& options) {
  return RingAttentionFunction::apply(q_BtNH, k_BtKH, v_BtKH, &context, options);
}

}  // namespace shoal
