#include "parallel/sharded_unit.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/zeros.h>

#include "core/status.h"
#include "kernels/locked_memory.h"

namespace shoal {
namespace {

Tensor ZeroedRegistered(Communicator& comm, int64_t numel, at::ScalarType dtype) {
  Tensor memory = comm.AllocateRegistered(numel, dtype);
  memory.zero_();
  return memory;
}

}  // namespace

Tensor OptimizerZeros(const ZeroOptions& options, int64_t numel, const at::TensorOptions& kind) {
  switch (options.offload_optimizer) {
    case OffloadTo::kDisk:
      return options.offload->Zeros(numel, c10::typeMetaToScalarType(kind.dtype()));
    case OffloadTo::kHost:
      return at::zeros({numel}, kind.device(at::kCPU));
    case OffloadTo::kNowhere:
      break;
  }
  return at::zeros({numel}, kind);
}

HeldBytes& HeldBytes::operator+=(const HeldBytes& other) {
  weights += other.weights;
  gradients += other.gradients;
  master_weights += other.master_weights;
  gathered += other.gathered;
  weights_in_host += other.weights_in_host;
  gradients_in_host += other.gradients_in_host;
  master_weights_in_host += other.master_weights_in_host;
  weights_on_disk += other.weights_on_disk;
  master_weights_on_disk += other.master_weights_on_disk;
  return *this;
}

ShardedUnit::ShardedUnit(std::vector<ParameterSpec> specs, bool trainable,
                         const ZeroOptions& options, const ShareGroups& groups,
                         const Arenas& arenas)
    : layout_(std::move(specs), groups.shard.size()),
      trainable_(trainable),
      options_(options),
      comm_(groups.shard),
      groups_(groups),
      packed_(arenas.packed),
      host_to_device_(arenas.host_to_device) {
  const int64_t padded = layout_.padded_numel();
  const int64_t shard = layout_.shard_numel();
  if (options_.stage == 3) {
    weights_full_ = arenas.gathered.narrow(0, 0, padded);
    weights_shard_ = ZeroedShard();
  } else {
    weights_full_ = ZeroedRegistered(comm_, padded, options_.compute_dtype);
    weights_shard_ = Shard(weights_full_);
  }
  const bool owns_all = options_.stage == 0;
  owned_begin_ = owns_all ? 0 : shard_begin();
  owned_weights_ = owns_all ? weights_full_ : weights_shard_;
  if (trainable_) {
    if (options_.has_master_copy() && options_.split_master) {
      split_ = std::make_unique<SplitMaster>(owned_weights_.numel(), device());
      owned_weights_ = Tensor();
    } else if (options_.has_master_copy()) {
      owned_weights_ = OptimizerZeros(options_, owned_weights_.numel(),
                                      at::TensorOptions(options_.master_dtype()).device(device()));
    }
    gradients_full_ = options_.stage >= 2
                          ? arenas.gradients.narrow(0, 0, padded)
                          : ZeroedRegistered(comm_, padded, options_.gradient_dtype);
    if (!gradients_sharded())
      gradients_shard_ = Shard(gradients_full_);
    else if (!options_.updates_on_host())
      gradients_shard_ = at::zeros({shard}, gradients_full_.options());
    if (options_.updates_on_host())
      gradients_host_ = LockedZeros(owns_all ? padded : shard, options_.gradient_dtype, device());
  }
  for (int i = 0; i < static_cast<int>(layout_.specs().size()); ++i) {
    Parameter parameter{.value = layout_.View(weights_full_, i).detach(), .grad = {}};
    if (trainable_) {
      parameter.value.set_requires_grad(true);
      parameter.grad = layout_.View(gradients_full_, i);
    }
    parameters_.push_back(std::move(parameter));
  }
}

Tensor ShardedUnit::Shard(const Tensor& full) const {
  return full.narrow(0, shard_begin(), layout_.shard_numel());
}

Tensor ShardedUnit::ZeroedShard() const {
  const int64_t shard = layout_.shard_numel();
  switch (options_.offload_parameters) {
    case OffloadTo::kDisk:
      return options_.offload->Zeros(shard, options_.compute_dtype);
    case OffloadTo::kHost:
      return LockedZeros(shard, options_.compute_dtype, device());
    case OffloadTo::kNowhere:
      break;
  }
  return ZeroedRegistered(comm_, shard, options_.compute_dtype);
}

Tensor ShardedUnit::BringShard() {
  if (!options_.weights_on_host()) return weights_shard_;
  // As a collective writes: no version counts up of what autograd has saved.
  const Tensor mine = Shard(weights_full_.variable_data());
  if (options_.offload_parameters == OffloadTo::kDisk)
    host_to_device_->Copy(weights_shard_, mine);
  else
    mine.copy_(weights_shard_, /*non_blocking=*/true);
  return mine;
}

void ShardedUnit::Gather() {
  if (options_.stage != 3) return;
  const OffloadHold hold(weights_shard_, OffloadAccess::kRead);
  const Tensor shard_here = BringShard();
  if (!options_.quantized_weights || comm_.size() == 1)
    return comm_.AllGather(weights_full_, shard_here);
  const int64_t shard = layout_.shard_numel(), bytes = QuantizedBytes(shard);
  const Tensor mine = packed_.narrow(0, 0, bytes);
  Tensor all = packed_.narrow(0, bytes, comm_.size() * bytes);
  Quantize(shard_here, mine);
  comm_.AllGather(all, mine);
  for (int rank = 0; rank < comm_.size(); ++rank)
    SumQuantized(all.narrow(0, rank * bytes, bytes), 1,
                 weights_full_.narrow(0, rank * shard, shard));
}

void ShardedUnit::PrefetchShard() const { PrefetchOffloaded(weights_shard_, OffloadAccess::kRead); }

void ShardedUnit::ZeroGradients(bool first_micro_batch) {
  if (trainable_ && (first_micro_batch || gradients_sharded())) gradients_full_.zero_();
}

// Each tensor-parallel rank has added its part: sums, over whole weights, what the ranks hold.
void ShardedUnit::SumPartialGradients(const MicroBatchPlace& place) {
  if (!trainable_ || !groups_.tensor || groups_.tensor->size() == 1) return;
  if (!gradients_sharded() && !place.last_micro_batch) return;
  int64_t total = 0;
  for (const ParameterSpec& spec : layout_.specs())
    total += spec.partial_gradient ? spec.full_numel() : 0;
  if (total == 0) return;
  Tensor wholes = at::zeros({total}, gradients_full_.options());
  // Calls visit(run of this rank's gradients, the same elements of the wholes).
  const auto for_each_run = [&](const auto& visit) {
    int64_t whole = 0;
    for (int i = 0; i < static_cast<int>(layout_.specs().size()); ++i) {
      const ParameterSpec& spec = layout_.specs()[i];
      if (!spec.partial_gradient) continue;
      int64_t at = layout_.offset(i);
      for (const ElementRun& run : RunsInWhole(spec, 0, spec.numel())) {
        visit(gradients_full_.narrow(0, at, run.count),
              wholes.narrow(0, whole + run.first, run.count));
        at += run.count;
      }
      whole += spec.full_numel();
    }
  };
  for_each_run([](const Tensor& mine, const Tensor& whole) { whole.copy_(mine); });
  groups_.tensor->AllReduce(wholes);
  for_each_run([](const Tensor& mine, const Tensor& whole) { mine.copy_(whole); });
}

void ShardedUnit::ReduceScatterGradients(Tensor& out) {
  if (!options_.quantized_gradients || comm_.size() == 1)
    return comm_.ReduceScatter(out, gradients_full_);
  const int64_t shard = layout_.shard_numel(), bytes = QuantizedBytes(shard),
                all = comm_.size() * bytes;
  const Tensor mine = packed_.narrow(0, 0, all);
  Tensor theirs = packed_.narrow(0, all, all);
  for (int rank = 0; rank < comm_.size(); ++rank)
    Quantize(gradients_full_.narrow(0, rank * shard, shard), mine.narrow(0, rank * bytes, bytes));
  comm_.AllToAll(theirs, mine);
  SumQuantized(theirs, comm_.size(), out);
}

void ShardedUnit::ReduceGradients(const MicroBatchPlace& place) {
  if (!trainable_) return;
  const bool replicated = groups_.replicate && groups_.replicate->size() > 1;
  if (!gradients_sharded()) {
    if (!place.last_micro_batch) return;
    if (options_.stage == 0) {
      comm_.AllReduce(gradients_full_);
      if (replicated) groups_.replicate->AllReduce(gradients_full_);
    } else {
      comm_.ReduceScatter(gradients_shard_, gradients_full_);
      if (replicated) groups_.replicate->AllReduce(gradients_shard_);
    }
    if (gradients_host_.defined())
      gradients_host_.copy_(options_.stage == 0 ? gradients_full_ : gradients_shard_,
                            /*non_blocking=*/true);
    return;
  }
  // Where the sum over micro-batches waits for the next.
  Tensor kept = !gradients_host_.defined() ? gradients_shard_
                : options_.stage == 0      ? Shard(gradients_host_)
                                           : gradients_host_;
  Tensor sum = gradients_host_.defined()
                   ? at::empty({layout_.shard_numel()}, gradients_full_.options())
                   : gradients_shard_;
  if (place.first_micro_batch) {
    ReduceScatterGradients(sum);
  } else {
    Tensor reduced = at::empty_like(sum);
    ReduceScatterGradients(reduced);
    if (gradients_host_.defined()) sum.copy_(kept, /*non_blocking=*/true);
    sum.add_(reduced);
  }
  if (place.last_micro_batch) {
    if (replicated) groups_.replicate->AllReduce(sum);
    if (options_.stage == 0) {
      comm_.AllGather(gradients_full_, sum);
      if (gradients_host_.defined()) kept = gradients_host_, sum = gradients_full_;
    }
  }
  if (gradients_host_.defined()) kept.copy_(sum, /*non_blocking=*/true);
}

Tensor ShardedUnit::OwnedGradients() const {
  if (gradients_host_.defined()) return gradients_host_;
  return options_.stage == 0 ? gradients_full_ : gradients_shard_;
}

void ShardedUnit::SumTiedGradients() {
  if (!trainable_ || !layout_.specs()[0].tied_across_stages) return;
  Tensor gradients = OwnedGradients();
  groups_.tied_stages->AllReduce(gradients);
}

void ShardedUnit::SendToDevice() const {
  if (!trainable_ || !options_.updates_on_host() || options_.weights_on_host()) return;
  host_to_device_->Copy(owned_weights_, owned_compute_weights());
}

void ShardedUnit::PublishWeights() {
  if (trainable_ && (options_.stage == 1 || options_.stage == 2)) {
    comm_.AllGather(weights_full_, weights_shard_);
  }
}

OptimizerSlice ShardedUnit::optimizer_slice() const {
  SHOAL_CHECK(trainable_);
  OptimizerSlice slice{.layout = &layout_,
                       .begin = owned_begin_,
                       .weights = owned_weights_,
                       .gradients = OwnedGradients(),
                       .compute_copy = {},
                       .split = split_.get(),
                       .shard_numel = layout_.shard_numel(),
                       .shard = comm_.rank()};
  if (rounds_in_place()) slice.compute_copy = owned_compute_weights();
  return slice;
}

MasterRun OptimizerSlice::Master(int64_t first, int64_t count) const {
  return MasterRun{.plain = weights, .rounded = compute_copy, .split = split}.Narrow(first, count);
}

MasterRun ShardedUnit::OwnedMaster() const {
  return {.plain = owned_weights_,
          .rounded = trainable_ && rounds_in_place() ? owned_compute_weights() : Tensor(),
          .split = split_.get()};
}

Tensor ShardedUnit::owned_weights() const { return OwnedMaster().Read(); }

Tensor ShardedUnit::owned_weights_to_write() {
  if (!split_) return owned_weights_;
  if (!written_.defined()) written_ = owned_weights();
  return written_;
}

void ShardedUnit::SyncFromMaster() {
  OffloadHold hold;
  if (trainable_ && options_.has_master_copy()) {
    hold.Add(owned_weights_, OffloadAccess::kRead);
    if (rounds_in_place()) hold.Add(weights_shard_, OffloadAccess::kReplace);
  }
  if (!split_) {
    OwnedMaster().RoundAndKeep(owned_weights_);
  } else if (written_.defined()) {
    OwnedMaster().RoundAndKeep(written_);
    written_ = Tensor();
  }
  SendToDevice();
  if (options_.stage == 1 || options_.stage == 2) comm_.AllGather(weights_full_, weights_shard_);
}

HeldBytes ShardedUnit::held_bytes() const {
  HeldBytes held;
  const auto nbytes = [](const Tensor& tensor) { return static_cast<int64_t>(tensor.nbytes()); };
  if (options_.stage < 3)
    held.weights = nbytes(weights_full_);
  else if (options_.offload_parameters == OffloadTo::kDisk)
    held.weights_on_disk = OffloadSpace::Rounded(nbytes(weights_shard_));
  else
    (options_.weights_on_host() ? held.weights_in_host : held.weights) = nbytes(weights_shard_);
  if (!trainable_) return held;
  if (options_.stage < 2) held.gradients += nbytes(gradients_full_);
  if (gradients_host_.defined())
    held.gradients_in_host = nbytes(gradients_host_);
  else if (gradients_sharded())
    held.gradients += nbytes(gradients_shard_);
  if (!options_.has_master_copy()) return held;
  const int64_t masters = split_ ? split_->nbytes() : nbytes(owned_weights_);
  if (options_.offload_optimizer == OffloadTo::kDisk)
    held.master_weights_on_disk = OffloadSpace::Rounded(masters);
  else
    (options_.updates_on_host() ? held.master_weights_in_host : held.master_weights) = masters;
  return held;
}

}  // namespace shoal
