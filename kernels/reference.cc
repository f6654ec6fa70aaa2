#include "kernels/reference.h"

#include <cmath>
#include <limits>

#include <ATen/ATen.h>
#include <torch/csrc/autograd/custom_function.h>

#include "core/random.h"

namespace shoal {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// Identity on a weight; its backward adds the gradient to a buffer and lets nothing flow further.
struct WeightTap : torch::autograd::Function<WeightTap> {
  static Tensor forward(AutogradContext* ctx, const Tensor& value, const Tensor& grad) {
    ctx->saved_data["grad"] = grad;
    return value.view_as(value);
  }
  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    Tensor buffer = ctx->saved_data["grad"].toTensor();
    buffer.add_(grads[0]);
    return {Tensor(), Tensor()};
  }
};

// Half precision computes in float32.
at::ScalarType ComputeType(const Tensor& x) {
  return x.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
}

}  // namespace

Tensor WeightOf(const Parameter& parameter) {
  if (!parameter.grad.defined()) return parameter.value.detach();
  return WeightTap::apply(parameter.value, parameter.grad);
}

namespace reference {

Tensor Linear(const Tensor& x, const Tensor& weight, const Tensor& bias, LinearLayout layout) {
  Tensor y = at::matmul(x, layout == LinearLayout::kOutIn ? weight.t() : weight);
  return bias.defined() ? y + bias : y;
}

Tensor RmsNorm(const Tensor& x, const Tensor& weight, double epsilon) {
  Tensor wide = x.to(ComputeType(x));
  Tensor normalised = wide * at::rsqrt(wide.square().mean(-1, true) + epsilon);
  return normalised.to(x.scalar_type()) * weight;
}

Tensor LayerNorm(const Tensor& x, const Tensor& weight, const Tensor& bias, double epsilon) {
  Tensor wide = x.to(ComputeType(x));
  Tensor centred = wide - wide.mean(-1, true);
  Tensor normalised = centred * at::rsqrt(centred.square().mean(-1, true) + epsilon);
  Tensor y = normalised * weight.to(wide.scalar_type()) + bias.to(wide.scalar_type());
  return y.to(x.scalar_type());
}

Tensor ApplyRotary(const Tensor& x_BTNH, const Tensor& positions_BT, const RotaryTable& table) {
  const int64_t half = x_BTNH.size(3) / 2;
  Tensor flat = positions_BT.reshape({-1});
  const std::vector<int64_t> shape = {positions_BT.size(0), positions_BT.size(1), 1, half};
  Tensor cos = table.cos_PH.index_select(0, flat).view(shape);
  Tensor sin = table.sin_PH.index_select(0, flat).view(shape);
  Tensor wide = x_BTNH.to(cos.scalar_type());
  Tensor low = wide.narrow(3, 0, half), high = wide.narrow(3, half, half);
  return at::cat({low * cos - high * sin, high * cos + low * sin}, 3).to(x_BTNH.scalar_type());
}

Tensor SwiGlu(const Tensor& gate, const Tensor& up) {
  Tensor wide = gate.to(ComputeType(gate));
  return (wide * at::sigmoid(wide) * up.to(wide.scalar_type())).to(gate.scalar_type());
}

Tensor Gelu(const Tensor& x, GeluKind kind) {
  return at::gelu(x, kind == GeluKind::kTanh ? "tanh" : "none");
}

Tensor Embedding(const Tensor& indices, const Tensor& weight) {
  std::vector<int64_t> shape = indices.sizes().vec();
  shape.push_back(weight.size(1));
  return weight.index_select(0, indices.reshape({-1})).view(shape);
}

namespace {

// (rows, columns) float64 in host memory: 0 where dropped, else the scale. Row r at (places[r], 0
// ..) of keys[r].
Tensor DropoutFactors(double rate, const Tensor& device_keys_R, const Tensor& device_places_R,
                      int64_t columns) {
  const Tensor keys_R = device_keys_R.cpu(), places_R = device_places_R.cpu();
  const simd::DropoutMask mask = MaskOf(rate, 0);
  Tensor factors = at::empty({keys_R.numel(), columns}, at::kDouble);
  double* out = factors.mutable_data_ptr<double>();
  for (int64_t r = 0; r < keys_R.numel(); ++r) {
    const auto key = static_cast<uint64_t>(keys_R.const_data_ptr<int64_t>()[r]);
    const auto place = static_cast<uint32_t>(places_R.const_data_ptr<int64_t>()[r]);
    for (int64_t c = 0; c < columns; ++c) {
      const uint32_t word = ThreefryWord(key, place, static_cast<uint32_t>(c));
      *out++ = word >= mask.threshold ? 1 / (1 - rate) : 0.0;
    }
  }
  return factors;
}

}  // namespace

Tensor Dropout(const Tensor& x, double rate, const Tensor& keys_R, const Tensor& places_R) {
  return x * DropoutFactors(rate, keys_R, places_R, x.size(-1)).view(x.sizes()).to(x.options());
}

namespace {

// Of queries and keys at these places and the following ones.
struct ScoreBlock {
  int64_t queries, keys;
  int64_t query_place = 0, key_place = 0;
};

// (B, N, T, S) in host memory, as AttentionOptions::dropout has it.
Tensor AttentionFactors(const AttentionDropout& dropout, int64_t heads, const ScoreBlock& block) {
  const int64_t B = dropout.keys_B.size(0), queries = block.queries, keys = block.keys;
  Tensor factors = at::empty({B, heads, queries, keys}, at::kDouble);
  const Tensor places = at::arange(block.query_place, block.query_place + queries, at::kLong);
  for (int64_t b = 0; b < B; ++b) {
    for (int64_t n = 0; n < heads; ++n) {
      const Tensor stream =
          at::full({queries}, static_cast<int64_t>(dropout.HeadKey(b, n)), at::kLong);
      factors[b][n].copy_(DropoutFactors(dropout.rate, stream, places, block.key_place + keys)
                              .narrow(1, block.key_place, keys));
    }
  }
  return factors;
}

// softmax(q k^T * scale + mask) v for (B, N, T, H) tensors; rows without any key give zeros.
// `factors`, where defined, multiply the probabilities.
Tensor MaskedAttention(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& visible,
                       double scale, const Tensor& factors = {}) {
  Tensor scores = at::matmul(q, k.transpose(2, 3)) * scale;
  scores = scores.masked_fill(visible.logical_not(), -std::numeric_limits<double>::infinity());
  Tensor weights = at::softmax(scores, -1);
  weights = at::where(visible.any(-1, true), weights, at::zeros({}, weights.options()));
  if (factors.defined()) weights = weights * factors.to(weights.options());
  return at::matmul(weights, v);
}

// (B, S, K, H) -> (B, N, S, H) in the compute type, each key head repeated for its group of
// queries.
Tensor HeadsFirst(const Tensor& x, int64_t num_heads) {
  Tensor wide = x.to(ComputeType(x)).transpose(1, 2);
  return wide.size(1) == num_heads ? wide : wide.repeat_interleave(num_heads / wide.size(1), 1);
}

double ScaleOrDefault(double scale, int64_t head_dim) {
  return scale != 0 ? scale : 1.0 / std::sqrt(static_cast<double>(head_dim));
}

}  // namespace

Tensor CausalAttention(const Tensor& q_BTNH, const Tensor& k_BTKH, const Tensor& v_BTKH,
                       const AttentionOptions& options) {
  const int64_t num_heads = q_BTNH.size(2), length = q_BTNH.size(1);
  Tensor visible = at::ones({length, length}, q_BTNH.options().dtype(at::kBool))
                       .tril()
                       .view({1, 1, length, length});
  if (options.documents_BT.defined()) {
    const Tensor& documents = options.documents_BT;
    visible = visible.logical_and(documents.unsqueeze(2).eq(documents.unsqueeze(1)).unsqueeze(1));
  }
  Tensor out = MaskedAttention(
      HeadsFirst(q_BTNH, num_heads), HeadsFirst(k_BTKH, num_heads), HeadsFirst(v_BTKH, num_heads),
      visible, ScaleOrDefault(options.scale, q_BTNH.size(3)),
      options.dropout.rate > 0
          ? AttentionFactors(options.dropout, num_heads, {.queries = length, .keys = length})
          : Tensor());
  return out.transpose(1, 2).contiguous().to(q_BTNH.scalar_type());
}

namespace {

// One call of AttendPiece in the compute type, heads first.
struct PieceScores {
  PieceScores(const Tensor& q_BTNH, const Tensor& k_BSKH, const AttentionPiece& piece)
      : scale(ScaleOrDefault(piece.scale, q_BTNH.size(3))) {
    const ScoreBlock block{q_BTNH.size(1), k_BSKH.size(1), piece.query_place, piece.key_place};
    const int64_t heads = q_BTNH.size(2);
    q = HeadsFirst(q_BTNH, heads);
    k = HeadsFirst(k_BSKH, heads);
    const auto places = q.options().dtype(at::kLong);
    const Tensor query = at::arange(block.query_place, block.query_place + block.queries, places)
                             .view({1, 1, -1, 1});
    const Tensor key =
        at::arange(block.key_place, block.key_place + block.keys, places).view({1, 1, 1, -1});
    Tensor visible = key.le(query);
    if (piece.starts_BT.defined())
      visible = visible.logical_and(key.ge(piece.starts_BT.unsqueeze(1).unsqueeze(3)));
    scores = at::matmul(q, k.transpose(2, 3)) * (scale / std::log(2.0));
    scores = scores.masked_fill(visible.logical_not(), -std::numeric_limits<double>::infinity());
    if (piece.dropout.rate > 0)
      factors = AttentionFactors(piece.dropout, heads, block).to(q.options());
  }
  Tensor Dropped(const Tensor& x) const { return factors.defined() ? x * factors : x; }

