// Legend: R rows of a micro-batch, r this rank's of them between blocks, C channels, V vocabulary.
#include "trainer/plan/memory.h"

#include <algorithm>

#include "core/dtype.h"
#include "core/offload.h"
#include "kernels/cross_entropy.h"
#include "models/family.h"
#include "trainer/plan/offload_plan.h"

namespace shoal {
namespace {

// Operands and result of a float16 product (rows, inner) (inner, columns), widened
// (kernels/matmul.h).
int64_t WidenedBytes(const PlanJob& job, int64_t rows, int64_t inner, int64_t columns) {
  if (job.zero.compute_dtype != at::kHalf) return 0;
  return 4 * (rows * inner + inner * columns + rows * columns);
}

// What the backward pass of a layer adds, at its most, to what the layer keeps: in the middle of
// the MLP, the gradient of the layer's output and of the inner tensors; the activation's output has
// gone.
int64_t WorkingBytes(const PlanJob& job, const ModelConfig& config, const PartWidths& widths,
                     int64_t layer) {
  const bool plain = config.family->stack.mlp == StackOptions::Mlp::kPlain;
  const int64_t inner = config.has_experts(layer)
                            ? 2 * std::max(config.experts_per_token * widths.expert, widths.shared)
                            : (plain ? 1 : 2) * widths.inner;
  return ElementBytes(job.zero.compute_dtype) *
             (job.rows() * inner + job.own_rows() * config.hidden_size) +
         WidenedBytes(job, job.rows(), config.has_experts(layer) ? inner : widths.inner,
                      config.hidden_size);
}

struct HeadBytes {
  int64_t kept = 0;     // A micro-batch under way
  int64_t working = 0;  // Once
};

HeadBytes HeadBytesOf(const PlanJob& job, const ModelConfig& config, const PartWidths& widths,
                      const RankOutline& rank, const ScheduleShape& schedule) {
  const at::ScalarType compute = job.zero.compute_dtype, sums = job.zero.master_dtype();
  const int64_t rows = job.rows(), vocabulary = widths.vocabulary;
  // The norm's output, and the gradient of that.
  HeadBytes head{.kept = 2 * ElementBytes(compute) * rows * config.hidden_size};
  const bool shared = job.mesh.tensor > 1;
  if (compute == at::kDouble && !shared) {
    // Plain operations: logits and their log-softmax, whole.
    head.kept += 2 * ElementBytes(compute) * rows * vocabulary;
    return head;
  }
  // As cross_entropy.cc and vocabulary_parallel.cc cut the rows.
  const int64_t part = shared ? config.vocab_size / job.mesh.tensor + 1 : vocabulary;
  const int64_t chunk = CrossEntropyChunkRows(part, job.device_type());
  const int64_t chunk_rows = std::min(chunk, rows);
  head.working = chunk_rows * vocabulary *
                     (ElementBytes(sums) + (compute == sums ? 0 : ElementBytes(compute))) +
                 WidenedBytes(job, chunk_rows, vocabulary, config.hidden_size);
  const bool in_place = !shared && schedule.head_turns_at_once() &&
                        (job.zero.gradient_dtype == at::kFloat || rows <= chunk);
  if (rank.trains_head && !in_place)
    head.kept += ElementBytes(sums) * vocabulary * config.hidden_size;
  return head;
}

// Bytes of the optimizer's states that the shard-th rank keeps of a unit.
int64_t UnitStateBytes(const UnitSize& unit, const PlanJob& job, int shard) {
  int64_t total = 0;
  ForStateTensors(unit, job, shard, [&](int64_t bytes) { total += bytes; });
  return total;
}

}  // namespace

HeldBytes HeldBytesOf(const std::vector<UnitSize>& units, const ZeroOptions& zero,
                      const MeshShape& mesh) {
  const int64_t compute = ElementBytes(zero.compute_dtype),
                gradient = ElementBytes(zero.gradient_dtype);
  const auto buffers = [&](int64_t numel, bool trainable) {
    return numel *
           ((zero.stage == 3 ? compute : 0) + (zero.stage >= 2 && trainable ? gradient : 0));
  };
  HeldBytes held;
  // [of experts][trainable], of units that take turns
  int64_t largest[2][2] = {{0, 0}, {0, 0}};
  for (const UnitSize& unit : units) {
    const int64_t shard = unit.shard_numel(mesh), padded = unit.padded_numel(mesh);
    if (unit.of_buffers) {
      held.weights += unit.count * ElementBytes(zero.master_dtype()) * padded;
      continue;
    }
    if (zero.stage < 3)
      held.weights += unit.count * compute * padded;
    else if (zero.offload_parameters == OffloadTo::kDisk)
      held.weights_on_disk += unit.count * OffloadSpace::Rounded(compute * shard);
    else
      (zero.weights_on_host() ? held.weights_in_host : held.weights) +=
          unit.count * compute * shard;
    if (unit.takes_turns)
      largest[unit.of_experts][unit.trainable] =
          std::max(largest[unit.of_experts][unit.trainable], padded);
    else
      held.gathered += unit.count * buffers(padded, unit.trainable);
    if (!unit.trainable) continue;
    if (zero.stage < 2) held.gradients += unit.count * gradient * padded;
    if (zero.updates_on_host())
      held.gradients_in_host += unit.count * gradient * (zero.stage == 0 ? padded : shard);
    else if (zero.reduces_each_micro_batch())
      held.gradients += unit.count * gradient * shard;
    const int64_t master = zero.master_copy_bytes(zero.stage == 0 ? padded : shard);
    if (zero.offload_optimizer == OffloadTo::kDisk)
      held.master_weights_on_disk += unit.count * OffloadSpace::Rounded(master);
    else
      (zero.updates_on_host() ? held.master_weights_in_host : held.master_weights) +=
          unit.count * master;
  }
  int64_t packed = 0;
  for (const UnitSize& unit : units) {
    if (!unit.of_buffers)
      packed = std::max(
          packed, zero.packed_bytes(unit.shard_numel(mesh), unit.shards(mesh), unit.trainable));
  }
  held.gathered += packed;
  for (const auto& of_kind : largest) {
    held.gathered +=
        (zero.overlap ? 2 : 1) * (buffers(of_kind[false], false) + buffers(of_kind[true], true));
  }
  return held;
}

int64_t OwnedNumel(const std::vector<UnitSize>& units, const ZeroOptions& zero,
                   const MeshShape& mesh) {
  int64_t numel = 0;
  for (const UnitSize& unit : units) {
    if (!unit.trainable) continue;
    numel += unit.count * (zero.stage == 0 ? unit.padded_numel(mesh) : unit.shard_numel(mesh));
  }
  return numel;
}

int64_t OptimizerBytesOf(const std::vector<UnitSize>& units, const PlanJob& job) {
  if (job.zero.offload_optimizer == OffloadTo::kDisk) return 0;
  int64_t most = 0;
  const int different = DifferentShards(units, job);
  for (int shard = 0; shard < different; ++shard) {
    int64_t bytes = 0;
    for (const UnitSize& unit : units) {
      if (unit.trainable)
        bytes += unit.count * UnitStateBytes(unit, job, unit.shard_of(shard, job.mesh));
    }
    most = std::max(most, bytes);
  }
  return most;
}

// Follows models/blocks/decoder_layer.cc: what each operation saves, a tensor that two save once.
int64_t LayerBytes(const PlanJob& job, const ModelConfig& config, const PartWidths& widths,
                   int64_t layer) {
  const StackOptions& stack = config.family->stack;
  const bool experts = config.has_experts(layer);
  const int64_t rows = job.rows(), element = ElementBytes(job.zero.compute_dtype),
                sum = ElementBytes(job.zero.master_dtype());
  // (r, C): the layer's input; the sum with the attention's output.
  int64_t elements = 2 * job.own_rows() * config.hidden_size;
  // (R, ...): both norms' outputs, where the products read them; q, k and v; the attention's
  // output.
  int64_t width = 2 * config.hidden_size + 2 * widths.queries + 2 * widths.key_values;
  // Normed q and k, and turned ones, beside the product that v is a view of.
  if (stack.qk_norm == StackOptions::QkNorm::kHead) width += widths.queries + widths.key_values;
  const bool shares = job.mesh.context > 1,
             ring = shares && job.context_method == ContextParallel::Method::kRing;
  if (shares && !ring) {
    // Instead of all of those: all places of some heads, and what the output projection reads.
    const int64_t read =
        std::ssize(KeyHeadsOfRanks(widths.heads, widths.attended, job.mesh.context));
    width += widths.queries + 2 * read * config.head_dim - 2 * widths.key_values;
  } else if (stack.positions == StackOptions::Positions::kRotary) {
    width += widths.queries + widths.key_values;
  }
  // What the activation reads, and what it puts out; gated by other than SwiGLU: its output too.
  const int64_t gated = config.activation == Activation::kSilu ? 3 : 4;
  if (experts)
    width += config.experts_per_token * (2 * config.hidden_size + gated * widths.expert) +
             gated * widths.shared;
  else
    width += (stack.mlp == StackOptions::Mlp::kPlain ? 2 : gated) * widths.inner;
  elements += rows * width;
  int64_t bytes = element * elements + 4 * rows * widths.heads;  // And the log-sum-exp, float32
  // The router's logits and probabilities; a choice's place, row, weight and what that comes of.
  if (experts)
    bytes += rows * (2 * sum * config.num_experts + (3 * 8 + 2 * sum) * config.experts_per_token);
  // Sigmoids beside their shares, and what the router reads in full precision.
  if (experts && stack.router == StackOptions::Router::kBiasedSigmoid)
    bytes += rows * (sum * config.num_experts + (sum == element ? 0 : sum) * config.hidden_size);
  // Plain attention holds the scores, and their softmax; a ring makes them again.
  if (job.zero.compute_dtype == at::kDouble && !ring)
    bytes += 2 * element * widths.heads * rows * job.seq_length;
  return bytes;
}

PassBytes PassBytesOf(const PlanJob& job, const ModelOutline& model, const RankOutline& rank,
                      const ScheduleShape& schedule) {
  const ModelConfig& config = model.model.config;
  const PartWidths& widths = model.parts[rank.part].widths;
  const int64_t input = ElementBytes(job.zero.compute_dtype) * job.own_rows() * config.hidden_size;
  std::vector<int64_t> kept, head_kept;
  HeadBytes head;
  int64_t working = 0;  // Of a layer's backward pass, above what is kept until then
  // Of offloaded activations: what two blocks that follow each other keep, at most, of all blocks'.
  int64_t two = 0, moved = 0;
  std::vector<int64_t> aside;
  const bool offloads = job.offload_activations != OffloadTo::kNowhere;
  for (const BlockRange& chunk : rank.chunks) {
    const bool has_head = chunk.end == model.num_blocks();
    if (has_head) head = HeadBytesOf(job, config, widths, rank, schedule);
    kept.push_back(has_head ? input : 0);
    aside.push_back(0);
    int64_t before = 0;
    for (int block = chunk.first; block < chunk.end; ++block) {
      const LayerCounts layer = LayersOf({block, block + 1}, model.num_blocks(), job.recompute);
      if (layer.total() == 0) continue;
      const int64_t all = LayerBytes(job, config, widths, block - 1);
      const int64_t own = layer.recomputed > 0 ? input : all;
      (offloads ? aside : kept).back() += own;
      moved += offloads ? own * job.micro_batches() : 0;
      two = std::max(two, before + own);
      before = own;
      working = std::max(working, WorkingBytes(job, config, widths, block - 1) +
                                      (layer.recomputed > 0 ? all - input : 0));
    }
    head_kept.push_back(has_head ? head.kept : 0);
  }
  // Tokens, targets and positions of the step.
  const int64_t batch = 3 * 8 * job.rows() * job.micro_batches();
  PassBytes bytes;
  bytes.activations = batch + schedule.PeakBytes(rank.pipeline, kept);
  if (offloads) {
    bytes.activations += two;
    bytes.aside = schedule.PeakBytes(rank.pipeline, aside);
    bytes.moved = moved;
  }
  // The most is held either in the head's forward pass or in the backward pass of the layer after
  // it, when one micro-batch's head is done.
  const int64_t heads = schedule.PeakBytes(rank.pipeline, head_kept, /*to_input_half=*/true);
  const int64_t at_head = heads + head.working;
  const int64_t at_layer = heads - head.kept + working;
  bytes.head = at_head;
  bytes.activations += std::max<int64_t>(0, at_layer - at_head);
  return bytes;
}

}  // namespace shoal
