// Legend: R rows of a micro-batch, r this rank's of them, C channels.
#include "trainer/plan/traffic.h"

#include <algorithm>

#include "core/dtype.h"
#include "kernels/cross_entropy.h"
#include "parallel/comm/signature.h"
#include "parallel/quantized_blocks.h"

namespace shoal {
namespace {

using enum CollectiveKind;

// Counts the calls of one group.
class Group {
 public:
  Group(int size, at::ScalarType dtype) : size_(size), dtype_(dtype) {}

  // `numel`: as Signature has it: of the smaller tensor.
  void Call(AxisTraffic& axis, CollectiveKind kind, int64_t numel, int64_t times = 1) const {
    if (size_ == 1 || times == 0) return;
    const Signature signature{.kind = kind, .dtype = dtype_, .numel = numel};
    axis += {.bytes = times * BytesSent(signature, size_, /*rank=*/0), .calls = times};
  }

 private:
  int size_;
  at::ScalarType dtype_;
};

// What the optimizer asks other ranks of a unit's weights.
void AddWholeUpdates(const UnitSize& unit, const PlanJob& job, Traffic& traffic) {
  if (unit.wholes.empty()) return;
  WholeUnitShape shape{.weights = {},
                       .padded_numel = unit.padded_numel(job.mesh),
                       .shard_numel = unit.shard_numel(job.mesh),
                       .holds_all = job.zero.stage == 0,
                       .master = job.zero.master_dtype()};
  for (const UnitSize::Whole& whole : unit.wholes) shape.weights.push_back(whole.shape);
  for (const WholeRule::Call& call : job.whole_rule->Calls(shape)) {
    Group(call.along_tensor ? job.mesh.tensor : unit.shards(job.mesh), call.dtype)
        .Call(call.along_tensor ? traffic.tensor : traffic.shard_end, call.kind, call.numel,
              unit.count);
  }
}

// A unit's calls, as ShardedUnit makes them (sharded_unit.h says why).
void AddUnit(const UnitSize& unit, const PlanJob& job, int tied_ranks, Traffic& traffic) {
  if (unit.of_buffers) return;
  const ZeroOptions& zero = job.zero;
  const int64_t m = job.micro_batches(), count = unit.count;
  const int64_t shard = unit.shard_numel(job.mesh);
  const int64_t padded = unit.padded_numel(job.mesh);
  const Group weights(unit.shards(job.mesh), zero.compute_dtype);
  const Group packed(unit.shards(job.mesh), at::kByte);
  const int64_t packed_bytes = QuantizedBytes(shard);
  if (zero.stage == 3 && zero.quantized_weights)
    packed.Call(traffic.shard_passes, kAllGather, packed_bytes, 2 * m * count);
  else if (zero.stage == 3)
    weights.Call(traffic.shard_passes, kAllGather, shard, 2 * m * count);
  if (!unit.trainable) return;

  const Group gradients(unit.shards(job.mesh), zero.gradient_dtype);
  const Group replicas(job.mesh.replicate, zero.gradient_dtype);
  const bool each = zero.reduces_each_micro_batch();
  const int64_t reductions = each && !job.splits_backward() ? m : 1;
  if (unit.partial_numel > 0) {
    Group(job.mesh.tensor, zero.gradient_dtype)
        .Call(traffic.tensor, kAllReduce, unit.partial_numel, reductions * count);
  }
  if (each) {
    if (zero.quantized_gradients)
      packed.Call(traffic.shard_passes, kAllToAll, unit.shards(job.mesh) * packed_bytes,
                  reductions * count);
    else
      gradients.Call(traffic.shard_passes, kReduceScatter, shard, reductions * count);
    replicas.Call(traffic.replicate, kAllReduce, shard, count);
    if (zero.stage == 0) gradients.Call(traffic.shard_end, kAllGather, shard, count);
  } else if (zero.stage == 0) {
    gradients.Call(traffic.shard_end, kAllReduce, padded, count);
    replicas.Call(traffic.replicate, kAllReduce, padded, count);
  } else {
    gradients.Call(traffic.shard_end, kReduceScatter, shard, count);
    replicas.Call(traffic.replicate, kAllReduce, shard, count);
  }
  if (unit.tied_across_stages) {
    Group(tied_ranks, zero.gradient_dtype)
        .Call(traffic.tied, kAllReduce, zero.stage == 0 ? padded : shard, count);
  }
  if (zero.stage == 1 || zero.stage == 2) weights.Call(traffic.shard_end, kAllGather, shard, count);
  AddWholeUpdates(unit, job, traffic);
}

// The collectives of TensorParallel, for one micro-batch.
class TensorPasses {
 public:
  TensorPasses(const PlanJob& job, int64_t channels, AxisTraffic& axis)
      : job_(job), own_(job.own_rows() * channels), all_(job.rows() * channels), axis_(axis) {}