  double scale;
  Tensor q, k;     // (B, N, T, H), (B, N, S, H)
  Tensor scores;   // (B, N, T, S) base 2, -inf where hidden
  Tensor factors;  // Of dropout, or undefined
};

// (B, N, S, H) -> (B, S, K, H): the sum over each key head's queries.
Tensor SumOverGroups(const Tensor& x, int64_t key_heads) {
  return x.view({x.size(0), key_heads, -1, x.size(2), x.size(3)}).sum(2).transpose(1, 2);
}

}  // namespace

void AttendPiece(const Tensor& q_BTNH, const Tensor& k_BSKH, const Tensor& v_BSKH,
                 const AttentionPiece& piece, AttentionSoFar& so_far) {
  const at::NoGradGuard no_grad;
  const PieceScores s(q_BTNH, k_BSKH, piece);
  const Tensor lse =
      at::logaddexp2(so_far.lse_BNT, at::logsumexp(s.scores * std::log(2.0), -1) / std::log(2.0));
  // A row that has met no key yet.
  const Tensor shift = at::where(lse.isinf(), at::zeros({}, lse.options()), lse);
  const Tensor p = s.Dropped(at::exp2(s.scores - shift.unsqueeze(-1)));
  const Tensor sum = at::matmul(p, HeadsFirst(v_BSKH, q_BTNH.size(2))).transpose(1, 2);
  const Tensor kept = at::exp2(so_far.lse_BNT - shift).transpose(1, 2).unsqueeze(-1);
  so_far.running_BTNH.copy_(so_far.running_BTNH * kept + sum);
  so_far.out_BTNH.copy_(so_far.running_BTNH);
  so_far.lse_BNT.copy_(lse);
}

void AttendPieceBackward(const Tensor& q_BTNH, const Tensor& k_BSKH, const Tensor& v_BSKH,
                         const AttentionPiece& piece, const AttentionSoFar& all,
                         const Tensor& grad_out_BTNH, const AttentionSums& sums) {
  const at::NoGradGuard no_grad;
  const int64_t heads = q_BTNH.size(2), key_heads = k_BSKH.size(2);
  const PieceScores s(q_BTNH, k_BSKH, piece);
  const Tensor grad = HeadsFirst(grad_out_BTNH, heads), v = HeadsFirst(v_BSKH, heads);
  const Tensor p = at::exp2(s.scores - all.lse_BNT.unsqueeze(-1));
  const Tensor delta = (HeadsFirst(all.out_BTNH, heads) * grad).sum(-1, true);
  const Tensor ds = p * (s.Dropped(at::matmul(grad, v.transpose(2, 3))) - delta) * s.scale;
  sums.q_BTNH.add_(at::matmul(ds, s.k).transpose(1, 2));
  sums.k_BSKH.add_(SumOverGroups(at::matmul(ds.transpose(2, 3), s.q), key_heads));
  sums.v_BSKH.add_(SumOverGroups(at::matmul(s.Dropped(p).transpose(2, 3), grad), key_heads));
}

Tensor CachedAttention(const Tensor& q_BTNH, const Tensor& k_BSKH, const Tensor& v_BSKH,
                       const Tensor& lengths_B, double scale) {
  const int64_t num_heads = q_BTNH.size(2), length = q_BTNH.size(1), places = k_BSKH.size(1);
  Tensor key_place = at::arange(places, lengths_B.options()).view({1, 1, 1, places});
  Tensor query_place = lengths_B.view({-1, 1, 1, 1}) - length +
                       at::arange(length, lengths_B.options()).view({1, 1, length, 1});
  // Places past the length may hold anything, NaN included: 0 * NaN would reach the result.
  Tensor valid =
      at::arange(places, lengths_B.options()).view({1, -1, 1, 1}).lt(lengths_B.view({-1, 1, 1, 1}));
  Tensor zero = at::zeros({}, v_BSKH.options());
  Tensor out = MaskedAttention(HeadsFirst(q_BTNH, num_heads),
                               HeadsFirst(at::where(valid, k_BSKH, zero), num_heads),
                               HeadsFirst(at::where(valid, v_BSKH, zero), num_heads),
                               key_place.le(query_place), ScaleOrDefault(scale, q_BTNH.size(3)));
  return out.transpose(1, 2).contiguous().to(q_BTNH.scalar_type());
}

Tensor LinearLogprobs(const Tensor& hidden_RC, const Tensor& weight, const Tensor& targets_R,
                      const CrossEntropyOptions& options) {
  const at::ScalarType type = ComputeType(hidden_RC);
  Tensor logprobs = at::log_softmax(at::matmul(hidden_RC.to(type), weight.to(type).t()), -1);
  Tensor valid = targets_R.ne(options.ignore_index);
  Tensor index = targets_R.masked_fill(valid.logical_not(), 0).unsqueeze(1);
  return at::where(valid, logprobs.gather(1, index).squeeze(1), at::zeros({}, logprobs.options()));
}

Tensor LinearCrossEntropy(const Tensor& hidden_RC, const Tensor& weight, const Tensor& targets_R,
                          const CrossEntropyOptions& options) {
  const Tensor sum = LinearLogprobs(hidden_RC, weight, targets_R, options).sum();
  if (options.label_smoothing == 0) return sum.neg() / options.denominator;
  const Tensor valid_R = targets_R != options.ignore_index;
  const at::ScalarType type = ComputeType(hidden_RC);
  const Tensor logprobs = at::log_softmax(at::matmul(hidden_RC.to(type), weight.to(type).t()), -1);
  const Tensor means_R = logprobs.mean(1) * valid_R;
  return ((1 - options.label_smoothing) * sum + options.label_smoothing * means_R.sum()).neg() /
         options.denominator;
}

void AdamWStep(Tensor& weights, const Tensor& grads, Tensor& moment1, Tensor& moment2,
               Tensor& compute_copy, const AdamWOptions& options) {
  at::NoGradGuard no_grad;
  Tensor grad = grads.to(weights.scalar_type()) * options.grad_scale;
  const double correction1 = 1 - std::pow(options.beta1, options.step);
  const double correction2 = 1 - std::pow(options.beta2, options.step);
  weights.mul_(1 - options.learning_rate * options.weight_decay);
  moment1.lerp_(grad, 1 - options.beta1);
  moment2.mul_(options.beta2).addcmul_(grad, grad, 1 - options.beta2);
  Tensor denominator = moment2.sqrt().div_(std::sqrt(correction2)).add_(options.epsilon);
  weights.addcdiv_(moment1, denominator, -options.learning_rate / correction1);
  if (compute_copy.defined()) compute_copy.copy_(weights);
}

void SgdStep(Tensor& weights, const Tensor& grads, Tensor& momentum, Tensor& compute_copy,
             const SgdOptions& options) {
  at::NoGradGuard no_grad;
  Tensor grad = grads.to(weights.scalar_type()) * options.grad_scale;
  if (options.weight_decay != 0) grad = grad.add(weights, options.weight_decay);
  if (options.momentum != 0) {
    if (options.step == 1) {
      momentum.copy_(grad);
    } else {
      momentum.mul_(options.momentum).add_(grad);
    }
    grad = options.nesterov ? grad.add(momentum, options.momentum) : momentum;
  }
  weights.add_(grad, -options.learning_rate);
  if (compute_copy.defined()) compute_copy.copy_(weights);
}

}  // namespace reference
}  // namespace shoal
