// One flat unit of weights under a ZeRO stage (Rajbhandari et al. 2020): its buffers, and the
// collectives that move them. A block's trainable weights are one unit, its frozen ones another.
//
// [Note: one result for every stage]
// Every stage reduces gradients over the same equal shards, in rank order, and the optimizer's
// arithmetic is element by element, so stages 0 to 3 compute the same bits; they differ in what is
// held and sent:
//
// (N ranks, P padded elements; sent in a step of one micro-batch)
//
//   stage  weights  gradients  optimizer  sent (elements)
//   0      P        P          P          all-reduce of gradients: 2 P (N-1)/N
//   1      P        P          P/N        reduce-scatter, gather of weights: 2 P (N-1)/N
//   2      P        P/N        P/N        the same
//   3      P/N      P/N        P/N        two gathers, a reduce-scatter: 3 P (N-1)/N
//
// With m micro-batches a step, stages 2 and 3 reduce after each one ((m + 1) P (N-1)/N and 3 m P
// (N-1)/N); stages 0 and 1 add up locally and reduce once. That changes the order of additions, so
// under `reduce_every_micro_batch` (run.deterministic) stages 0 and 1 reduce after each one too, at
// (m + 1) P (N-1)/N and one more shard of gradients.
//
// With R replicas of the shards (hybrid sharding, Zhang et al. 2022, MiCS) each rank all-reduces
// its shard of the gradients (stage 0: all of them) over the replicas too, once a step: 2 P/N
// (R-1)/R elements more (stage 0: 2 P (R-1)/R).
//
// [Note: what the host updates]
// Of ranks that compute on a device, whose optimizer is offloaded (Ren et al. 2021,
// "ZeRO-Offload"): the slice of weights in master precision, the states and the reduced gradients
// lie in host memory and the host's cores update them; the device holds the weights that compute,
// by their stage, and gradients that are not reduced. Each reduction's result goes to the host
// behind the device's work, and is added up on the device, which reads what was there; new weights
// go back unit by unit. If the weights that compute lie in host memory too, each gather begins with
// the way to the device.
#pragma once

#include <algorithm>
#include <memory>
#include <vector>

#include "core/dtype.h"
#include "core/offload.h"
#include "core/parameter.h"
#include "parallel/comm/communicator.h"
#include "parallel/flat_layout.h"
#include "parallel/host_to_device.h"
#include "parallel/quantized_blocks.h"
#include "parallel/split_master.h"

namespace shoal {

// What holds tensors that nobody computes with.
enum class OffloadTo { kNowhere, kHost, kDisk };

struct ZeroOptions {
  int stage = 0;
  at::ScalarType compute_dtype = at::kFloat;   // Weights as the model sees them
  at::ScalarType gradient_dtype = at::kFloat;  // Gradients held and sent
  int micro_batches = 1;                       // A step
  bool reduce_every_micro_batch = false;       // In stages 0 and 1 too; see the note above
  // Gathers run ahead of the blocks and reductions beside them, on a thread of their own. Buffers
  // that units take turns in are there twice.
  bool overlap = false;
  // With compute_dtype bfloat16: of the master weights only what the rounded ones do not say is
  // kept.
  bool split_master = false;
  // Of stage 3; of stages 2 and 3: weights are gathered, gradients reduced as quantized_blocks.h
  // has them, by ranks that are several. The weights that compute are rounded so on every rank.
  bool quantized_weights = false;
  bool quantized_gradients = false;
  // Where master weights and the optimizer's states are between steps; of stage 3: where the
  // weights that compute are while their unit is not gathered or updated. On disk: in files of
  // `offload` (core/offload.h), which outlives what is made by these options.
  OffloadTo offload_optimizer = OffloadTo::kNowhere;
  OffloadTo offload_parameters = OffloadTo::kNowhere;
  OffloadSpace* offload = nullptr;
  // Ranks compute on a device that is not the host's; only there kHost is another place, and
  // parameters are offloaded only if the optimizer is.
  bool on_device = false;

