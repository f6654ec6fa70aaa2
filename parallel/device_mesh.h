// Who is who: the ranks of a job arranged along named axes. The only place that knows; everything
// else is handed the communicator of the axis that it works along.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "parallel/comm/communicator.h"

namespace shoal {

// Sizes of the axes. Their product is the number of ranks.
struct MeshShape {
  int replicate = 1;
  int shard = 1;
  int context = 1;
  int tensor = 1;
  int pipeline = 1;
  // So many of the shard ranks share the experts; it divides them. No factor of the product.
  int expert = 1;

  // Ranks that ZeRO shards weights over: ranks of a context have the same.
  int weight_shards() const { return shard * context; }
  int num_ranks() const { return replicate * shard * context * tensor * pipeline; }
  // "4 ranks = shard 4": axes of size 1 left out.
  std::string Equation() const;
};

// Neighbouring ranks, which talk fastest, share a tensor; then come those of a context, the shards
// of a replica, the replicas, the stages: rank = (((pipeline * replicates + replicate) * shards +
// shard) * contexts + context) * tensors + tensor.
class DeviceMesh {
 public:
  // Collective over `world`, which must outlive the mesh.
  static absl::StatusOr<DeviceMesh> Create(Communicator& world, const MeshShape& shape);

  const MeshShape& shape() const { return shape_; }

  // The axes, each a communicator of the ranks that differ in nothing else.
  // ZeRO's states: along shard and context, rank = shard * contexts + context.
  Communicator& shard() const { return *shard_; }
  Communicator& replicate() const { return *replicate_; }  // Copies of those
  Communicator& context() const { return *context_; }      // Each sequence
  Communicator& tensor() const { return *tensor_; }        // A block's matrices
  Communicator& pipeline() const { return *pipeline_; }    // The blocks: activations
  Communicator& pipeline_gradients() const { return *pipeline_gradients_; }  // As pipeline()
  // Neighbours along shard, which share the experts; null: each rank holds all.
  Communicator* expert() const { return expert_.get(); }
  // The ranks along shard and context that hold the same experts.
  Communicator& expert_shard() const { return expert_ ? *expert_shard_ : *shard_; }
  // Of pipeline ranks `stages`, which hold the same tied weight; null on others. Collective over
  // all ranks, once.
  Communicator* TieStages(const std::vector<int>& stages);
  // Bytes that this rank has sent along all axes.
  int64_t bytes_sent() const;

  // For counts, norms and agreement: their few bytes do not mix with the counted training traffic.
  Communicator& control() const { return *control_; }              // All ranks
  Communicator& data_control() const { return *data_control_; }    // Ranks with other tokens
  Communicator& shard_control() const { return *shard_control_; }  // As shard()
  Communicator& model_control() const { return *model_control_; }  // Ranks with other weights

  // Ranks that read different data, and this rank's place among them. Those of a context read the
  // same.
  int data_parallel_size() const { return shape_.replicate * shape_.shard; }
  int data_parallel_rank() const { return data_control_->rank() / shape_.context; }
  // Of ranks that compute the loss of the same tokens, the one that reports it.
  bool reports_loss() const { return tensor_->rank() == 0 && pipeline_->rank() == loss_stage_; }
  // The pipeline rank that runs the model's head; the last one unless set.
  void set_loss_stage(int pipeline_rank) { loss_stage_ = pipeline_rank; }

 private:
  DeviceMesh() = default;

  MeshShape shape_;
  int loss_stage_ = 0;
  std::unique_ptr<Communicator> shard_, replicate_, context_, tensor_, pipeline_,
      pipeline_gradients_, tied_stages_, expert_, expert_shard_;
  std::unique_ptr<Communicator> control_, data_control_, shard_control_, model_control_;
};

// Sum over the ranks of `comm`, in rank order. Collective.
double SumOverRanks(Communicator& comm, double value);
int64_t SumOverRanks(Communicator& comm, int64_t value);
int64_t MaxOverRanks(Communicator& comm, int64_t value);

}  // namespace shoal
