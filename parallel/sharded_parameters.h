// All weights of a model (or of a pipeline stage) under a ZeRO stage, addressed by block.
//
// Use, a step of m micro-batches (this is what trainer/block_runner.cc does):
//   for each micro-batch i:
//     for b = 0 .. B-1:   weights = parameters.BeginForward(b);  forward
//     for b = B-1 .. 0:   parameters.ZeroGradients(b, i);  parameters.BeginBackward(b);  backward;
//                         parameters.EndBackward(b, i)
//   parameters.FinishGradients()
//   gradients of optimizer_slices() are now the sums over ranks;  update them;
//   parameters.PublishWeights()
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "core/parameter.h"
#include "core/trace.h"
#include "parallel/comm/comm_queue.h"
#include "parallel/comm/communicator.h"
#include "parallel/sharded_unit.h"
#include "parallel/unit_plan.h"

namespace shoal {

class ShardedParameters {
 public:
  // Collective over groups.shard (and groups.expert_shard). Weights start as zeros.
  ShardedParameters(const std::vector<BlockParameters>& blocks, const ZeroOptions& options,
                    const ShareGroups& groups);

  // The block's weights, in the order of its specs, until another block's pass begins. Collective,
  // as are the calls below. Under stage 3 each unit is gathered once a forward and once a backward
  // pass. `next`: the block whose pass of the same kind follows, which is gathered meanwhile under
  // options().overlap; -1: not known. Of offloaded weights its shard is read meanwhile.
  std::span<const Parameter> BeginForward(int block, int next = -1);
  // Before gradients of the block are added, blocks in descending order: not collective.
  void ZeroGradients(int block, int micro_batch);
  // The block's weights again; blocks in descending order.
  std::span<const Parameter> BeginBackward(int block, int next = -1);
  void EndBackward(int block, int micro_batch);
  // After the last one of a step: all reductions are done, those of weights that several pipeline
  // stages hold too. Waits for the device if the host is to update.
  void FinishGradients();
  // After the optimizer's step (and once after loading).
  void PublishWeights();
  // After owned weights were written: rounds them to the compute dtype and publishes. Collective.
  void SyncFromMaster();

  std::vector<OptimizerSlice> optimizer_slices() const;
  const std::vector<std::unique_ptr<ShardedUnit>>& units() const { return units_; }
  const ZeroOptions& options() const { return options_; }
  at::Device device() const { return device_; }  // Of weights, gradients and states
  int num_blocks() const { return static_cast<int>(blocks_.size()); }

  // Elements over all shards that this rank owns, no padding; of shared experts, all ranks'.
  int64_t num_trainable() const;
  int64_t num_padded() const;  // Of trainable units, with padding: the P of the formulas
  HeldBytes held_bytes() const;

 private:
  struct BlockView {
    std::vector<int> units;  // Own units and those borrowed from, ascending
    std::vector<Parameter> parameters;
  };
  struct UnitUse {
    int first_block;  // Lowest and highest block that touch the unit
    int last_block;
  };

  // Runs `work` of a unit at once or, under overlap, later.
  CommQueue::Ticket Do(std::function<void()> work);
  void Await(CommQueue::Ticket& ticket);
  void Gather(int unit);
  // Those units of `next` that its pass gathers, ahead of it: `place` is the end of theirs that
  // comes first in that pass.
  void GatherAhead(int next, int UnitUse::*place);

  ShardedUnit::Arenas MakeArenas(int64_t numel, bool trainable, Communicator& comm);

  ZeroOptions options_;
  at::Device device_;
  std::vector<std::unique_ptr<ShardedUnit>> units_;
  std::vector<UnitUse> uses_;       // One a unit
  std::vector<std::string> names_;  // One a unit, in traces
  std::vector<BlockView> blocks_;
  std::unique_ptr<HostToDevice> host_to_device_;  // Null: nothing is offloaded from a device
  int64_t arena_bytes_ = 0;
  std::vector<CommQueue::Ticket> gathers_;  // One a unit: posted and not yet waited for; 0: none
  std::map<const void*, CommQueue::Ticket> reductions_;  // By gradient buffer
  std::unique_ptr<CommQueue> queue_;  // Null: no overlap. Last: its thread uses all of the above
};

}  // namespace shoal