  void Enter(int64_t forwards, int64_t backwards) {
    if (job_.shares_rows()) {
      group_.Call(axis_, kAllGather, own_, forwards);
      group_.Call(axis_, kReduceScatter, own_, backwards);
    } else {
      group_.Call(axis_, kAllReduce, all_, backwards);
    }
  }
  void Leave(int64_t forwards, int64_t backwards) {
    if (job_.shares_rows()) {
      group_.Call(axis_, kReduceScatter, own_, forwards);
      group_.Call(axis_, kAllGather, own_, backwards);
    } else {
      group_.Call(axis_, kAllReduce, all_, forwards);
    }
  }
  // The largest logit of each row; then the target's, the sum of exponentials and, if labels are
  // smoothed, the sum of logits. A chunk of rows at a time, as vocabulary_parallel.cc cuts them.
  void CrossEntropy(int64_t vocabulary) {
    const int64_t part = vocabulary / job_.mesh.tensor + 1;
    const int64_t chunk = CrossEntropyChunkRows(part, job_.device_type());
    const Group sums(job_.mesh.tensor, job_.zero.master_dtype());
    const int64_t values = job_.label_smoothing > 0 ? 3 : 2;
    for (const auto& [rows, times] :
         {std::pair(chunk, job_.rows() / chunk), {job_.rows() % chunk, int64_t{1}}}) {
      if (rows == 0) continue;
      sums.Call(axis_, kAllReduce, rows, times);
      sums.Call(axis_, kAllReduce, values * rows, times);
    }
  }