  // Weights as the optimizer sees them: float32 unless the model computes in float64.
  at::ScalarType master_dtype() const {
    return compute_dtype == at::kDouble ? at::kDouble : at::kFloat;
  }
  // See [Note: what the host updates].
  bool updates_on_host() const { return on_device && offload_optimizer != OffloadTo::kNowhere; }
  bool weights_on_host() const { return on_device && offload_parameters != OffloadTo::kNowhere; }
  bool has_master_copy() const {
    return compute_dtype != master_dtype() || (updates_on_host() && !weights_on_host());
  }
  // Of so many weights, beside those that compute.
  int64_t master_copy_bytes(int64_t numel) const {
    if (!has_master_copy()) return 0;
    return split_master ? SplitMaster::BytesOf(numel, on_device)
                        : numel * ElementBytes(master_dtype());
  }
  // Bytes of what lies packed while a unit of such shards is gathered or reduced.
  int64_t packed_bytes(int64_t shard_numel, int ranks, bool trainable) const {
    if (ranks == 1) return 0;
    const int64_t one = QuantizedBytes(shard_numel);
    return one * std::max(quantized_weights ? ranks + 1 : 0,
                          quantized_gradients && trainable ? 2 * ranks : 0);
  }
  bool reduces_each_micro_batch() const {
    return stage >= 2 || (reduce_every_micro_batch && micro_batches > 1);
  }
};

// The elements of a unit that this rank's optimizer updates, as equally long flat tensors.
struct OptimizerSlice {
  const FlatLayout* layout;
  int64_t begin;        // First flat element
  Tensor weights;       // (n) master dtype; undefined if they are split
  Tensor gradients;     // (n) gradient dtype
  Tensor compute_copy;  // (n) compute dtype, or undefined: weights are the compute weights
                        // themselves, or are sent to them (ShardedUnit::SendToDevice)
  SplitMaster* split;   // Null: weights
  int64_t shard_numel;  // n is this, or (stage 0) layout->padded_numel()
  int shard;            // This rank's among those of the unit

  int64_t numel() const { return gradients.numel(); }
  // Elements [first, first + count) of the n.
  MasterRun Master(int64_t first, int64_t count) const;
};

// The ranks that share weights; they outlive what is made of them.
struct ShareGroups {
  Communicator& shard;                // Each holds a part, by the ZeRO stage
  Communicator* replicate = nullptr;  // Each holds the same part; null: this rank alone
  Communicator* tensor = nullptr;     // Those whose partial gradients add up; null: this rank alone
  // The stages that hold the same tied weight; null: this rank's stage holds none.
  Communicator* tied_stages = nullptr;
  // As `shard`, of the experts that this rank holds; null: it holds all of them.
  Communicator* expert_shard = nullptr;
};

// Bytes that a rank holds, by what they are for: where it computes, in the host's memory if that is
// elsewhere, and on disk in whole pages.
struct HeldBytes {
  int64_t weights = 0;
  int64_t gradients = 0;
  int64_t master_weights = 0;
  int64_t gathered = 0;  // Buffers of gathered weights and of a block's gradients before reduction
  int64_t weights_in_host = 0;
  int64_t gradients_in_host = 0;
  int64_t master_weights_in_host = 0;
  int64_t weights_on_disk = 0;
  int64_t master_weights_on_disk = 0;

  HeldBytes& operator+=(const HeldBytes& other);
};

// (numel) zeros of that dtype and, unless they are offloaded, device, which only the optimizer
// uses.
Tensor OptimizerZeros(const ZeroOptions& options, int64_t numel, const at::TensorOptions& kind);

class ShardedUnit {
 public:
  // Buffers that units of different blocks take turns in; (padded_numel or more).
  struct Arenas {
    Tensor gathered;   // Stage 3: compute dtype
    Tensor gradients;  // Stages 2 and 3, trainable units: gradient dtype
    Tensor packed;     // Of all units: packed_bytes or more
    // Of all units, if anything is offloaded from a device; outlives them.
    HostToDevice* host_to_device = nullptr;
  };

  // Collective over groups.shard. `trainable` is of all specs alike.
  ShardedUnit(std::vector<ParameterSpec> specs, bool trainable, const ZeroOptions& options,
              const ShareGroups& groups, const Arenas& arenas);

  const FlatLayout& layout() const { return layout_; }
  bool trainable() const { return trainable_; }
  // The ranks that share its weights; those that hold other parts of its matrices, or null.
  Communicator& shard_ranks() const { return comm_; }
  Communicator* tensor_ranks() const { return groups_.tensor; }
  // One a spec; valid while gathered, gradients between ZeroGradients and ReduceGradients.
  const std::vector<Parameter>& parameters() const { return parameters_; }
  at::Device device() const { return comm_.device(); }  // Of all that is not offloaded

  // Stage 3: fills the gathered weights from all shards. Collective.
  void Gather();
  // Offloaded weights: begins to read what Gather needs.
  void PrefetchShard() const;
  // Before the first block of a micro-batch's backward pass that touches the unit.
  void ZeroGradients(bool first_micro_batch);
  struct MicroBatchPlace {
    bool first_micro_batch;
    bool last_micro_batch;
  };
  // After the last such block. Collective: over groups.tensor, then over the others.
  void SumPartialGradients(const MicroBatchPlace& place);
  void ReduceGradients(const MicroBatchPlace& place);
  // Memory of the gradients before reduction; units that take turns in it have the same.
  const void* gradient_buffer() const {
    return trainable_ ? gradients_full_.const_data_ptr() : nullptr;
  }
  // After all reductions: weights that another pipeline stage holds too. Collective over
  // groups.tied_stages.
  void SumTiedGradients();
  // After the optimizer has written its slice in host memory: to the weights that compute, if they
  // are elsewhere. Not collective; the slice may change at once.
  void SendToDevice() const;
  // After that: stages 1 and 2 gather the new weights. Collective.
  void PublishWeights();

  // Trainable units: what the optimizer updates.
  OptimizerSlice optimizer_slice() const;
  // The weights that this rank keeps in master precision (frozen units: compute dtype): flat
  // elements [owned_begin(), owned_begin() + size), its shard or (stage 0) all. Split master
  // weights are read as a copy. Offloaded ones are there for who holds them (OffloadHold).
  Tensor owned_weights() const;
  // The same for who writes all of them or some, and then calls SyncFromMaster(), which is
  // collective.
  Tensor owned_weights_to_write();
  // The same as they compute.
  Tensor owned_compute_weights() const {
    return options_.stage == 0 ? weights_full_ : weights_shard_;
  }
  int64_t owned_begin() const { return owned_begin_; }
  int64_t shard_begin() const { return layout_.shard_numel() * comm_.rank(); }
  void SyncFromMaster();

  HeldBytes held_bytes() const;

 private:
  Tensor Shard(const Tensor& full) const;
  MasterRun OwnedMaster() const;
  // What the reductions of the header's table are, quantized or not.
  void ReduceScatterGradients(Tensor& out);
  bool gradients_sharded() const { return options_.reduces_each_micro_batch(); }
  Tensor OwnedGradients() const;
  Tensor ZeroedShard() const;
  // This rank's shard of the weights where the gather reads it.
  Tensor BringShard();
  // The weights that compute are written with their masters, not sent to.
  bool rounds_in_place() const {
    return options_.has_master_copy() &&
           (!options_.updates_on_host() || options_.weights_on_host());
  }

  FlatLayout layout_;
  bool trainable_;
  ZeroOptions options_;
  Communicator& comm_;  // groups_.shard
  const ShareGroups groups_;

  Tensor weights_full_;   // (P) compute dtype; stage 3: the arena
  Tensor weights_shard_;  // (P/N) compute dtype; below stage 3 a view of weights_full_
  Tensor owned_weights_;  // (P) at stage 0, else (P/N); master dtype. Without a master copy a view
                          // of the above
  std::unique_ptr<SplitMaster> split_;  // Instead of owned_weights_, of split master weights
  Tensor written_;  // Split master weights while they are written; else undefined
  int64_t owned_begin_;
  Tensor packed_;  // The arena, if anything is quantized
  HostToDevice* host_to_device_;
  Tensor gradients_full_;  // (P) gradient dtype; stages 2 and 3: the arena
  Tensor
      gradients_shard_;    // (P/N) sum of reduced gradients; undefined or a view of gradients_full_
  Tensor gradients_host_;  // (P) at stage 0, else (P/N), reduced; undefined unless updated there
  std::vector<Parameter> parameters_;
};

}  // namespace shoal