 private:
  const PlanJob& job_;
  const int64_t own_, all_;
  AxisTraffic& axis_;
  const Group group_{job_.mesh.tensor, job_.zero.compute_dtype};
};

void AddChunk(const PlanJob& job, const ModelOutline& model, const BlockRange& chunk,
              const RankOutline& rank, AxisTraffic& axis) {
  if (job.mesh.tensor == 1) return;
  AxisTraffic once;
  TensorPasses passes(job, model.model.config.hidden_size, once);
  if (chunk.first == 0) passes.Leave(1, rank.trains_embedding ? 1 : 0);
  // Attention and MLP each enter and leave; what is computed again is sent again.
  const LayerCounts layers = LayersOf(chunk, model.num_blocks(), job.recompute);
  const int64_t forwards = 2 * (layers.total() + layers.recomputed), backwards = 2 * layers.total();
  passes.Enter(forwards, backwards);
  passes.Leave(forwards, backwards);
  if (chunk.end == model.num_blocks()) {
    passes.Enter(1, 1);
    passes.CrossEntropy(model.model.config.vocab_size);
  }
  axis.bytes += once.bytes * job.micro_batches();
  axis.calls += once.calls * job.micro_batches();
}

// Layers of experts.
LayerCounts ExpertLayersOf(const BlockRange& chunk, const ModelOutline& model, const PlanJob& job) {
  const int first = 1 + static_cast<int>(model.model.config.num_dense_layers);
  return LayersOf({std::max(first, chunk.first), chunk.end}, model.num_blocks(), job.recompute);
}

// The attention of ranks that share sequences (context_parallel.h has the formulas), and the counts
// of routers (models/blocks/router.h).
void AddContext(const PlanJob& job, const ModelOutline& model, const BlockRange& chunk,
                const PartWidths& widths, AxisTraffic& axis) {
  const int64_t ranks = job.mesh.context, rows = job.rows();
  if (ranks == 1) return;
  const ModelConfig& config = model.model.config;
  const LayerCounts layers = LayersOf(chunk, model.num_blocks(), job.recompute);
  const int64_t m = job.micro_batches(), backwards = m * layers.total(),
                forwards = m * (layers.total() + layers.recomputed);
  if (config.num_experts > 0) {
    const LayerCounts routed = ExpertLayersOf(chunk, model, job);
    Group(static_cast<int>(ranks), at::kDouble)
        .Call(axis, kAllGather, 2 * job.sequences * config.num_experts,
              m * (routed.total() + routed.recomputed));
  }
  if (job.context_method == ContextParallel::Method::kRing) {
    const int64_t keys = 2 * rows * widths.attended * config.head_dim, trips = ranks - 1;
    axis.bytes += trips * keys *
                  ((forwards + backwards) * ElementBytes(job.zero.compute_dtype) +
                   backwards * ElementBytes(job.zero.master_dtype()));
    axis.calls += trips * (forwards + 2 * backwards);
    return;
  }
  const int64_t read =
      std::ssize(KeyHeadsOfRanks(widths.heads, widths.attended, static_cast<int>(ranks)));
  const Group group(static_cast<int>(ranks), job.zero.compute_dtype);
  const int64_t passes = forwards + backwards;
  group.Call(axis, kAllToAll, rows * (widths.heads + 2 * read) * config.head_dim, passes);
  group.Call(axis, kAllToAll, rows * widths.heads * config.head_dim, passes);
}

// Each layer tells how many rows go where, and sends rows there and back in each pass.
void AddExperts(const PlanJob& job, const ModelOutline& model, const BlockRange& chunk,
                AxisTraffic& axis) {
  const int64_t ranks = job.mesh.expert;
  if (ranks == 1) return;
  const ModelConfig& config = model.model.config;
  const LayerCounts layers = ExpertLayersOf(chunk, model, job);
  const int64_t forwards = layers.total() + layers.recomputed,
                exchanges = 2 * (forwards + layers.total());
  const int64_t row_bytes = config.hidden_size * ElementBytes(job.zero.compute_dtype);
  const int64_t rows_elsewhere = job.rows() * config.experts_per_token * (ranks - 1) / ranks;
  Group(job.mesh.expert, at::kLong)
      .Call(axis, kAllToAll, config.num_experts, forwards * job.micro_batches());
  axis.bytes += rows_elsewhere * row_bytes * exchanges * job.micro_batches();
  axis.calls += (ranks - 1) * exchanges * job.micro_batches();
}

}  // namespace

AxisTraffic& AxisTraffic::operator+=(const AxisTraffic& other) {
  bytes += other.bytes;
  calls += other.calls;
  return *this;
}

AxisTraffic Traffic::shard() const {
  AxisTraffic sum = shard_passes;
  return sum += shard_end;
}

int64_t Traffic::total_bytes() const {
  return shard().bytes + replicate.bytes + context.bytes + tensor.bytes + expert.bytes +
         activations.bytes + gradients.bytes + tied.bytes;
}

Traffic TrafficOf(const PlanJob& job, const ModelOutline& model, const PipelineOutline& pipeline,
                  const RankOutline& rank) {
  Traffic traffic;
  for (const UnitSize& unit : rank.units) AddUnit(unit, job, pipeline.tied_ranks, traffic);
  for (const BlockRange& chunk : rank.chunks) {
    AddChunk(job, model, chunk, rank, traffic.tensor);
    AddContext(job, model, chunk, model.parts[rank.part].widths, traffic.context);
    AddExperts(job, model, chunk, traffic.expert);
  }
  // (r, C) a micro-batch and neighbouring stage on another rank.
  const int64_t hidden_bytes =
      job.own_rows() * model.model.config.hidden_size * ElementBytes(job.zero.compute_dtype);
  const AxisTraffic sends{.bytes = hidden_bytes * job.micro_batches(),
                          .calls = job.micro_batches()};
  const Schedule& frame = pipeline.frame;
  for (int chunk = 0; chunk < frame.chunks; ++chunk) {
    const int stage = frame.StageOf(rank.pipeline, chunk);
    const auto elsewhere = [&](int other) {
      return other >= 0 && other < frame.stages() && frame.PlaceOf(other).rank != rank.pipeline;
    };
    if (elsewhere(stage + 1)) traffic.activations += sends;
    if (elsewhere(stage - 1)) traffic.gradients += sends;
  }
  return traffic;
}

}  // namespace shoal
